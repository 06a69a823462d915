"""The tasks made from the held-out text, as files that lm-eval runs, and their results for a model of ours.

A task is a ``.jsonl`` file of items and a ``.yaml`` file that tells lm-eval how to ask them. The one names the other
by its name alone, so lm-eval's own command line runs them in their folder::

    lm-eval run --model hf --model_args pretrained=EXPORT --tasks last_word.yaml

Nothing here asks the network for anything.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import logging
import os
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from modelcore.atomic import write_text
from modelcore.errors import InputError
from modelcore.evaluation.passages import LastWord, MultipleChoice, make_tasks
from modelcore.loading import loading

if TYPE_CHECKING:
    from modelcore.inference import TextGenerator

logger = logging.getLogger(__name__)

ITEMS = 200
"""Most items of a task. An accuracy of 0.3 measured on so many has a standard error of 0.03."""

SEED = 0
"""Of the passages drawn. It is not a run's seed: all models are asked the same of a text, so that they compare."""

MIN_ITEMS = 10
"""A text that yields fewer is too short for the task."""

LAST_WORD, MULTIPLE_CHOICE = "last_word", "multiple_choice"

_CONFIGS: dict[str, dict[str, Any]] = {
    LAST_WORD: {"output_type": "loglikelihood", "doc_to_target": "last_word"},
    MULTIPLE_CHOICE: {"output_type": "multiple_choice", "doc_to_choice": "choices", "doc_to_target": "answer"},
}
_METRICS = {LAST_WORD: "acc", MULTIPLE_CHOICE: "acc_norm"}
"""What counts as right: each token of the word is the likeliest one; the choice is the likeliest one by character, for
the choices differ in length."""


@dataclass(frozen=True)
class TaskScore:
    """How a model did in a task.

    Attributes:
        accuracy: Share of the items that it had right.
        standard_error: Of that share, as an estimate of the share of all such items.
        items: Number of items.
    """

    accuracy: float
    standard_error: float
    items: int


def write_tasks(folder: Path, texts: Iterable[str], *, items: int = ITEMS, seed: int = SEED) -> dict[str, int]:
    """Makes both tasks from a text and writes them to ``folder``; a task that the text is too short for is left out.

    Args:
        folder: Where the files go; made if it is missing.
        texts: The held-out documents.
        items: Most items of a task.
        seed: Of the passages drawn.

    Returns:
        The number of items by task, for those that were written.

    Raises:
        InputError: If ``items`` is below MIN_ITEMS.
    """
    if items < MIN_ITEMS:
        raise InputError(f"{items} items are too few for a task; take {MIN_ITEMS} or more")
    last_words, multiple_choice = make_tasks(texts, items=items, seed=seed)
    made: dict[str, Sequence[LastWord | MultipleChoice]] = {LAST_WORD: last_words, MULTIPLE_CHOICE: multiple_choice}
    for name, rows in made.items():
        if len(rows) >= MIN_ITEMS:
            lines = (json.dumps(dataclasses.asdict(row), ensure_ascii=False) + "\n" for row in rows)
            write_text(folder / f"{name}.jsonl", "".join(lines))
            config = _config(name, {"data_files": {"test": f"{name}.jsonl"}})
            write_text(folder / f"{name}.yaml", yaml.safe_dump(config, sort_keys=False))
        else:
            logger.warning(
                "task=%s passages=%d wanted=%d: the held-out text is too short for this task, which is left out",
                name,
                len(rows),
                MIN_ITEMS,
            )
    return {name: len(rows) for name, rows in made.items() if len(rows) >= MIN_ITEMS}


def _config(name: str, data: dict[str, Any]) -> dict[str, Any]:
    """The task as lm-eval wants it told; ``data`` is what Hugging Face's datasets loads it with."""
    return {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": data,
        "test_split": "test",
        "doc_to_text": "passage",
        "target_delimiter": "",  # the answers begin with the text's own space
        "metric_list": [{"metric": _METRICS[name], "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 1.0},
    } | _CONFIGS[name]


def run_tasks(generator: TextGenerator, folder: Path, names: Iterable[str]) -> dict[str, TaskScore]:
    """Puts tasks to a model through lm-eval.

    Args:
        generator: The model with its tokenizer.
        folder: Where :func:`write_tasks` wrote them.
        names: The tasks, of those that it wrote.

    Returns:
        The score by task.
    """
    # Read by the libraries when they are imported: without it, datasets tells the hub of every load.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
    with loading():
        import lm_eval
        from lm_eval.tasks import TaskManager

        from modelcore.evaluation.harness import HarnessModel

    with tempfile.TemporaryDirectory() as cache:
        files = {name: {"test": str((folder / f"{name}.jsonl").absolute())} for name in names}
        configs = [_config(name, {"data_files": files[name], "cache_dir": cache}) for name in files]
        with contextlib.redirect_stderr(io.StringIO()):  # the libraries' progress bars
            tasks = TaskManager(include_defaults=False).load(configs)
            # Not simple_evaluate, which also lists the machine's packages and seeds the process: 4 s and a side effect.
            found = lm_eval.evaluate(HarnessModel(generator), tasks, log_samples=False)
    return {
        name: TaskScore(
            figures[f"{_METRICS[name]},none"],
            figures[f"{_METRICS[name]}_stderr,none"],
            found["n-samples"][name]["effective"],
        )
        for name, figures in found["results"].items()
    }
