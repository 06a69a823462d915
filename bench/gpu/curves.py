"""Whether the fast path of training learns what plain PyTorch learns: loss curves from the same weights and batches.

The reference is written out here and shares nothing with the library's loop: the model's logits, PyTorch's loss,
clipping and AdamW, eager, all in fp32. The same in bf16 autocast shows how far rounding alone leads away from it; the
same with the text in another order, how far chance does. The text is the sample's, through a tokenizer fitted to it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from bench.benchmark import Options
from bench.gpu.work import Work, build, device_of
from bench.measure import note
from bench.row import Row
from modelcore.atomic import write_json
from modelcore.data.loader import TrainingBatches, WindowSampler
from modelcore.data.shards import TokenSplit, open_split, write_tokens
from modelcore.gptx import GPT, pad_vocabulary
from modelcore.tokenizers import Tokenizer
from modelcore.tokenizers.training import train_sentencepiece
from modelcore.training import TrainingSettings, train
from modelcore.training.loop import Batches
from modelcore.training.schedule import learning_rate_factor

TEXTS = Path(__file__).parents[2] / "examples" / "austen"
VOCAB_SIZE = 8192

OURS, REFERENCE, ROUNDED, REORDERED = "ours", "fp32, eager", "bf16 autocast, eager", "another order of the text"

_LEAST = 1e-6  # nats that fp32 tells apart in a loss of ten


def rows(name: str, work: Work, steps: int, learning_rate: float, options: Options) -> Iterator[Row]:
    """How far our curve and the others lie from the reference, in nats a token; the curves go to ``options.folder``.

    Args:
        name: What the rows are called.
        work: The model and the batches.
        steps: Steps to compare.
        learning_rate: Peak of AdamW's.
        options: What the benchmark is asked for.
    """
    device, work = device_of(options), work.at(options)
    settings = TrainingSettings(
        steps=8 if options.small else steps,
        batch_size=work.batch_size,
        sequence_length=work.sequence_length,
        learning_rate=learning_rate,
        warmup_steps=2 if options.small else steps // 10,
        log_every=1,
        pad_vocab_to_multiple=128,
    )
    ours = dataclasses.replace(settings, **options.settings)
    torch.set_float32_matmul_precision("highest")

    def bf16() -> AbstractContextManager[object]:
        return torch.autocast(device.type, torch.bfloat16)

    with _tokens(options) as split:
        batches, reordered = (
            TrainingBatches(split, WindowSampler(split.n_tokens, work.sequence_length, seed), work.batch_size)
            for seed in (0, 1)
        )
        contenders: dict[str, Callable[[GPT], list[float]]] = {
            REFERENCE: lambda model: plain_curve(model, batches, settings, contextlib.nullcontext),
            ROUNDED: lambda model: plain_curve(model, batches, settings, bf16),
            REORDERED: lambda model: plain_curve(model, reordered, settings, bf16),
            OURS: lambda model: _our_curve(
                model, batches, ours
            ),  # the last, so that nothing it sets reaches the others
        }
        curves = {}
        for contender, train_it in contenders.items():
            curves[contender] = train_it(build(work.config, device))
            note(f"{contender}: loss {curves[contender][0]:.4f} at first, {curves[contender][-1]:.4f} at last")
    if options.folder is not None:
        write_json(options.folder / f"{name.split()[0]}.curves.json", curves)
    apart = {contender: _apart(curve, curves[REFERENCE]) for contender, curve in curves.items()}
    for metric, value in apart[OURS].items():
        yield Row(name, metric, value, "nats", ROUNDED, apart[ROUNDED][metric])
    # Nobody's figure, and so no peer: it gives the scale.
    for metric, value in apart[REORDERED].items():
        yield Row(name, f"{metric}, of {REORDERED}", value, "nats")


def plain_curve(
    model: GPT, batches: Batches, settings: TrainingSettings, cast: Callable[[], AbstractContextManager[object]]
) -> list[float]:
    """The loss of each step of plain PyTorch training, nats a token.

    Args:
        model: Trained in place.
        batches: Gives each step's batch.
        settings: Steps, rates, betas, weight decay and clipping are taken from here.
        cast: Makes the context that the forward pass runs in.
    """
    parameters = list(model.parameters())
    matrices, vectors = ([p for p in parameters if (p.ndim >= 2) is wide] for wide in (True, False))
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
        lr=settings.learning_rate,
        betas=settings.betas,
    )
    model.train()
    curve = []
    for step in range(settings.steps):
        inputs, targets = (part.to(model.device) for part in batches.batch(step))
        with cast():
            logits = model(inputs)  # (B, T, vocab_size)
            loss = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(parameters, settings.clip_norm)
        factor = learning_rate_factor(
            step,
            steps=settings.steps,
            warmup_steps=settings.warmup_steps,
            schedule=settings.schedule,
            final_fraction=settings.final_fraction,
            decay_fraction=settings.decay_fraction,
        )
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * factor
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        curve.append(loss.detach())
    return torch.stack(curve).tolist()


def _our_curve(model: GPT, batches: Batches, settings: TrainingSettings) -> list[float]:
    padded = pad_vocabulary(model, settings.pad_vocab_to_multiple)
    return train(padded, batches, settings, bytes_per_token=1.0, name="ours").loss_curve["loss"]


def _apart(curve: list[float], reference: list[float]) -> dict[str, float]:
    differences = [abs(one - other) for one, other in zip(curve, reference, strict=True)]
    last = max(1, len(curve) // 10)
    end = abs(statistics.mean(curve[-last:]) - statistics.mean(reference[-last:]))
    found = {
        "largest difference from fp32": max(differences),
        "mean difference from fp32": statistics.mean(differences),
        "difference at the end": end,
    }
    return {metric: max(value, _LEAST) for metric, value in found.items()}


def write_sample_tokens(folder: Path, small: bool) -> None:
    """Writes the sample's text as tokens to ``folder / "tokens"``, with its tokenizer beside them.

    Args:
        folder: A folder of its own.
        small: Whether only the motions are gone through; of the text a small part then does.
    """
    most = 1 << 16 if small else None
    train_texts, heldout = (
        [path.read_text(encoding="utf-8")[:most] for path in sorted((TEXTS / part).glob("*.txt"))]
        for part in ("train", "heldout")
    )
    train_sentencepiece(train_texts, folder, vocab_size=500 if small else VOCAB_SIZE, algorithm="bpe", seed=0)
    write_tokens(folder / "tokens", Tokenizer.load(folder / "tokenizer.model"), train=train_texts, heldout=heldout)


@contextlib.contextmanager
def _tokens(options: Options) -> Iterator[TokenSplit]:
    with tempfile.TemporaryDirectory() as scratch:
        write_sample_tokens(Path(scratch), options.small)
        yield open_split(Path(scratch) / "tokens", "train")
