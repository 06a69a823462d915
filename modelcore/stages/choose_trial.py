"""Stage: the best of a sweep's trials, by what it needs for held-out text."""

from __future__ import annotations

import html
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from modelcore.atomic import atomic_directory, write_text
from modelcore.errors import InputError
from modelcore.evaluation.report import render_page
from modelcore.files import read_json
from modelcore.stages.outputs import Output
from modelcore.stages.pretrain_trial import FAILURE_FILE
from modelcore.stages.stage import Stage, StageSummary
from modelcore.stages.trained import MODEL

GENERATOR = "modelcore-sweep"
PAGE = Output("report of a sweep", mark=GENERATOR)


@dataclass(frozen=True)
class Trial:
    """What came of one trial.

    Attributes:
        name: What it changed.
        bits_per_byte: Of held-out text; infinite where it failed.
        parameters: The model's.
        tokens_per_second: Speed of its training.
        failure: Why there is no model, or empty.
    """

    name: str
    bits_per_byte: float
    parameters: int
    tokens_per_second: float
    failure: str = ""

    @classmethod
    def load(cls, folder: Path) -> Trial:
        """Reads what a trial left.

        Raises:
            InputError: If it is neither a model of pretraining nor a note of failure.
        """
        if (folder / FAILURE_FILE).is_file():
            failed = read_json(folder / FAILURE_FILE)
            return cls(failed["trial"], math.inf, 0, 0.0, failed["reason"])
        training = read_json(folder / "training.json")
        totals, name = training["totals"], training["recipe"]["name"]
        bits = float(totals["heldout_bits_per_byte"])
        if not (math.isfinite(bits) and bits > 0):
            return cls(name, math.inf, 0, 0.0, f"{bits} bits per byte is no score")
        return cls(name, bits, int(totals["parameters"]), float(totals["tokens_per_second"]))


def best_trial(trials: Sequence[Trial]) -> int:
    """The place of the best: fewest bits per byte of held-out text; of equals the smallest model, then the first.

    Raises:
        InputError: If none has a model.
    """
    whole = [place for place, trial in enumerate(trials) if not trial.failure]
    if not whole:
        reasons = "; ".join(f"{trial.name}: {trial.failure}" for trial in trials)
        raise InputError(f"every trial of the sweep failed ({reasons or 'there was none'})")
    # Equal to six digits is equal: less is rounding.
    return min(whole, key=lambda place: (round(trials[place].bits_per_byte, 6), trials[place].parameters, place))


def choose_trial(
    *,
    trials: Sequence[Path | str],
    summaries: Sequence[Path | str],
    out: Path | str,
    page: Path | str,
    summary: Path | str,
) -> StageSummary:
    """Takes the best trial's model on.

    Args:
        trials: What the trials wrote.
        summaries: Their summaries, in the same order.
        out: The best model, as its trial wrote it; replaced in one step.
        page: The trials side by side, one HTML page.
        summary: Gets the summary of the best trial, which is one of pretraining.

    Returns:
        The summary of this stage: ``best``, its name, ``trials``, ``failed_trials`` and ``heldout_bits_per_byte``.

    Raises:
        InputError: If no trial has a model.
    """
    out, page = Path(out), Path(page)
    with Stage("choose_trial", {}, outputs={out: MODEL, page: PAGE}) as stage:
        folders = [Path(folder) for folder in trials]
        found = [Trial.load(folder) for folder in folders]
        place = best_trial(found)
        best = found[place]
        write_text(page, _render(found, place))
        with atomic_directory(out) as fresh:
            shutil.copytree(folders[place], fresh, dirs_exist_ok=True)
        StageSummary.load(Path(summaries[place])).save(Path(summary))
        stage.results.update(
            best=best.name,
            trials=len(found),
            failed_trials=sum(1 for trial in found if trial.failure),
            heldout_bits_per_byte=best.bits_per_byte,
        )
        stage.run.set_tags({"best": best.name})
        stage.run.log_path(page, "sweep")
    return stage.summary


def _render(trials: Sequence[Trial], best: int) -> str:
    rows = "".join(
        f"<tr><td>{'<strong>' if place == best else ''}<code>{html.escape(trial.name)}</code>"
        f"{'</strong> (taken on)' if place == best else ''}</td>"
        + (
            f'<td colspan="3">{html.escape(trial.failure)}</td></tr>'
            if trial.failure
            else f'<td class="number">{trial.bits_per_byte:.4f}</td><td class="number">{trial.parameters:,}</td>'
            f'<td class="number">{trial.tokens_per_second:,.0f}</td></tr>'
        )
        for place, trial in sorted(enumerate(trials), key=lambda entry: (entry[1].bits_per_byte, entry[0]))
    )
    table = (
        '<h1>Trials</h1><div class="wide"><table><tr><th>changed</th><th class="number">bits per byte, held out</th>'
        f'<th class="number">parameters</th><th class="number">tokens a second</th></tr>{rows}</table></div>'
    )
    return render_page("Sweep", table, GENERATOR)
