"""Figures are taken in turn, and their median counts."""

from bench.measure import alternate, timed


def test_contenders_are_measured_in_turn_and_the_order_turns_round():
    calls = []

    def contender(name):
        return lambda: calls.append(name) or 1.0

    alternate({"ours": contender("ours"), "peer": contender("peer")}, runs=2, warmup=1)
    assert calls == ["ours", "peer", "peer", "ours", "ours", "peer"]


def test_the_median_counts_and_the_warm_up_does_not():
    figures = iter([1000.0, 3.0, 1.0, 2.0])
    measured = alternate({"ours": lambda: next(figures)}, runs=3, warmup=1)["ours"]
    assert (measured.median, measured.low, measured.high) == (2.0, 1.0, 3.0)
    assert str(measured) == "2 (1 to 3)"


def test_a_device_is_waited_for_before_the_clock_starts_and_before_it_stops():
    calls = []
    timed(lambda: calls.append("work"), wait=lambda: calls.append("wait"))()
    assert calls == ["wait", "work", "wait"]
