"""Which rank keeps the others waiting, by the time of each rank's own work."""

import logging

from modelcore.training import stragglers
from modelcore.training.parallel import Ranks
from tests.modelcore.training.test_parallel import on_ranks


class Clock:
    """Each look at it is ``tick`` later than the one before."""

    def __init__(self, tick):
        self.tick, self.now = tick, 0.0

    def perf_counter(self):
        self.now += self.tick
        return self.now


def times_of_ranks(ranks):
    stragglers.time = Clock([2.0, 8.0, 4.0][ranks.rank])  # of a process of its own
    lines = []
    stragglers.logger.setLevel(logging.INFO)
    stragglers.logger.addFilter(lambda record: lines.append(record.getMessage()))
    own = stragglers.OwnTime(ranks)
    own.start()
    own.end()
    own.start()
    own.start()  # a checkpoint was written meanwhile
    own.end()
    first = own.report(tokens_per_step=64)
    own.start()
    own.end()
    return first, own.report(64), lines


def test_the_slowest_rank_is_named_and_set_against_the_median():
    (first, second, lines), (same, _, silent), _ = on_ranks(3, times_of_ranks)
    expected = {
        "slowest_rank": 1.0,
        "slowest_rank_seconds": 8.0,
        "median_rank_seconds": 4.0,
        "slowest_to_median": 2.0,
        "slowest_rank_tokens_per_second": 8.0,
    }
    assert first == second == same == expected
    line = "ranks=3 slowest_rank=1 slowest_to_median=2.00 median_rank_seconds=4 rank_seconds=2,8,4"
    assert lines == [line, line]
    assert silent == []


def test_one_process_alone_measures_no_ranks():
    own = stragglers.OwnTime(Ranks())
    own.start()
    own.end()
    assert own.report(64) == {}
