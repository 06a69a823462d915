"""Stage: one page that tells the whole run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from modelcore.atomic import write_text
from modelcore.evaluation.report import GENERATOR, render_report
from modelcore.stages.outputs import Output
from modelcore.stages.stage import Stage, StageSummary

PAGE = Output("report", mark=GENERATOR)


def write_report(
    *,
    summaries: Sequence[Path | str],
    out: Path | str,
    run_folder: str = "",
    summary: Path | str | None = None,
) -> StageSummary:
    """Draws the stages' summaries as one self-contained HTML page.

    Args:
        summaries: The stages' summary files, in the order in which they ran.
        out: The page to write.
        run_folder: Folder in which the run's outputs are collected, named on the page; empty where there is none.
        summary: JSON file for this stage's own summary, or None.
    """
    with Stage("write_report", {}, outputs={Path(out): PAGE}, summary=summary) as stage:
        stages = [StageSummary.load(Path(path)) for path in summaries]
        write_text(Path(out), render_report(stages, run_folder=run_folder))
        stage.results["stages"] = len(stages)
        stage.run.log_path(Path(out), "report")
    return stage.summary
