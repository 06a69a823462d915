"""What a run was and what came of it: the facts that the page and the terminal's table both show.

They are gathered from the stages' summaries. A summary, a result or a curve that is missing (a stage was left out, or
an older version ran it) leaves its place empty; everything else is shown all the same.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modelcore.evaluation.samples import Sample

if TYPE_CHECKING:
    from modelcore.stages.stage import StageSummary

PLACES = (
    ("report/index.html", "this report, as one page"),
    ("report/data_docs/summary.html", "what was found in the text"),
    ("report/data_docs/index.html", "as Great Expectations' Data Docs (scripts from a CDN)"),
    ("tokenizer/", "the tokenizer"),
    ("tokens/", "the text as token shards"),
    ("checkpoint/", "the pretrained model"),
    ("adapter/", "the LoRA adapter, in PEFT's format"),
    ("export/", "the tuned model, for Hugging Face transformers"),
    ("report/evaluation/", "figures and samples"),
    ("data/quarantine/", "documents set aside, with the reasons"),
)
"""What lies where in a run's folder."""


TASKS = (
    ("last_word", "last word", "", "the word that ends a passage, one that the passage holds before"),
    ("multiple_choice", "multiple choice", "25% by chance", "which of four continuations follows a passage"),
)
"""The tasks by the names of their results, what they are called, what guessing reaches where it reaches much, and what
is asked."""


@dataclass(frozen=True)
class TaskFacts:
    """A task, its number of items, and the share that each model had right, in words, with its standard error."""

    title: str
    chance: str
    asked: str
    items: int
    tuned: str
    pretrained: str


@dataclass(frozen=True)
class Command:
    """Something to go on with."""

    line: str
    purpose: str


class RunFacts:
    """The facts of a run, each empty or None where its stage did not tell it.

    Args:
        stages: The stages' summaries, in the order in which they ran.
        run_folder: Where the outputs are collected; empty where there is no such folder.

    Attributes:
        stages: As given.
        run_folder: As given.
    """

    def __init__(self, stages: Sequence[StageSummary], run_folder: str) -> None:
        self.stages, self.run_folder = stages, run_folder.rstrip("/")
        self._by_name = {summary.stage: summary for summary in stages}

    def result(self, stage: str, key: str) -> Any:
        """A stage's result of that name, or None."""
        summary = self._by_name.get(stage)
        return None if summary is None else summary.results.get(key)

    def series(self, stage: str, key: str) -> dict[str, list[Any]]:
        """A stage's columns of that name; empty if it has none, or no row in them."""
        summary = self._by_name.get(stage)
        columns = {} if summary is None else summary.series.get(key, {})
        return columns if columns and all(columns.values()) else {}

    @property
    def seconds(self) -> float:
        """Sum of the stages' own times; a run takes longer by the time between them."""
        return sum(summary.seconds for summary in self.stages)

    @property
    def work_seconds(self) -> float:
        """Of these, what the stages spent at their own work, not on starting and on loading libraries."""
        return sum(summary.work_seconds for summary in self.stages)

    @property
    def peak_memory_mib(self) -> float:
        """Memory of the stage that took the most."""
        return max((summary.peak_memory_mib for summary in self.stages), default=0.0)

    @property
    def scores(self) -> list[tuple[str, float, bool]]:
        """Bits per byte on the held-out text: name, figure, whether it is a model; the best first."""
        columns = self.series("evaluate", "bits_per_byte")
        if not columns:
            return []
        rows = zip(columns["name"], columns["bits_per_byte"], columns["is_model"], strict=True)
        return sorted(rows, key=lambda row: float(row[1]))

    @property
    def tasks(self) -> list[TaskFacts]:
        """How the models did in the tasks made from the held-out text."""
        tasks = []
        for name, title, chance, asked in TASKS:
            items, tuned, pretrained = (
                self.result("evaluate", f"{name}_items"),
                *(self._share(f"{prefix}{name}") for prefix in ("", "pretrained_")),
            )
            if items is not None and tuned and pretrained:
                tasks.append(TaskFacts(title, chance, asked, items, tuned, pretrained))
        return tasks

    def _share(self, name: str) -> str | None:
        """What a model had right of a task, for people: ``31.5% ± 3.3%``; None if it was not asked.

        Where none or all are right, the estimate of the error is zero, which says nothing; it is left out.
        """
        share, error = (self.result("evaluate", f"{name}_{figure}") for figure in ("accuracy", "standard_error"))
        if share is None or error is None:
            return None
        return f"{share:.1%} ± {error:.1%}" if 0 < share < 1 else f"{share:.0%}"

    @property
    def samples(self) -> list[Sample]:
        """What the model said before and after tuning."""
        return [Sample(**fields) for fields in self.result("evaluate", "samples") or []]

    @property
    def registration(self) -> str | None:
        """The registered version and its aliases, in words."""
        name, version = (self.result("register_model", key) for key in ("model_name", "version"))
        if version is None:
            return None
        aliases = "@candidate and @champion" if self.result("register_model", "champion") else "@candidate"
        return f"{name} version {version}, {aliases}"

    @property
    def decision(self) -> str | None:
        """What the gate decided, and why."""
        decision = self.result("register_model", "decision")
        return None if decision is None else str(decision)

    @property
    def places(self) -> list[tuple[str, str]]:
        """Paths of a run's outputs, as from the working directory, and what each is."""
        return [(f"{self.run_folder}/{path}", what) for path, what in PLACES] if self.run_folder else []

    @property
    def commands(self) -> list[Command]:
        """How to go on."""
        model = f"{self.run_folder}/export" if self.run_folder else "EXPORT"
        prompt = self.samples[0].prompt if self.samples else "YOUR TEXT"
        talk = f".venv/bin/modelcore generate --model {shlex.quote(model)} --chat --prompt {shlex.quote(prompt)}"
        return [
            Command("make mlflow-ui", "compare this run with others, in the browser"),
            Command(talk, "talk to the model"),
        ]


def duration(seconds: float) -> str:
    """A time for people: ``3.4 s``, ``2 min 05 s``, ``1 h 02 min``."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def number(value: object) -> str:
    """A figure for people: four significant digits, thousands set apart; anything else as text."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "" if value is None else str(value)
    return f"{value:,.0f}" if isinstance(value, int) or 10_000 <= abs(value) < 1e15 else f"{value:.4g}"
