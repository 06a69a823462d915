"""Runs a family's stages on a little text inside its image, while that is built: ``python smoke.py data|model``.

It proves that the image holds what its stages need. And Python leaves, beside each module that they import, its
compiled form, which spares a stage most of its time to start; those of all other modules would only make the image
larger.
"""

from __future__ import annotations

import importlib.util
import json
import os
import pydoc_data.topics
import sys
import tempfile
from pathlib import Path

ABSENT = {"data": ("torch", "transformers", "pip"), "model": ("great_expectations", "pip")}


def run_data_stages(here: Path) -> None:
    """Validates a corpus, trains a tokenizer on it, and tokenizes it."""
    from modelcore.stages.validate_data import validate_data

    validate_data(
        corpus=str(here / "corpus.txt"),
        train_out=here / "train",
        heldout_out=here / "heldout",
        quarantine_out=here / "quarantine",
        docs_out=here / "docs",
        summary=here / "validate_data.json",
    )
    tokenize(here, here / "train", here / "heldout")


def run_model_stages(here: Path) -> None:
    """Trains a model, tunes, exports and evaluates it, draws the report, and loads what registering needs."""
    from modelcore.data.corpus import CorpusWriter
    from modelcore.stages.convert_checkpoint import convert_checkpoint
    from modelcore.stages.evaluate import evaluate
    from modelcore.stages.finetune_lora import finetune_lora
    from modelcore.stages.pretrain import pretrain
    from modelcore.stages.write_report import write_report

    heldout, instructions = here / "heldout", here / "instructions.jsonl"
    heldout.mkdir()
    with CorpusWriter(heldout) as writer:
        writer.write((here / "corpus.txt").read_text(encoding="utf-8")[:12_000], "corpus.txt", 0)
    pairs = [{"prompt": f"What comes after {number}?", "response": f"It is {number + 1}."} for number in range(20)]
    instructions.write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")

    tokenize(here, here / "corpus.txt", heldout)
    pretrain(tokens=here / "tokens", out=here / "model", steps=2, batch_size=2, sequence_length=64)
    finetune_lora(checkpoint=here / "model", instructions=instructions, out=here / "adapter", rank=2, steps=2)
    convert_checkpoint(checkpoint=here / "model", adapter=here / "adapter", out=here / "export")
    convert_checkpoint(checkpoint=here / "model", out=here / "model.gguf", to="gguf")
    evaluated = here / "evaluate.json"
    evaluate(
        checkpoint=here / "model",
        export=here / "export",
        tokens=here / "tokens",
        heldout=heldout,
        out=here / "evaluation",
        instructions=instructions,
        task_items=20,
        summary=evaluated,
    )
    write_report(summaries=[evaluated], out=here / "index.html")

    import mlflow.transformers  # noqa: F401


def tokenize(here: Path, corpus: Path, heldout: Path) -> None:
    """Trains a tokenizer and writes the tokens."""
    from modelcore.stages.tokenize_corpus import tokenize_corpus
    from modelcore.stages.train_tokenizer import train_tokenizer

    train_tokenizer(corpus=corpus, out=here / "tokenizer", vocab_size=400)
    tokenize_corpus(corpus=corpus, heldout=heldout, tokenizer=here / "tokenizer", out=here / "tokens")


def load_what_all_need(here: Path) -> None:
    """Loads KFP's executor, and what tracking and storage import when they are used."""
    import boto3
    import kfp.dsl.executor_main  # noqa: F401
    from mlflow.tracking import MlflowClient

    from modelcore import charts

    MlflowClient("http://127.0.0.1:1")
    boto3.client("s3", region_name="us-east-1", aws_access_key_id="none", aws_secret_access_key="none")  # noqa: S106
    charts.token_lengths({"length": [1, 2], "count": [3, 4]}).savefig(here / "picture.png")


def main(family: str) -> None:
    """Runs the stages of ``family``, ``data`` or ``model``, in a temporary folder.

    Raises:
        RuntimeError: If the image holds a package that it should not.
    """
    for name in ABSENT[family]:
        if importlib.util.find_spec(name) is not None:
            raise RuntimeError(f"the {family} image should come without {name}")
    os.environ |= {"_KFP_RUNTIME": "true", "HF_HUB_OFFLINE": "1"}  # the former as KFP starts a component
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        # The longest English text in Python's library, each line once: validation refuses what repeats itself.
        lines = dict.fromkeys("\n".join(pydoc_data.topics.topics.values()).splitlines())
        (here / "corpus.txt").write_text("\n".join(lines)[:200_000], encoding="utf-8")
        {"data": run_data_stages, "model": run_model_stages}[family](here)
        load_what_all_need(here)


if __name__ == "__main__":
    main(sys.argv[1])
