"""Runs a family's stages on a little text inside its image, while that is built: ``python smoke.py FAMILY``.

It proves that the image holds what its stages need. And Python leaves, beside each module that they import, its
compiled form, which spares a stage most of its time to start; those of all other modules would only make the image
larger.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import pydoc_data.topics
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

ABSENT = {
    "data": ("torch", "transformers", "pip"),
    "model": ("great_expectations", "pip"),
    "spark": ("torch", "transformers", "pip"),
    "launcher": ("torch", "pandas", "mlflow", "pip"),
}


def run_data_stages(here: Path, engine: Any = "local", **filters: Any) -> None:
    """Validates a corpus, trains a tokenizer on it, and tokenizes it."""
    from modelcore.stages.validate_data import validate_data

    validate_data(
        corpus=str(here / "corpus.txt"),
        train_out=here / "train",
        heldout_out=here / "heldout",
        quarantine_out=here / "quarantine",
        docs_out=here / "docs",
        engine=engine,
        **filters,
        summary=here / "validate_data.json",
    )
    tokenize(here, here / "train", here / "heldout", engine)


def run_spark_stages(here: Path) -> None:
    """The same on Spark."""
    run_data_stages(here, "spark", languages="en", near_duplicates=0.8)


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


def run_launcher_stages(here: Path) -> None:
    """Asks for jobs, up to the line that says that there is no cluster here."""
    from modelcore.errors import InputError
    from modelcore.stages.finetune_lora_distributed import finetune_lora_distributed
    from modelcore.stages.pretrain_distributed import pretrain_distributed
    from modelcore.stages.text_on_spark import tokenize_corpus_spark

    lora: dict[str, Any] = {"rank": 8, "alpha": 16.0, "quantize": "none", "steps": 2, "learning_rate": 1e-3}
    pretrain = partial(pretrain_distributed, tokens=here, out=here / "model", preset="gpt2-small")
    tune = partial(finetune_lora_distributed, checkpoint=here, instructions=here, out=here / "adapter", **lora)
    tokens = partial(tokenize_corpus_spark, corpus=here, heldout=here, tokenizer=here, out=here / "tokens", image="any")
    for ask in (pretrain, tune, tokens):
        try:
            ask()
        except InputError as error:
            if "there is no Kubernetes cluster" not in str(error):
                raise


def tokenize(here: Path, corpus: Path, heldout: Path, engine: Any = "local") -> None:
    """Trains a tokenizer and writes the tokens."""
    from modelcore.stages.tokenize_corpus import tokenize_corpus
    from modelcore.stages.train_tokenizer import train_tokenizer

    train_tokenizer(corpus=corpus, out=here / "tokenizer", vocab_size=400)
    inputs = {"corpus": corpus, "heldout": heldout, "tokenizer": here / "tokenizer"}
    tokenize_corpus(**inputs, out=here / "tokens", engine=engine)


def load_what_stages_need(here: Path) -> None:
    """Loads what tracking and storage import when they are used."""
    import boto3
    from mlflow.tracking import MlflowClient

    from modelcore import charts

    MlflowClient("http://127.0.0.1:1")
    boto3.client("s3", region_name="us-east-1", aws_access_key_id="none", aws_secret_access_key="none")  # noqa: S106
    charts.token_lengths({"length": [1, 2], "count": [3, 4]}).savefig(here / "picture.png")


def main(family: str) -> None:
    """Runs the stages of ``family``, one of :data:`ABSENT`, in a temporary folder.

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
        run = {"data": run_data_stages, "spark": run_spark_stages}
        run |= {"model": run_model_stages, "launcher": run_launcher_stages}
        run[family](here)
        importlib.import_module("kfp.dsl.executor_main")  # what KFP starts in every component
        if family != "launcher":
            load_what_stages_need(here)


if __name__ == "__main__":
    main(sys.argv[1])
