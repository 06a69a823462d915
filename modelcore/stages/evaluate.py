"""Stage: how well the model predicts text it has never seen, and what it says."""

from __future__ import annotations

import dataclasses
import hashlib
import tempfile
from collections.abc import Iterable
from pathlib import Path

from modelcore.atomic import atomic_directory, write_json, write_text
from modelcore.data.instructions import heldout_conversations
from modelcore.data.shards import TokenSplit, open_split
from modelcore.data.sources import read_texts
from modelcore.errors import InputError
from modelcore.evaluation.compressors import OPTIONS, compressed_bits_per_byte
from modelcore.evaluation.device import evaluation_device
from modelcore.evaluation.perplexity import evaluate_split
from modelcore.evaluation.samples import as_markdown, draw_samples, prompts_of_conversations, prompts_of_texts
from modelcore.evaluation.tasks import ITEMS, run_tasks, write_tasks
from modelcore.inference import TextGenerator
from modelcore.stages.check_drift import REFERENCE, write_reference
from modelcore.stages.outputs import Output
from modelcore.stages.stage import Scalar, Stage, StageSummary
from modelcore.storage import localize

FILE = "evaluation.json"
SAMPLES_FILE = "samples.md"
TASKS_FOLDER = "tasks"
EVALUATION = Output("evaluation", FILE, 'bits_per_byte"', (SAMPLES_FILE, TASKS_FOLDER, REFERENCE))


def evaluate(
    *,
    checkpoint: Path | str,
    export: Path | str,
    tokens: Path | str,
    heldout: Path | str,
    out: Path | str,
    instructions: Path | str = "",
    seed: int = 0,
    task_items: int = ITEMS,
    summary: Path | str | None = None,
) -> StageSummary:
    """Measures the exported model, as it will be shipped, and the pretrained one before it, on held-out text.

    Args:
        checkpoint: Native folder of the pretrained model.
        export: Folder of the tuned and exported model; its figures are the ones without a prefix.
        tokens: Token folder whose held-out split is predicted.
        heldout: The text of that split, for the compressors and for the digest.
        out: Folder to write ``evaluation.json``, ``samples.md``, ``tasks/`` and ``reference/`` (what check_drift
            wants to know of the text trained on) to; replaced in one step.
        instructions: The conversations that the model was tuned on, a .jsonl file at a path or s3:// address. The
            samples' prompts are taken from those that it did not learn from. "": from the held-out text.
        seed: Of the samples.
        task_items: Most items of each task made from the held-out text; 0 leaves the tasks, and with them lm-eval, out.
        summary: JSON file for the stage's summary, or None.

    Returns:
        The summary: ``bits_per_byte``, ``perplexity``, ``token_accuracy``, ``expected_calibration_error``, and for each
        task that the text is long enough for ``last_word_accuracy``, ``last_word_standard_error`` and
        ``last_word_items``, ``multiple_choice_accuracy`` and so on (the export's); the same with the prefix
        ``pretrained_``; ``gzip_bits_per_byte`` and the same of ``bzip2`` and ``xz``; ``heldout_bytes``,
        ``heldout_tokens`` and ``heldout_digest`` (SHA-256 of the text); ``samples``, each with prompt, before and
        after. The series ``bits_per_byte`` has the models beside the compressors, ``reliability`` and
        ``pretrained_reliability`` what a reliability diagram shows.

    Raises:
        InputError: If an input is missing or damaged, or text, tokens and models do not belong together.
    """
    checkpoint, export, tokens, heldout, out = map(Path, (checkpoint, export, tokens, heldout, out))
    instructions = str(instructions)
    parameters: dict[str, Scalar] = {"instructions": instructions, "seed": seed, "task_items": task_items}
    with Stage("evaluate", parameters, outputs={out: EVALUATION}, summary=summary) as stage:
        before, after = TextGenerator.load(checkpoint), TextGenerator.load(export)
        models = {"pretrained_": before, "": after}  # by the prefix of their results
        for model in models.values():
            model.model.to(evaluation_device())
            split = open_split(tokens, "heldout", model.tokenizer.digest)
        prompts = _prompts(instructions, heldout, before)
        digest, n_bytes = _digest(read_texts(heldout))
        if n_bytes != split.n_bytes:
            raise InputError(
                f"the held-out text in {heldout} has {n_bytes:,} bytes, the tokens in {tokens} stand for "
                f"{split.n_bytes:,}; give the text that they were made from"
            )
        stage.run.log_dataset(
            name="heldout", source=str(heldout), digest=digest, rows=split.n_documents, context="evaluation"
        )
        with atomic_directory(out) as fresh:
            asked = write_tasks(fresh / TASKS_FOLDER, read_texts(heldout), items=task_items) if task_items else {}
            for prefix, model in models.items():
                _measure(stage, prefix, model, split)
                for name, score in (run_tasks(model, fresh / TASKS_FOLDER, asked) if asked else {}).items():
                    stage.results[f"{prefix}{name}_accuracy"] = score.accuracy
                    stage.results[f"{prefix}{name}_standard_error"] = score.standard_error
            stage.results.update({f"{name}_items": items for name, items in asked.items()})
            _compress(stage, heldout)
            stage.results.update(heldout_bytes=n_bytes, heldout_tokens=split.n_tokens, heldout_digest=digest)
            samples = draw_samples(before, after, prompts, seed=seed)
            stage.results["samples"] = [dataclasses.asdict(sample) for sample in samples]
            write_json(fresh / FILE, stage.results)
            write_text(fresh / SAMPLES_FILE, as_markdown(samples))
            (fresh / REFERENCE).mkdir()
            write_reference(fresh / REFERENCE, tokens)
        stage.run.log_path(out, "evaluation")
        stage.run.log_chart("bits_per_byte.png", "bits_per_byte", stage.series["bits_per_byte"])
        stage.run.log_chart(
            "reliability.png", "reliability", stage.series["reliability"], stage.series["pretrained_reliability"]
        )
    return stage.summary


def _prompts(instructions: str, heldout: Path, pretrained: TextGenerator) -> list[str]:
    """What the models are asked: in the language and manner of what they were tuned on."""
    if not instructions:
        return prompts_of_texts(read_texts(heldout))
    with tempfile.TemporaryDirectory() as scratch:
        file = localize(instructions, Path(scratch) / "instructions")
        context = pretrained.model.config.context_length
        return prompts_of_conversations(heldout_conversations(file, pretrained.tokenizer, context))


def _measure(stage: Stage, prefix: str, model: TextGenerator, split: TokenSplit) -> None:
    """How well a model predicts the split; ``prefix`` tells whose figures these are."""
    score = evaluate_split(model.model, split, name=f"evaluate {'pretrained' if prefix else 'tuned'}")
    stage.results[f"{prefix}bits_per_byte"] = score.bits_per_byte
    stage.results[f"{prefix}perplexity"] = score.perplexity
    stage.results[f"{prefix}token_accuracy"] = score.token_accuracy
    stage.results[f"{prefix}expected_calibration_error"] = score.calibration.expected_error
    stage.series[f"{prefix}reliability"] = score.calibration.columns()


def _compress(stage: Stage, heldout: Path) -> None:
    """What compressors make of the text, and the models beside them."""
    compressed = compressed_bits_per_byte(read_texts(heldout))
    stage.results.update({f"{name}_bits_per_byte": bits for name, bits in compressed.items()})
    stage.series["bits_per_byte"] = {
        "name": ["tuned model", "pretrained model", *(f"{name} {option}" for name, option in OPTIONS.items())],
        "bits_per_byte": [
            stage.results["bits_per_byte"],
            stage.results["pretrained_bits_per_byte"],
            *(compressed[name] for name in OPTIONS),
        ],
        "is_model": [True, True, *(False for _ in OPTIONS)],
    }


def _digest(texts: Iterable[str]) -> tuple[str, int]:
    """SHA-256 of the texts with a NUL, which no text holds, after each; and their size in bytes of UTF-8."""
    digest, n_bytes = hashlib.sha256(), 0
    for text in texts:
        content = text.encode()
        digest.update(content + b"\0")
        n_bytes += len(content)
    return digest.hexdigest(), n_bytes
