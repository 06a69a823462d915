"""Tuning: a model and conversations in, a LoRA adapter in PEFT's format out."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TypeVar

import torch

from modelcore import launch
from modelcore.adapters import LoRAConfig, add_lora, lora_parameters, save_adapter
from modelcore.adapters.replies import ReplyBatches, reply_loss
from modelcore.atomic import atomic_directory
from modelcore.data.instructions import Example, load_instructions, split_conversations
from modelcore.gptx import GPT
from modelcore.inference import SamplingConfig, generate
from modelcore.models import load_model, tokenizer_path
from modelcore.quantization import Quantization, quantize_model
from modelcore.quantization.allocator import give_back_freed_memory
from modelcore.stages.stage import Scalar, Stage, StageSummary
from modelcore.stages.trained import ADAPTER
from modelcore.storage import localize
from modelcore.tokenizers import Tokenizer
from modelcore.training import TrainingSettings, train
from modelcore.training.parallel import join
from modelcore.training.sharding import check_alike, shard

DEFAULT_RANK = 8
DEFAULT_ALPHA = 16.0
DEFAULT_DROPOUT = 0.0
DEFAULT_STEPS = 120
DEFAULT_BATCH_SIZE = 16
DEFAULT_LEARNING_RATE = 2e-3

WARMUP_FRACTION = 0.1
LOG_EVERY = 5

_Column = TypeVar("_Column")

# Replies generated to see whether the model ends them, and how long it is given to.
_ENDINGS, _ENDING_TOKENS = 16, 64


def finetune_lora(
    *,
    checkpoint: Path | str,
    instructions: Path | str,
    out: Path | str,
    rank: int = DEFAULT_RANK,
    alpha: float = DEFAULT_ALPHA,
    dropout: float = DEFAULT_DROPOUT,
    target_modules: str = "",
    rslora: bool = False,
    dora: bool = False,
    quantize: Quantization = "none",
    steps: int = DEFAULT_STEPS,
    batch_size: int = DEFAULT_BATCH_SIZE,
    micro_batch_size: int = 0,
    learning_rate: float = DEFAULT_LEARNING_RATE,
    seed: int = 0,
    summary: Path | str | None = None,
) -> StageSummary:
    """Tunes a model on the replies of conversations; its own weights stay as they are.

    The loss is that of the replies' tokens alone, the end of the text among them. AdamW without weight decay; the rate
    rises over a tenth of the steps and falls to zero along a line. On a CPU the same seed gives the same bytes.

    Started by torchrun, the processes share each batch, each on a GPU of its own if there are any; only the first one
    writes, logs and tracks.

    Args:
        checkpoint: A native model folder with its tokenizer.
        instructions: A .jsonl file of conversations, as :func:`modelcore.data.instructions.load_instructions` reads
            it, at a path or s3:// address.
        out: The adapter's folder, in PEFT's format; replaced when the new one is complete.
        rank: Rank of the corrections.
        alpha: They are scaled by alpha / rank, or with ``rslora`` by alpha / sqrt(rank).
        dropout: Probability of dropping an input of a correction while training.
        target_modules: Which layers to adapt, in PEFT's names with commas between, such as ``q_proj,v_proj``. "":
            every linear layer of every block, and the head unless it is tied to the embedding.
        rslora: Scale by the root of the rank (rsLoRA).
        dora: Learn the length of a weight's rows apart from their direction (DoRA).
        quantize: What the frozen linear layers of the blocks are held in: ``none`` (as stored), ``int8`` or ``nf4``.
            The adapter is merged into the full-precision model all the same (:func:`modelcore.adapters.merge`).
        steps: Optimizer steps; as many epochs as they make, the last one cut off.
        batch_size: Conversations a step.
        micro_batch_size: Conversations that go through the model at once; a divisor of ``batch_size``. It decides
            the memory needed, not the result. 0: the whole batch.
        learning_rate: Peak learning rate.
        seed: Decides the adapter's start, the order of the conversations, and dropout.
        summary: JSON file for the stage's summary, or None.

    Returns:
        The summary. ``results`` has ``final_loss``; ``heldout_reply_loss_before`` and ``_after``, nats a token on the
        conversations not learned from; ``replies_ended``, the share of their greedy replies that the tuned model ends
        by itself; and counts. ``series["loss_curve"]`` has the curves.

    Raises:
        InputError: If the checkpoint or a conversation is damaged, fewer than two fit the model's context,
            or a setting is out of range.
    """
    checkpoint, out, instructions = Path(checkpoint), Path(out), str(instructions)
    parameters: dict[str, Scalar] = {
        "instructions": instructions,
        "rank": rank,
        "alpha": alpha,
        "dropout": dropout,
        "target_modules": target_modules,
        "rslora": rslora,
        "dora": dora,
        "quantize": quantize,
        "steps": steps,
        "batch_size": batch_size,
        "micro_batch_size": micro_batch_size,
        "learning_rate": learning_rate,
        "seed": seed,
    }
    with Stage("finetune_lora", parameters, outputs={out: ADAPTER}, summary=summary) as stage:
        targets = tuple(name.strip() for name in target_modules.split(",") if name.strip())
        lora = LoRAConfig(rank=rank, alpha=alpha, dropout=dropout, targets=targets, rslora=rslora, dora=dora)
        if quantize != "none":
            give_back_freed_memory()
        model = quantize_model(load_model(checkpoint, apart=quantize != "none"), quantize)
        tokenizer = Tokenizer.load(tokenizer_path(checkpoint))
        context = model.config.context_length
        settings = TrainingSettings(
            steps=steps,
            batch_size=batch_size,
            sequence_length=context,
            learning_rate=learning_rate,
            micro_batch_size=micro_batch_size,
            weight_decay=0.0,
            warmup_steps=round(WARMUP_FRACTION * steps),
            schedule="linear",
            final_fraction=0.0,
            log_every=LOG_EVERY,
            seed=seed,
            compile=False,  # every batch has another length
            # On a CPU oneDNN would keep kernels and buffers for every length of a batch: gigabytes in the end.
            precision="auto" if torch.cuda.is_available() else "fp32",
        )
        tokenizer.check_model(model.config.vocab_size)
        with tempfile.TemporaryDirectory() as scratch:
            given = load_instructions(localize(instructions, Path(scratch) / "instructions"), tokenizer, context)
        learned, heldout = split_conversations(given.examples)
        stage.run.log_dataset(
            name="instructions", source=instructions, digest=given.digest, rows=len(given.examples), context="tuning"
        )

        device = torch.device(f"cuda:{launch.local_rank()}" if torch.cuda.is_available() else "cpu")
        model.to(device)
        at_once = micro_batch_size or batch_size
        before = reply_loss(model, heldout, at_once, tokenizer.pad_id)
        torch.manual_seed(seed)
        add_lora(model, lora)
        batches = ReplyBatches(learned, batch_size, tokenizer.pad_id, seed)
        with join(device) as ranks:
            check_alike(settings, given.digest, ranks)
            history = train(
                model,
                batches,
                settings,
                bytes_per_token=reply_bytes_per_token(learned, tokenizer),
                report=lambda step, metrics: stage.report(step, _without_mfu(metrics)),
                name="finetune_lora",
                sharding=shard(model, settings, ranks),
            )
        after = reply_loss(model, heldout, at_once, tokenizer.pad_id)
        stage.series["loss_curve"] = _without_mfu(history.loss_curve)
        stage.results.update(
            final_loss=history.loss_curve["loss"][-1],
            heldout_reply_loss_before=before,
            heldout_reply_loss_after=after,
            replies_ended=replies_ended(model, heldout, tokenizer.eos_id, at_once),
            trainable_parameters=sum(parameter.numel() for parameter in lora_parameters(model)),
            conversations=len(learned),
            heldout_conversations=len(heldout),
            dropped_conversations=given.dropped,
            epochs=round(steps / batches.steps_per_epoch, 2),
            train_seconds=round(history.seconds, 2),
            tokens_per_second=round(history.tokens / history.seconds, 1),
            skipped_steps=history.skipped_steps,
        )
        if launch.rank() == 0:
            with atomic_directory(out) as fresh:
                save_adapter(fresh, model, base=checkpoint)
        stage.run.log_chart("loss_curve.png", "loss_curve", stage.series["loss_curve"])
    return stage.summary


def reply_bytes_per_token(examples: list[Example], tokenizer: Tokenizer) -> float:
    """Mean UTF-8 bytes that a token of a reply stands for."""
    size = sum(len(tokenizer.decode_bytes(example.tokens[example.loss].tolist())) for example in examples)
    return size / sum(int(example.loss.sum()) for example in examples)


def replies_ended(model: GPT, examples: list[Example], eos_id: int, batch_size: int) -> float:
    """The share of a few prompts whose greedy reply the model ends by itself, within 64 tokens."""
    prompts = [example.tokens[: example.loss.argmax()].tolist() for example in examples[:_ENDINGS]]  # up to the reply
    greedy, ended = SamplingConfig(temperature=0.0), 0
    for start in range(0, len(prompts), batch_size):
        replies = generate(model, prompts[start : start + batch_size], greedy, _ENDING_TOKENS, eos_id)
        ended += sum(reply.finish_reason == "eos" for reply in replies)
    return ended / len(prompts)


def _without_mfu(columns: dict[str, _Column]) -> dict[str, _Column]:
    """The columns that mean something here: MFU counts the gradients of all weights, and most of these are frozen."""
    return {name: column for name, column in columns.items() if name != "mfu"}
