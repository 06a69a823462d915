"""Running one function on many parts of a corpus, each a task of Spark's."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from modelcore.errors import InputError
from modelcore.progress import LOG_EVERY_SECONDS

if TYPE_CHECKING:
    from pyspark import SparkContext
    from pyspark.sql import SparkSession

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")


def run_tasks(
    spark: SparkSession, name: str, function: Callable[[Item], Result], items: Sequence[Item]
) -> list[Result]:
    """Calls ``function`` on each item, in Spark's worker processes, and returns the results in the items' order.

    A task may run more than once, on another machine too, so the function must leave the same files each time.

    Args:
        spark: The session.
        name: What is being done, for the log.
        function: Importable by its name; its result is small, what is large goes to files.
        items: What to call it on.

    Raises:
        InputError: The first one, in the items' order, that the function raised.
    """
    if not items:
        return []
    context = spark.sparkContext

    def call(item: Item) -> tuple[Result | None, str | None]:
        try:
            return function(item), None
        except InputError as error:
            return None, str(error)

    with _progress(context, name, len(items)):
        outcomes = context.parallelize(items, len(items)).map(call).collect()
    results: list[Result] = []
    for result, message in outcomes:
        if message is not None:
            raise InputError(message)
        results.append(result)
    return results


@contextmanager
def _progress(context: SparkContext, name: str, total: int) -> Iterator[None]:
    """Logs every few seconds how many tasks are done; on a terminal too, where several processes write."""
    done = threading.Event()
    context.setJobGroup(name, name, interruptOnCancel=True)

    def follow() -> None:
        tracker = context.statusTracker()
        while not done.wait(LOG_EVERY_SECONDS):
            for job in tracker.getJobIdsForGroup(name)[:1]:
                info = tracker.getJobInfo(job)
                stages = [tracker.getStageInfo(stage) for stage in info.stageIds] if info else []
                completed = sum(stage.numCompletedTasks for stage in stages if stage)
                logger.info("%s task=%d/%d", name, completed, total)

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def same_hash() -> int:
    """A number that is the same in two processes if Python's ``hash`` of a text is."""
    return hash("modelcore")
