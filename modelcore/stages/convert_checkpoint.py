"""Export: a model, with its adapter merged, as a folder that other programs load."""

from __future__ import annotations

from pathlib import Path

from modelcore import storage
from modelcore.convert import Format, convert
from modelcore.convert.gguf import DType
from modelcore.errors import InputError
from modelcore.stages.outputs import check_place
from modelcore.stages.stage import Stage, StageSummary
from modelcore.stages.work import downloads
from modelcore.training.checkpoint_list import checkpoint_names
from modelcore.training.mirror import pull_checkpoint

DEFAULT_FORMAT: Format = "huggingface"


def convert_checkpoint(
    *,
    checkpoint: Path | str,
    out: Path | str,
    adapter: Path | str | None = None,
    base: Path | str | None = None,
    to: Format = DEFAULT_FORMAT,
    dtype: DType | None = None,
    summary: Path | str | None = None,
) -> StageSummary:
    """Converts a model and checks that what was written computes the same.

    Args:
        checkpoint: A native or Hugging Face model folder, a checkpoint of pretraining (a folder ``step-…``, sharded or
            not), or the folder that holds a run's, of which the newest complete one is taken; or for ``peft`` an
            adapter. Which of them is found by looking at it. Or the ``s3://`` address of one.
        out: The folder to write, or for ``gguf`` the file; replaced when the new one has passed its check.
        adapter: A LoRA adapter of that model, merged into it in fp32; None for the model alone.
        base: For ``peft`` alone: the model that the adapter was trained on.
        to: The format to write.
        dtype: For ``gguf`` alone: ``f32``, ``f16``, ``bf16`` or ``q8_0``; None: what the weights are.
        summary: JSON file for the stage's summary, or None.

    Returns:
        The summary. ``results``: ``source_format``; ``max_logit_difference`` between source and result, in fp32;
        ``verified_by``; ``files``, their names; ``size_mib``.

    Raises:
        InputError: If an input is damaged, is of no kind that can be converted, or the adapter is another model's.
        ConversionError: If the result does not compute what the source does.
    """
    with (
        Stage("convert_checkpoint", {"to": to, "dtype": dtype or "as stored"}, summary=summary) as stage,
        downloads(Path(out)) as folder,
    ):
        check_place(Path(out))
        done = convert(
            _fetched(checkpoint, folder / "checkpoint"),
            Path(out),
            to,
            adapter=Path(adapter) if adapter is not None else None,
            base=Path(base) if base is not None else None,
            dtype=dtype,
        )
        stage.results.update(
            source_format=done.source_format,
            max_logit_difference=done.max_logit_difference,
            verified_by=done.verified_by,
            files=", ".join(done.files),
            size_mib=round(done.size / 2**20, 2),
        )
    return stage.summary


def _fetched(source: Path | str, into: Path) -> Path:
    """A local path with the content of ``source``; of a run's checkpoints on S3 only those that are needed."""
    if not storage.is_remote(source) or not checkpoint_names(source):
        return storage.localize(source, into)
    pull_checkpoint(str(source), into)
    if not into.is_dir():
        raise InputError(f"no checkpoint in {source} is complete; give another place, or a folder step-… of it")
    return into
