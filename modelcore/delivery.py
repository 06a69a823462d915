"""Tracking that waits for nobody: calls go to a journal on disk, and one thread delivers them to the server.

The thread delivers in order. While the server is away it tries again, ever less often, for as long as the process
lives; what it had no time for stays in the journal, for :func:`deliver_left`. Delivering something again does no harm
(:mod:`modelcore.mlflow_sink` says why), so a call whose answer was lost is simply made again.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import shutil
import threading
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias

from modelcore import journal as journals
from modelcore import tracking
from modelcore.errors import InputError, first_line, without_password
from modelcore.journal import Entry, Journal
from modelcore.system_metrics import SystemMetrics

logger = logging.getLogger(__name__)

FOLDER = ".tracking"
"""The journal's folder in a run's folder; in a cluster's pod, in the folder of what the stage made."""

START_SECONDS = 5.0  # a run begins buffered when the server has not answered by then
END_SECONDS = 30.0  # what waits when a run is complete has so long to be delivered
STOP_SECONDS = 3.0  # and so long when it failed or was interrupted
FIRST_DELAY, LONGEST_DELAY = 0.5, 15.0  # seconds between attempts, doubled from one to the other
_MOST_ENTRIES, _MOST_METRICS = 500, 1000  # delivered in one request
_POD = "KFP_POD_NAME"  # KFP names a pod to what runs in it

Sink: TypeAlias = Callable[[list[Entry], str | None, Journal], str]
"""Makes the calls of entries of one run, given the server's id of it and the journal; returns that id."""


class UndeliveredError(Exception):
    """What a :data:`Sink` raises.

    Args:
        reason: Why, in one line.
        kind: ``away``: the server cannot be reached, or cannot do it now. ``denied``: there is no use asking before
            something is mended, a password or an address. ``refused``: the server does not take this call.
    """

    def __init__(self, reason: str, kind: Literal["away", "denied", "refused"]) -> None:
        super().__init__(reason)
        self.reason, self.kind = reason, kind


class Sender:
    """The thread that delivers a journal.

    Args:
        journal: What to deliver; closed by the thread when it ends.
        sink: Where to.

    Attributes:
        trouble: Why nothing can be delivered at the moment, or None.
        refused: How many calls the server did not take, and were left out.
    """

    def __init__(self, journal: Journal, sink: Sink) -> None:
        self.journal = journal
        self.trouble: UndeliveredError | None = None
        self.refused = 0
        self._sink = sink
        self._changed = threading.Condition()
        self._reached = self._hurry = self._closing = False
        self._thread = threading.Thread(target=self._deliver, name="tracking", daemon=True)
        self._thread.start()

    def append(self, run: str, method: str, arguments: Mapping[str, Any]) -> int:
        """Has a call made; returns its number in the journal, at once."""
        n = self.journal.append(run, method, arguments)
        with self._changed:
            self._changed.notify_all()
        return n

    def wait(self, n: int, seconds: float | None, *, through_trouble: bool = True) -> bool:
        """Waits until entry ``n`` is delivered; returns whether it is.

        Args:
            n: The entry.
            seconds: At most so long; None: without end.
            through_trouble: Whether to wait on where the server is away, of which it is asked once more at once.
        """

        def over() -> bool:
            kind = None if self.trouble is None else self.trouble.kind
            return self.journal.delivered >= n or (kind is not None and (not through_trouble or kind == "denied"))

        with self._changed:
            self._hurry = through_trouble
            self._changed.notify_all()
            self._changed.wait_for(over, seconds)
        return self.journal.delivered >= n

    def close(self) -> None:
        """Has the thread end, and close the journal, as soon as a request that is under way is over."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(STOP_SECONDS)

    def _deliver(self) -> None:
        delay, most = FIRST_DELAY, _MOST_ENTRIES
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closing or self.journal.waiting)
                if self._closing:
                    break
            try:
                entries = _together(self.journal.next(most))
                first, run_id = entries[0], self.journal.run_ids.get(entries[0].run)
                run_id = self._sink(entries, run_id, self.journal)
            except UndeliveredError as error:
                if error.kind == "refused" and len(entries) > 1:
                    most = 1  # to find out which of them
                elif error.kind == "refused" and first.method != "begin":
                    logger.warning("MLflow refuses %s, which is left out: %s", first.method, error.reason)
                    self.refused += 1
                    self._delivered(entries, None)
                else:
                    self._wait_for_better(error, delay)
                    delay = min(2 * delay, LONGEST_DELAY)
                continue
            except Exception as error:  # a disk that fails, arguments that nobody wrote: who waits must hear of it
                reason = f"the journal {self.journal.folder} cannot be delivered: {first_line(error)}"
                self._wait_for_better(UndeliveredError(reason, "denied"), LONGEST_DELAY)
                continue
            self._delivered(entries, run_id if first.method == "begin" else None)
            delay, most = FIRST_DELAY, _MOST_ENTRIES
        self.journal.close()

    def _delivered(self, entries: list[Entry], run_id: str | None) -> None:
        self.journal.mark(entries, run_id)
        with self._changed:
            if self.trouble is not None:
                logger.info("MLflow answers again; %d tracked calls are being delivered", self.journal.waiting)
            self.trouble, self._reached = None, True
            self._changed.notify_all()

    def _wait_for_better(self, error: UndeliveredError, delay: float) -> None:
        with contextlib.suppress(OSError):
            self.journal.sync()  # it holds the only copy for a while
        with self._changed:
            if self.trouble is None and (error.kind == "away" or self._reached):  # else it is an error of who began
                logger.warning(
                    "%s; what is tracked is kept in %s until it can be delivered", error.reason, self.journal.folder
                )
            self.trouble = error
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._closing or self._hurry, delay)
            self._hurry = False


class JournaledRun(tracking.Run):
    """A run whose calls go to a journal; none waits for the server.

    Args:
        sender: Delivers the journal.
        plan: What the run is.
        own: Whether the journal is this run's alone, and closed with it.
        output: What a stage with a journal of its own writes, if anything.
    """

    def __init__(self, sender: Sender, plan: tracking.Plan, *, own: bool = False, output: Path | None = None) -> None:
        self._sender, self._own, self._output = sender, own, output
        self._run, self._owned = uuid.uuid4().hex, plan.run_id is None
        self._began = self._tell("begin", **plan.arguments())
        self._monitor: SystemMetrics | None = SystemMetrics(self)

    @property
    def run_id(self) -> str | None:  # type: ignore[override]
        """The server's id of the run; None as long as it is not known."""
        return self._sender.journal.run_ids.get(self._run)

    def known_id(self, patience: float) -> str | None:
        """The server's id of the run, waited for at most ``patience`` seconds; None if it is not known then."""
        self._sender.wait(self._began, patience)
        return self.run_id

    def start_stage(self, name: str) -> tracking.Run:
        """The run of a stage, in the same journal."""
        return JournaledRun(self._sender, tracking.Plan.of_stage(name))

    def log_params(self, values: Mapping[str, Any]) -> None:
        """Logs what the run was asked to do; a parameter logged before keeps its value."""
        if values:
            self._tell("log_params", values={key: str(value) for key, value in values.items()})

    def log_metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Logs figures, each finite one, at ``step`` of their curve."""
        finite = {key: float(value) for key, value in values.items() if math.isfinite(value)}
        if finite:
            self._tell("log_metrics", values=finite, step=step)

    def set_tags(self, values: Mapping[str, str]) -> None:
        """Sets tags."""
        self._tell("set_tags", values=dict(values))

    def log_text(self, text: str, file: str) -> None:
        """Stores ``text`` as the artifact ``file``."""
        self._tell("log_text", text=text, file=file)

    def log_chart(self, file: str, chart: tracking.Chart, *columns: tracking.Columns) -> None:
        """Draws a picture and stores it as the artifact ``file``; arguments as in :meth:`Run.log_chart`."""
        self._tell("log_chart", file=file, chart=chart, columns=[dict(column) for column in columns])

    def log_path(self, path: Path, folder: str | None = None) -> None:
        """Stores a file, or a folder's content as it is now, under the artifact folder ``folder``."""
        self._tell("log_path", path=self._sender.journal.keep(Path(path)), folder=folder)

    def log_dataset(self, *, name: str, source: str, digest: str, rows: int, context: str) -> None:
        """Records that the run read a data set; arguments as in :meth:`Run.log_dataset`."""
        self._tell("log_dataset", name=name, source=source, digest=digest, rows=rows, context=context)

    def end(self, failure: str | None = None) -> None:
        """Ends the run; one with a journal of its own gives it a while to be delivered."""
        if self._monitor is not None:
            self._monitor.finish()
            self._monitor = None
        self._tell("end", failure=failure, owned=self._owned)
        if self._own:
            self.deliver(complete=failure is None)

    def deliver(self, complete: bool) -> None:
        """Gives the journal a while to be delivered, and closes it; says what to do with what is left."""
        sender, journal = self._sender, self._sender.journal
        seconds = END_SECONDS if complete else STOP_SECONDS
        try:
            if not sender.wait(journal.last, min(1.0, seconds)):
                logger.info(
                    "%d tracked calls wait for %s, for at most %.0f s more",
                    journal.waiting,
                    journal.tracking_uri,
                    seconds,
                )
                sender.wait(journal.last, seconds)
        finally:
            sender.close()
            if journal.waiting:
                logger.warning("%s", self._left(journal))

    def _left(self, journal: Journal) -> str:
        place = journal.folder
        if self._output is not None and self._output.is_dir() and _POD in os.environ:
            place = Path(shutil.move(place, self._output / FOLDER))  # beside it, it would go with the pod
        trouble = self._sender.trouble
        reason = f"{journal.tracking_uri} is too slow" if trouble is None else trouble.reason
        command = f"modelcore deliver-tracking {place.parent if place.name == FOLDER else place}"
        return f"{reason}; {journal.waiting} tracked calls stay in {place}, deliver them later with: {command}"

    def wait_for_server(self) -> None:
        """Gives the server a moment to take the run.

        Raises:
            InputError: If it answers, and refuses.
        """
        sender, journal = self._sender, self._sender.journal
        if sender.wait(self._began, START_SECONDS, through_trouble=False):
            return
        if sender.trouble is None:
            logger.warning(
                "%s has not answered in %.0f s; what is tracked is kept in %s until it can be delivered",
                *(journal.tracking_uri, START_SECONDS, journal.folder),
            )
        elif sender.trouble.kind != "away":
            reason, earlier = sender.trouble.reason, self._began > 1
            if self._monitor is not None:
                self._monitor.finish()
            if earlier:  # then it is told there that this one could not begin
                self._tell("end", failure=reason, owned=self._owned)
            sender.close()
            if not earlier:
                journal.discard()
            else:
                kept = f"{journal.waiting} tracked calls, of earlier starts too, wait in {journal.folder}"
                reason = f"{reason}; {kept}, which may be deleted"
            raise InputError(reason) from sender.trouble

    def _tell(self, method: str, **arguments: Any) -> int:
        return self._sender.append(self._run, method, arguments)


def start(plan: tracking.Plan, folder: Path, *, own: bool, output: Path | None = None) -> JournaledRun:
    """The first run of a journal in ``folder``; what an earlier process left there is delivered before it.

    Args:
        plan: What the run is.
        folder: Where the journal is, or will be.
        own: Whether the journal is this run's alone.
        output: What a stage with a journal of its own writes, if anything.

    Raises:
        InputError: If the server refuses the run, or another process has the journal.
    """
    from modelcore import mlflow_sink

    mlflow_sink.make_ready()
    journal = Journal(folder, os.environ["MLFLOW_TRACKING_URI"])
    run = JournaledRun(Sender(journal, mlflow_sink.deliver), plan, own=own, output=output)
    run.wait_for_server()
    return run


def deliver_left(place: Path) -> tuple[int, int]:
    """Delivers what a process left, to ``MLFLOW_TRACKING_URI``; where that is not set, to where it was meant for.

    Args:
        place: The run's folder, a stage's output, or the journal's folder.

    Returns:
        The number of tracked calls delivered, and of those that the server refused and that were left out.

    Raises:
        InputError: If nothing is left there, another process has it, or the server cannot take it: it is away, or
            knows nothing of the run.
    """
    place = Path(os.path.realpath(place))
    places = (place / FOLDER, place.parent / f".{place.name}.tracking")
    folder = next((folder for folder in places if journals.exists(folder)), place)
    journal = Journal(folder)
    os.environ.setdefault("MLFLOW_TRACKING_URI", journal.tracking_uri)
    return _deliver_all(journal, None)


def deliver_earlier(runs: Path) -> None:
    """Delivers what earlier runs below the folder ``runs`` left for the server that is tracked to now, if it can be."""
    here = without_password(os.environ.get("MLFLOW_TRACKING_URI", ""))
    for folder in sorted(runs.glob(f"*/{FOLDER}")):
        try:
            journal = Journal(folder)
            if journal.tracking_uri != here:
                journal.close()
                continue
            delivered, refused = _deliver_all(journal, END_SECONDS)
            logger.info(
                "%d tracked calls of the earlier run %s were delivered, %d refused",
                *(delivered, folder.parent.name, refused),
            )
        except journals.InUseError:  # that of a run which is under way, this one among them
            continue
        except InputError as error:  # damaged, of a run that was deleted: nothing that keeps a new run waiting
            logger.warning("what the earlier run %s tracked was not delivered: %s", folder.parent.name, error)


def _deliver_all(journal: Journal, seconds: float | None) -> tuple[int, int]:
    from modelcore import mlflow_sink

    mlflow_sink.make_ready()
    left, sender = journal.waiting, Sender(journal, mlflow_sink.deliver)
    try:
        sender.wait(journal.last, seconds, through_trouble=False)
    finally:
        sender.close()
    if journal.waiting:
        reason = sender.trouble.reason if sender.trouble is not None else f"{journal.tracking_uri} is too slow"
        raise InputError(f"{reason}; {journal.waiting} tracked calls stay in {journal.folder}")
    return left - sender.refused, sender.refused


def _together(entries: list[Entry]) -> list[Entry]:
    """The first entries that go into one request: metrics of one run, or a single entry."""
    metrics = 0
    for index, entry in enumerate(entries):
        metrics += len(entry.arguments.get("values", ()))
        alike = entry.method == "log_metrics" and entry.run == entries[0].run and metrics <= _MOST_METRICS
        if index and not alike:
            return entries[:index]
        if entry.method != "log_metrics":
            return entries[:1]
    return entries
