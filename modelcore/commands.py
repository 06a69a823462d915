"""The commands of ``modelcore`` and their options: the pipeline's stages, generation, and a check of the machine.

Every stage's module is imported only when its command runs, so ``modelcore generate`` does not wait for
Great Expectations, and a machine without a library can still use what does not need it.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from modelcore import __version__, launch


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="modelcore", description="Train, tune, check, export and run your own small GPT."
    )
    parser.add_argument("--version", action="version", version=f"modelcore {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in (
        _add_validate_data,
        _add_train_tokenizer,
        _add_tokenize,
        _add_pretrain,
        _add_finetune,
        _add_convert,
        _add_evaluate,
        _add_register,
        _add_check_drift,
        _add_deliver_tracking,
        _add_generate,
        _add_doctor,
    ):
        add(commands)
    return parser


Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Tells each option's default, where it has one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


def _add(
    commands: Commands, name: str, run: Callable[[argparse.Namespace], int], description: str
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=description,
        description=description,
        formatter_class=_Help,
    )
    parser.set_defaults(command=run)
    return parser


def _add_validate_data(commands: Commands) -> None:
    def run(options: argparse.Namespace) -> int:
        from modelcore.stages.validate_data import validate_data

        result = validate_data(
            corpus=options.corpus,
            heldout=options.heldout,
            train_out=options.out / "train",
            heldout_out=options.out / "heldout",
            quarantine_out=options.out / "quarantine",
            docs_out=options.out / "data_docs",
            text_field=options.text_field,
            heldout_fraction=options.heldout_fraction,
            max_bad_fraction=options.max_bad_fraction,
            engine=options.engine,
            languages=options.languages,
            quality=options.quality,
            near_duplicates=options.near_duplicates,
        )
        return _done(options.out, result.results)

    parser = _add(commands, "validate-data", run, "Check a corpus and split off the text kept for evaluation.")
    parser.add_argument("corpus", help="file, folder or s3:// prefix of .txt, .jsonl or .parquet, compressed or not")
    parser.add_argument("--out", type=Path, required=True, help="folder for train/, heldout/, quarantine/ and the docs")
    parser.add_argument("--heldout", default="", help="evaluation text; empty: a share of the corpus is split off")
    parser.add_argument("--text-field", default="text", help="field that holds the text in .jsonl and .parquet")
    parser.add_argument("--heldout-fraction", type=float, default=0.05, help="share to split off")
    parser.add_argument("--max-bad-fraction", type=float, default=0.05, help="largest share of bad documents")
    _add_engine(parser)
    parser.add_argument("--languages", default="", help="with spark: languages to keep, such as en,de; empty: all")
    parser.add_argument(
        "--quality", choices=("none", "gopher"), default="none", help="with spark: leave out text that fails such rules"
    )
    parser.add_argument(
        "--near-duplicates", type=float, default=0.0, help="with spark: leave out texts so alike, 0.7 to 1; 0: none"
    )


def _add_train_tokenizer(commands: Commands) -> None:
    def run(options: argparse.Namespace) -> int:
        from modelcore.stages.train_tokenizer import train_tokenizer

        result = train_tokenizer(
            corpus=options.corpus,
            out=options.out,
            vocab_size=options.vocab_size,
            algorithm=options.algorithm,
            seed=options.seed,
            user_symbols=options.user_symbols,
        )
        return _done(options.out, result.results)

    parser = _add(commands, "train-tokenizer", run, "Train a SentencePiece tokenizer.")
    parser.add_argument("corpus", type=Path, help="file or folder of .txt, .jsonl or .parquet")
    parser.add_argument("--out", type=Path, required=True, help="folder for tokenizer.model and its Hugging Face form")
    parser.add_argument("--vocab-size", type=int, default=2048, help="number of tokens")
    parser.add_argument("--algorithm", choices=("unigram", "bpe"), default="unigram", help="SentencePiece's algorithm")
    parser.add_argument("--seed", type=int, default=0, help="seed of the passages drawn from a large corpus")
    parser.add_argument("--user-symbols", default="", help="texts to keep whole as one token each, spaces between")


def _add_tokenize(commands: Commands) -> None:
    def run(options: argparse.Namespace) -> int:
        from modelcore.stages.tokenize_corpus import tokenize_corpus

        result = tokenize_corpus(
            corpus=options.corpus,
            heldout=options.heldout,
            tokenizer=options.tokenizer,
            out=options.out,
            engine=options.engine,
        )
        return _done(options.out, result.results)

    parser = _add(commands, "tokenize", run, "Turn a training and an evaluation corpus into token shards.")
    parser.add_argument("corpus", type=Path, help="text to train on")
    parser.add_argument("--heldout", type=Path, required=True, help="text to evaluate on")
    parser.add_argument(
        "--tokenizer", type=Path, required=True, help="folder of a tokenizer: train-tokenizer's, LLaMA's or GPT-2's"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the shards")
    _add_engine(parser)


def _add_engine(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--engine", choices=("local", "spark"), default="local", help="who does the work; the result is the same"
    )


def _add_pretrain(commands: Commands) -> None:
    def run(options: argparse.Namespace) -> int:
        from modelcore.stages.pretrain import pretrain

        result = pretrain(
            tokens=options.tokens,
            out=options.out,
            preset=options.preset,
            steps=options.steps,
            batch_size=options.batch_size,
            sequence_length=options.sequence_length,
            learning_rate=options.learning_rate,
            optimizer=options.optimizer,
            seed=options.seed,
            parallel=options.parallel,
            shard_size=options.shard_size,
            tensor_parallel=options.tensor_parallel,
            checkpoint_uri=options.checkpoint_uri,
        )
        return _done(options.out, result.results)

    parser = _add(commands, "pretrain", run, "Train a GPT from scratch; run again, it goes on where it stopped.")
    parser.add_argument("--tokens", type=Path, required=True, help="folder of token shards")
    parser.add_argument("--out", type=Path, required=True, help="folder for the model")
    parser.add_argument("--preset", default="llama-nano", help="name of a training recipe, or a YAML file of one")
    parser.add_argument("--steps", type=int, default=0, help="optimizer steps; 0: the recipe's")
    parser.add_argument("--batch-size", type=int, default=0, help="sequences of a step; 0: the recipe's")
    parser.add_argument("--sequence-length", type=int, default=0, help="tokens of a sequence; 0: the recipe's")
    parser.add_argument("--learning-rate", type=float, default=0.0, help="peak learning rate; 0: the recipe's")
    parser.add_argument("--optimizer", choices=("recipe", "adamw", "muon"), default="recipe")
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights and of the order of samples")
    parser.add_argument(
        "--parallel",
        choices=("recipe", "ddp", "fsdp"),
        default="recipe",
        help="under torchrun: each process with the whole model (ddp), or with a shard of it (fsdp)",
    )
    parser.add_argument("--shard-size", type=int, default=0, help="with fsdp, processes a shard is of; 0: the recipe's")
    parser.add_argument(
        "--tensor-parallel", type=int, default=0, help="processes that share each large matrix; 0: the recipe's"
    )
    parser.add_argument(
        "--checkpoint-uri", default="", help="path or s3:// prefix for training checkpoints; empty: beside --out"
    )


def _add_finetune(commands: Commands) -> None:
    def run(options: argparse.Namespace) -> int:
        from modelcore.stages.finetune_lora import finetune_lora

        result = finetune_lora(
            checkpoint=options.checkpoint,
            instructions=options.instructions,
            out=options.out,
            rank=options.rank,
            alpha=options.alpha,
            dropout=options.dropout,
            target_modules=options.target_modules,
            rslora=options.rslora,
            dora=options.dora,
            quantize=options.quantize,
            steps=options.steps,
            batch_size=options.batch_size,
            micro_batch_size=options.micro_batch_size,
            learning_rate=options.learning_rate,
            seed=options.seed,
        )
        return _done(options.out, result.results)

    parser = _add(commands, "finetune", run, "Tune a LoRA adapter on conversations, or pairs of prompt and response.")
    parser.add_argument("--checkpoint", type=Path, required=True, help="folder of the pretrained model")
    parser.add_argument(
        "--instructions", required=True, help=".jsonl file; each line has messages, or prompt and response"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the adapter, in PEFT's format")
    parser.add_argument("--rank", type=int, default=8, help="rank of the adapter's matrices")
    parser.add_argument("--alpha", type=float, default=16.0, help="the update is multiplied by alpha / rank")
    parser.add_argument("--dropout", type=float, default=0.0, help="share of the update's inputs dropped in training")
    parser.add_argument(
        "--target-modules", default="", help="layers to adapt, such as q_proj,v_proj; empty: every linear one"
    )
    parser.add_argument("--rslora", action="store_true", help="multiply by alpha / sqrt(rank) instead (rsLoRA)")
    parser.add_argument("--dora", action="store_true", help="learn lengths of rows apart from directions (DoRA)")
    parser.add_argument(
        "--quantize", choices=("none", "int8", "nf4"), default="none", help="bits that the frozen layers are held in"
    )
    parser.add_argument("--steps", type=int, default=120, help="optimizer steps")
    parser.add_argument("--batch-size", type=int, default=16, help="conversations of a step")
    parser.add_argument(
        "--micro-batch-size", type=int, default=0, help="conversations at once, for less memory; 0: the whole batch"
    )
    parser.add_argument("--learning-rate", type=float, default=2e-3, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=0, help="seed of the adapter and of the order of samples")


def _add_convert(commands: Commands) -> None:
    def run(options: argparse.Namespace) -> int:
        from modelcore.stages.convert_checkpoint import convert_checkpoint

        result = convert_checkpoint(
            checkpoint=options.source,
            adapter=options.adapter,
            base=options.base,
            out=options.dest,
            to=options.to,
            dtype=options.dtype,
        )
        return _done(options.dest, result.results)

    parser = _add(commands, "convert", run, "Convert a model; its format is found by looking at it.")
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="folder of a native or Hugging Face model, of a checkpoint (step-…) or of a run's checkpoints, whose "
        "newest is taken; for peft, of an adapter; "
        "or its s3:// address",
    )
    parser.add_argument("dest", type=Path, metavar="DEST", help="folder to write; for gguf, file that ends in .gguf")
    parser.add_argument(
        "--to", choices=("native", "huggingface", "peft", "gguf"), required=True, help="format to write"
    )
    parser.add_argument("--adapter", type=Path, help="LoRA adapter (PEFT folder) to merge in")
    parser.add_argument("--base", type=Path, help="for peft: folder of the model that the adapter was trained on")
    parser.add_argument(
        "--dtype", choices=("f32", "f16", "bf16", "q8_0"), help="for gguf: how weights are stored; unset: as they are"
    )


def _add_evaluate(commands: Commands) -> None:
    def run(options: argparse.Namespace) -> int:
        from modelcore.stages.evaluate import evaluate

        result = evaluate(
            checkpoint=options.checkpoint,
            export=options.export,
            tokens=options.tokens,
            heldout=options.heldout,
            out=options.out,
            instructions=options.instructions,
            seed=options.seed,
            task_items=options.task_items,
        )
        return _done(options.out, result.results)

    parser = _add(commands, "evaluate", run, "Measure a model on text it has never seen.")
    parser.add_argument("--checkpoint", type=Path, required=True, help="folder of the pretrained model")
    parser.add_argument("--export", type=Path, required=True, help="folder of the exported model")
    parser.add_argument("--tokens", type=Path, required=True, help="folder of token shards")
    parser.add_argument("--heldout", type=Path, required=True, help="the held-out text itself")
    parser.add_argument("--out", type=Path, required=True, help="folder for evaluation.json, samples and tasks")
    parser.add_argument(
        "--instructions", default="", help="what the model was tuned on, for the samples' prompts; empty: of the text"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the samples")
    parser.add_argument(
        "--task-items",
        type=int,
        default=200,
        help="most items of a task made from the text; 0: no tasks, no lm-eval",
    )


def _add_register(commands: Commands) -> None:
    def run(options: argparse.Namespace) -> int:
        from modelcore.stages.register_model import register_model

        result = register_model(
            export=options.export, evaluation=options.evaluation, out=options.out, model_name=options.model_name
        )
        return _done(options.out, result.results)

    parser = _add(commands, "register", run, "Register a model in MLflow (MLFLOW_TRACKING_URI).")
    parser.add_argument("--export", type=Path, required=True, help="folder of the exported model")
    parser.add_argument("--evaluation", type=Path, required=True, help="folder with evaluation.json")
    parser.add_argument("--out", type=Path, required=True, help="JSON file for the version and the decision")
    parser.add_argument("--model-name", default="aic-gpt", help="name in the registry")


def _add_check_drift(commands: Commands) -> None:
    def run(options: argparse.Namespace) -> int:
        from modelcore.stages.check_drift import check_drift

        result = check_drift(
            corpus=options.corpus,
            out=options.out,
            model_name=options.model_name,
            text_field=options.text_field,
            sample_bytes=options.sample_bytes,
            score_bytes=options.score_bytes,
            seed=options.seed,
        )
        return _done(options.out, result.results)

    parser = _add(
        commands, "check-drift", run, "Compare text with what the champion was trained on (MLFLOW_TRACKING_URI)."
    )
    parser.add_argument("corpus", help="file, folder or s3:// prefix of .txt, .jsonl or .parquet, compressed or not")
    parser.add_argument("--out", type=Path, required=True, help="HTML page for the report")
    parser.add_argument("--model-name", default="aic-gpt", help="name in the registry")
    parser.add_argument("--text-field", default="text", help="field that holds the text in .jsonl and .parquet")
    parser.add_argument("--sample-bytes", type=int, default=4 << 20, help="text to look at, in whole documents")
    parser.add_argument("--score-bytes", type=int, default=1 << 18, help="of that, what the champion predicts; 0: none")
    parser.add_argument("--seed", type=int, default=0, help="seed of the draw of documents")


def _add_deliver_tracking(commands: Commands) -> None:
    def run(options: argparse.Namespace) -> int:
        from modelcore.delivery import deliver_left

        delivered, refused = deliver_left(options.folder)
        sys.stdout.write(f"delivered={delivered} refused={refused}\n")
        return 1 if refused else 0

    parser = _add(commands, "deliver-tracking", run, "Send the MLflow server what a run tracked while it was away.")
    parser.add_argument(
        "folder", type=Path, metavar="FOLDER", help="folder of the run, such as runs/monday; or a stage's output"
    )


def _add_generate(commands: Commands) -> None:
    def run(options: argparse.Namespace) -> int:
        begins = "torch" not in sys.modules
        from modelcore.inference.command import run_generate

        if begins:  # what the libraries made lives to the end, where Python would go over all of it once more
            gc.freeze()
        return run_generate(options)

    parser = _add(commands, "generate", run, "Continue a prompt, token by token.")
    parser.add_argument("--model", type=Path, required=True, help="folder of a native or Hugging Face model")
    parser.add_argument("--prompt", default="", help="text to continue; '-': standard input")
    parser.add_argument("--chat", action="store_true", help="put the prompt to a tuned model as a line to reply to")
    parser.add_argument("--system", default="", help="with --chat: what the system says before")
    parser.add_argument(
        "--max-tokens", type=int, default=200, help="longest continuation, in tokens; prompt and it fit the context"
    )
    parser.add_argument("--temperature", type=float, default=0.8, help="0: always the likeliest token")
    parser.add_argument("--top-k", type=int, default=0, help="draw from the k likeliest tokens; 0: from all")
    parser.add_argument(
        "--top-p", type=float, default=0.95, help="draw from the likeliest tokens of this total; 1: off"
    )
    parser.add_argument("--min-p", type=float, default=0.0, help="least share of the likeliest token's chance; 0: off")
    parser.add_argument("--typical-p", type=float, default=1.0, help="draw from typical tokens of this total; 1: off")
    parser.add_argument(
        "--repetition-penalty", type=float, default=1.0, help="divides the logits of tokens that were said; 1: off"
    )
    parser.add_argument(
        "--presence-penalty", type=float, default=0.0, help="off the logits of new tokens already said; 0: off"
    )
    parser.add_argument("--frequency-penalty", type=float, default=0.0, help="the same for each time; 0: off")
    parser.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="end before this text; may be given several times"
    )
    parser.add_argument("--seed", type=int, default=0, help="same seed, same text")
    parser.add_argument("--adapter", type=Path, help="LoRA adapter (PEFT folder) of the model")
    parser.add_argument("--draft", type=Path, help="smaller model with the same tokenizer, to propose tokens")
    parser.add_argument(
        "--quantize", choices=("none", "int8"), default="none", help="bits of a weight while generating; int8 is faster"
    )


def _add_doctor(commands: Commands) -> None:
    def run(options: argparse.Namespace) -> int:
        from modelcore.doctor import report

        text, healthy = report()
        sys.stdout.write(text)
        return 0 if healthy else 1

    _add(commands, "doctor", run, "Tell what is installed, what is missing and what this machine can run.")


def _done(out: Path, results: dict[str, object]) -> int:
    """Prints where the output is and the stage's scalar results, one ``key=value`` a line; of several ranks, one."""
    if launch.rank() > 0:
        return 0
    sys.stdout.write(f"out={os.fspath(out)}\n")
    for key, value in results.items():
        if isinstance(value, int | float | str) and "\n" not in str(value):
            sys.stdout.write(f"{key}={value:.6g}\n" if isinstance(value, float) else f"{key}={value}\n")
    return 0
