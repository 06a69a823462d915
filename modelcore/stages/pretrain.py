"""Pretraining: a token folder in, a trained model out."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import re
import tempfile
from pathlib import Path
from typing import Any, Literal

import torch

from modelcore import launch, storage
from modelcore.atomic import atomic_directory, remove_leftovers, write_json
from modelcore.data.loader import TrainingBatches, WindowSampler
from modelcore.data.shards import TokenSplit, open_split
from modelcore.errors import InputError, first_line
from modelcore.files import file_digest
from modelcore.models import save_model
from modelcore.stages.stage import Stage, StageSummary
from modelcore.stages.trained import MODEL
from modelcore.stages.work import work_folder
from modelcore.tokenizers import find_tokenizer
from modelcore.training import DEFAULT_RECIPE, CheckpointPlace, Recipe, load_recipe, train
from modelcore.training.checkpoint_list import claim, remove_checkpoints
from modelcore.training.heldout import Heldout
from modelcore.training.mirror import Mirror, push_newest
from modelcore.training.parallel import Ranks, join
from modelcore.training.sharding import build, check_alike

# Settings that do not decide which weights come out; a run may resume with others.
_BOOKKEEPING = (
    "eval_every",
    "eval_tokens",
    "checkpoint_every",
    "keep_checkpoints",
    "log_every",
    "compile",
    "recompute",
    "pad_vocab_to_multiple",
    "parallel",
    "shard_size",
    "tensor_parallel",
)


def pretrain(
    *,
    tokens: Path | str,
    out: Path | str,
    preset: str = DEFAULT_RECIPE,
    steps: int = 0,
    batch_size: int = 0,
    sequence_length: int = 0,
    learning_rate: float = 0.0,
    optimizer: Literal["recipe", "adamw", "muon"] = "recipe",
    seed: int = 0,
    parallel: Literal["recipe", "ddp", "fsdp"] = "recipe",
    shard_size: int = 0,
    tensor_parallel: int = 0,
    device: str = "auto",
    checkpoint_uri: str = "",
    summary: Path | str | None = None,
) -> StageSummary:
    """Trains a model from random weights.

    A run that was interrupted goes on from its newest complete checkpoint when it is started again with the same
    settings. ``out`` appears, or replaces an earlier model, only when the new one is complete.

    Started by torchrun, the processes share each batch, so ``batch_size`` must be a multiple of their number (of
    groups, where some share matrices); the samples and their order do not depend on it, and a run may go on with
    another number, and laid over them in another way. Only the first process logs, tracks, and writes the model.

    Args:
        tokens: A token folder: ``train`` is trained on, ``heldout`` evaluated on.
        out: Where the model goes: a native model folder with ``training.json`` (recipe, totals, curves).
        preset: Name of a recipe, or the path of a YAML file of one's own.
        steps: Optimizer steps; 0: the recipe's. The warm-up is shortened to a tenth of them if it would be longer.
        batch_size: Sequences a step; 0: the recipe's.
        sequence_length: Tokens a sequence, and the model's context; 0: the recipe's.
        learning_rate: Peak learning rate of AdamW; 0: the recipe's. Muon's keeps its ratio to it.
        optimizer: ``adamw``, ``muon``; ``recipe``: the recipe's.
        seed: Decides initial weights, order of samples, and dropout.
        parallel: How torchrun's processes train together: ``ddp``, ``fsdp``; ``recipe``: as the recipe says.
        shard_size: With ``fsdp``, the processes that a matrix is cut up between; 0: the recipe's, which is all of them.
        tensor_parallel: Processes that share each of the blocks' matrices; 0: the recipe's, which is 1.
        device: ``auto`` (a GPU if there is one), or a device as torch names it, such as ``cpu`` or ``cuda:1``. Under
            torchrun ``auto`` and ``cuda`` give each process a GPU of its own.
        checkpoint_uri: Folder or ``s3://`` prefix for checkpoints, which stay there. "": the folder
            ``.<name of out>.training`` beside ``out``, removed when the model is complete. With a prefix they are
            written there first and then copied; a copy that fails is warned of, and only the last one's is an error.
            With ``parallel`` fsdp or ``tensor_parallel`` above 1 each process writes its own part, behind the steps, to
            a folder that all share, or by way of its machine's folder for temporary files (``TMPDIR``) to the prefix.
        summary: JSON file for the stage's summary, or None.

    Returns:
        The summary: ``results`` has the totals, ``series`` the curves.

    Raises:
        InputError: If another process trains with the same checkpoints, a setting is wrong, the corpus is too small,
            the tokens are damaged, or the checkpoints are those of another run or all damaged, or training
            diverges.
    """
    parameters = {key: str(value) if isinstance(value, Path) else value for key, value in locals().items()}
    del parameters["summary"]
    tokens, out = Path(tokens), Path(out)
    with (
        Stage("pretrain", parameters, outputs={out: MODEL}, summary=summary) as stage,
        contextlib.ExitStack() as claimed,
    ):
        _check_apart(checkpoint_uri, out)
        recipe = _change(load_recipe(preset), steps, batch_size, sequence_length, learning_rate, optimizer, seed)
        recipe = _lay_out(recipe, parallel, shard_size, tensor_parallel)
        settings = recipe.training
        chosen = _device(device)
        split = open_split(tokens, "train")
        heldout_split = open_split(tokens, "heldout")
        tokenizer_model = _checked_tokenizer(tokens, split)
        sampler = WindowSampler(split.n_tokens, settings.sequence_length, settings.seed)
        batches = TrainingBatches(split, sampler, settings.batch_size, settings.separate_documents)
        heldout = Heldout(heldout_split, settings.sequence_length, settings.eval_tokens)
        config = recipe.config(split.vocab_size)
        # The stage's own parameters are logged already: "steps" there may be 0, the recipe's are what holds.
        fields = {"recipe": recipe.to_dict()["training"], "model": config.to_dict()}
        stage.run.log_params({f"{part}.{key}": value for part, of in fields.items() for key, value in of.items()})
        if preset != recipe.name:  # a file of one's own: its name tells runs apart
            stage.run.set_tags({"mlflow.runName": f"pretrain {recipe.name}"})
        stage.run.log_dataset(
            name="tokens", source=str(tokens), digest=split.digest, rows=split.n_documents, context="training"
        )

        torch.set_flush_denormal(True)  # denormal numbers cost a CPU a hundred times a normal one's time
        with join(chosen) as ranks:
            check_alike(settings, split.digest, ranks)
            sharding = build(config, settings, ranks)
            if ranks.first:
                claimed.enter_context(claim(_local_checkpoints(out, checkpoint_uri)))
            mirror = _mirror(checkpoint_uri, recipe) if sharding.whole else None
            checkpoints = _checkpoint_place(out, checkpoint_uri, recipe, config.to_dict(), split, ranks, mirror)
            history = train(
                sharding.model,
                batches,
                settings,
                bytes_per_token=split.n_bytes / split.n_tokens,
                heldout=heldout,
                checkpoints=checkpoints,
                report=stage.report,
                name="pretrain",
                sharding=sharding,
            )
            trained = sharding.whole_model()
            if storage.is_remote(checkpoints.uri):
                with contextlib.suppress(OSError):  # another process has removed it
                    checkpoints.folder.rmdir()

        rate = history.tokens / history.seconds
        mfu = history.loss_curve["mfu"][-1] / history.loss_curve["tokens_per_second"][-1] * rate
        totals = {
            "loss": history.loss_curve["loss"][-1],
            "heldout_bits_per_byte": history.heldout_curve["bits_per_byte"][-1],
            "steps": history.steps,
            "tokens": history.tokens,
            "epochs": round(history.tokens / (sampler.samples_per_epoch * settings.sequence_length), 3),
            "parameters": config.num_params(),
            "tokens_per_second": round(rate, 1),
            "mfu": round(mfu, 4),
            "train_seconds": round(history.seconds, 2),
            "skipped_steps": history.skipped_steps,
            "spike_steps": history.spike_steps,
        }
        stage.results.update(totals)
        # The same weights were evaluated on the way: the held-out figures are those of what is saved.
        stage.results["weights"] = "average" if settings.ema_decay else "last"
        stage.series["loss_curve"] = history.loss_curve
        stage.series["heldout_curve"] = history.heldout_curve
        if trained is not None:
            with atomic_directory(out) as fresh:
                save_model(fresh, trained, tokenizer_model)
                training = {
                    "recipe": recipe.to_dict(),
                    "tokens": {
                        "train": split.digest,
                        "heldout": heldout_split.digest,
                        "tokenizer": split.tokenizer_digest,
                    },
                    "weights": stage.results["weights"],
                    "totals": totals,
                    "loss_curve": history.loss_curve,
                    "heldout_curve": history.heldout_curve,
                }
                write_json(fresh / "training.json", training)
            if mirror is not None:
                mirror.finish(checkpoints.folder)
        stage.run.log_chart("loss_curve.png", "loss_curve", history.loss_curve, history.heldout_curve)
        stage.run.log_chart("learning_rate.png", "learning_rate", history.loss_curve)
        # The last thing: a process that dies before it goes on from them when torchrun starts it again.
        if trained is not None and (not checkpoint_uri or storage.is_remote(checkpoint_uri)):
            remove_checkpoints(_local_checkpoints(out, checkpoint_uri))
    return stage.summary


def _change(
    recipe: Recipe,
    steps: int,
    batch_size: int,
    sequence_length: int,
    learning_rate: float,
    optimizer: str,
    seed: int,
) -> Recipe:
    """The recipe with what the caller asks for; zeros and ``recipe`` leave it as it is."""
    old = recipe.training
    changes: dict[str, Any] = {"seed": seed}
    if steps:
        changes |= {"steps": steps, "warmup_steps": min(old.warmup_steps, steps // 10)}
    if batch_size:
        # The largest piece that divides the new batch; the whole batch is written 0.
        piece = math.gcd(batch_size, old.micro_batch_size) % batch_size
        changes |= {"batch_size": batch_size, "micro_batch_size": piece}
    if sequence_length:
        changes |= {"sequence_length": sequence_length}
    if learning_rate:
        muon = old.muon_learning_rate * learning_rate / old.learning_rate
        changes |= {"learning_rate": learning_rate, "muon_learning_rate": muon}
    if optimizer != "recipe":
        changes |= {"optimizer": optimizer}
    return recipe.with_training(**changes)


def _lay_out(recipe: Recipe, parallel: str, shard_size: int, tensor_parallel: int) -> Recipe:
    """The recipe with another place of the model on the processes; zeros and ``recipe`` leave it as it is."""
    changes: dict[str, Any] = {}
    if parallel != "recipe":
        changes |= {"parallel": parallel, "shard_size": 0}
    if shard_size:
        changes |= {"shard_size": shard_size}
    if tensor_parallel:
        changes |= {"tensor_parallel": tensor_parallel}
    return recipe.with_training(**changes)


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        name = f"cuda:{launch.local_rank()}"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    # An unknown name is a RuntimeError; a device that this build of torch lacks is any of the three.
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(
            f"device {name!r} cannot be used ({first_line(error)}); auto takes a GPU if there is one"
        ) from None
    return device


def _check_apart(checkpoint_uri: str, out: Path) -> None:
    if not checkpoint_uri or storage.is_remote(checkpoint_uri):
        return
    if Path(os.path.realpath(checkpoint_uri)).is_relative_to(os.path.realpath(out)):
        raise InputError(
            f"checkpoint_uri {checkpoint_uri} lies in {out}, which the model replaces as a whole at the end; "
            "name a place outside"
        )


def _checked_tokenizer(tokens: Path, split: TokenSplit) -> Path:
    try:
        path = find_tokenizer(tokens)
    except InputError as error:
        raise InputError(f"{error}; a token folder holds the tokenizer that made it") from None
    if file_digest(path) != split.tokenizer_digest:
        raise InputError(f"{path} is not the tokenizer that made the tokens beside it; tokenize the corpus again")
    return path


def _local_checkpoints(out: Path, uri: str) -> Path:
    """Where this machine keeps the checkpoints: at ``uri``, or with its work where that is empty or on S3."""
    if uri and not storage.is_remote(uri):
        return Path(uri)
    return work_folder(out) / f".{out.name}.training"


def _scratch(out: Path) -> Path:
    """Where a process of a sharded run keeps what is on its way to S3, or comes from there.

    That is a disk of its own machine, the one for temporary files where ``MODELCORE_WORK`` names none: ``out`` may lie
    on one that all processes share.
    """
    name = hashlib.sha256(os.fsencode(out.absolute())).hexdigest()[:12]  # two runs at once have two
    return Path(os.environ.get("MODELCORE_WORK") or tempfile.gettempdir()) / f".{out.name}.{name}.training"


def _mirror(uri: str, recipe: Recipe) -> Mirror | None:
    return Mirror(uri, recipe.training.keep_checkpoints) if storage.is_remote(uri) else None


def _checkpoint_place(
    out: Path,
    uri: str,
    recipe: Recipe,
    model: dict[str, Any],
    split: TokenSplit,
    ranks: Ranks,
    mirror: Mirror | None,
) -> CheckpointPlace:
    """Where checkpoints go. What a killed run left beside ``out`` goes."""
    training = {key: value for key, value in recipe.to_dict()["training"].items() if key not in _BOOKKEEPING}
    identity = {"training": training, "model": model, "tokens": split.digest, "tokenizer": split.tokenizer_digest}
    local = _local_checkpoints(out, uri)
    if ranks.first:
        real = Path(os.path.realpath(out))  # a link's target is what is written
        remove_leftovers(real.parent, re.compile(re.escape(real.name)))
    if mirror is None:  # each process of a sharded run writes to S3 by itself
        if not storage.is_remote(uri):
            return CheckpointPlace(local, identity, uri=uri)
        if ranks.first:
            storage.check_writable(uri)
            push_newest(local, uri, recipe.training.keep_checkpoints)  # of when each process had the whole model
        return CheckpointPlace(_scratch(out), identity, uri=uri)
    if ranks.first:
        mirror.start(local)
    return CheckpointPlace(local, identity, mirror.save)
