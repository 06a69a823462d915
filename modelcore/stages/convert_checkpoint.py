"""Export: a model, with its adapter merged, as a folder that other programs load."""

from __future__ import annotations

from pathlib import Path

from modelcore.convert import convert
from modelcore.convert.formats import Format
from modelcore.stages.outputs import check_place
from modelcore.stages.stage import Stage, StageSummary

DEFAULT_FORMAT: Format = "huggingface"


def convert_checkpoint(
    *,
    checkpoint: Path | str,
    out: Path | str,
    adapter: Path | str | None = None,
    to: Format = DEFAULT_FORMAT,
    summary: Path | None = None,
) -> StageSummary:
    """Converts a model and checks that what was written computes the same.

    Args:
        checkpoint: A native or Hugging Face model folder; which of them is found by looking at it.
        out: The folder to write; replaced when the new one has passed its check.
        adapter: A LoRA adapter of that model, merged into it in fp32; None for the model alone.
        to: The format to write.
        summary: File to write the stage's summary to.

    Returns:
        The summary. ``results``: ``source_format``; ``max_logit_difference`` between source and result, in fp32;
        ``verified_by``; ``files``, their names; ``size_mib``.

    Raises:
        InputError: If an input is damaged, is of no kind that can be converted, or the adapter is another model's.
        ConversionError: If the result does not compute what the source does.
    """
    with Stage("convert_checkpoint", {"to": to}, summary=summary) as stage:
        check_place(Path(out))
        done = convert(Path(checkpoint), Path(out), to, adapter=Path(adapter) if adapter is not None else None)
        stage.results.update(
            source_format=done.source_format,
            max_logit_difference=done.max_logit_difference,
            verified_by=done.verified_by,
            files=", ".join(done.files),
            size_mib=round(done.size / 2**20, 2),
        )
    return stage.summary
