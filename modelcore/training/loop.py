"""The training loop: batches in, a trained model out, and everything needed to go on after a crash left on the way."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from modelcore.errors import InputError
from modelcore.gptx import GPT
from modelcore.progress import Progress
from modelcore.training.heldout import Heldout
from modelcore.training.loss import count_targets, summed_loss
from modelcore.training.optimizer import Optimizer
from modelcore.training.peak import peak_flops
from modelcore.training.precision import autocast, fast_kernels
from modelcore.training.recipe import TrainingSettings
from modelcore.training.schedule import learning_rate_factor
from modelcore.training.state import latest_checkpoint, load_checkpoint, restore_random_state, save_checkpoint

logger = logging.getLogger(__name__)

MAX_SKIPPED_IN_A_ROW = 10
"""Steps in a row whose loss or gradient is not finite before the run is given up."""


class Batches(Protocol):
    """Where batches come from: see :class:`modelcore.data.loader.TrainingBatches`."""

    def batch(self, step: int, rank: int = 0, world_size: int = 1) -> tuple[Tensor, Tensor]:
        """Inputs and targets of a step, each (sequences, time) int64; targets that do not count are -100."""


@dataclass(frozen=True)
class CheckpointPlace:
    """Where a run's checkpoints go.

    Attributes:
        folder: Local folder that holds them.
        identity: What decides the run's result, as plain JSON values: a run resumes only what has the same.
        saved: Called with each new checkpoint's folder, for example to copy it elsewhere.
    """

    folder: Path
    identity: Mapping[str, Any]
    saved: Callable[[Path], None] = lambda path: None


@dataclass
class History:
    """What a run has done so far; checkpoints carry it.

    Attributes:
        steps: Steps done, skipped ones included.
        skipped_steps: Steps left out because loss or gradient was not finite.
        tokens: Tokens read.
        seconds: Time spent training, without evaluations and checkpoints.
        loss_curve: Columns ``step``, ``loss`` (nats a token, mean since the row before), ``bits_per_byte``,
            ``learning_rate``, ``gradient_norm``, ``tokens_per_second``, ``mfu``.
        heldout_curve: Columns ``step`` and ``bits_per_byte``.
    """

    steps: int = 0
    skipped_steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    loss_curve: dict[str, list[float]] = field(default_factory=dict)
    heldout_curve: dict[str, list[float]] = field(default_factory=dict)


def train(
    model: GPT,
    batches: Batches,
    settings: TrainingSettings,
    *,
    bytes_per_token: float,
    heldout: Heldout | None = None,
    checkpoints: CheckpointPlace | None = None,
    report: Callable[[int, dict[str, float]], None] = lambda step, metrics: None,
    name: str = "train",
) -> History:
    """Trains the parameters of ``model`` that require a gradient, in place, on the device they are on.

    A step whose loss or gradient is not finite changes nothing and is counted. With ``checkpoints`` the run goes on
    from the newest complete one, and ends, on a CPU, bit for bit as if it had never been interrupted.

    Args:
        model: The model; left in evaluation mode.
        batches: Gives each step's batch by its number.
        settings: How to train.
        bytes_per_token: Mean UTF-8 bytes that a training token stands for, for bits per byte.
        heldout: What to evaluate on, every ``settings.eval_every`` steps and at the end.
        checkpoints: Where to save the run's state, every ``settings.checkpoint_every`` steps and at the end.
        report: Called with a step's number (from 1) and its metrics by name, every ``settings.log_every`` steps and
            after each evaluation.
        name: What progress is shown as.

    Returns:
        What was done, earlier parts of a resumed run included.

    Raises:
        InputError: If too many steps in a row are not finite, or the newest checkpoint is of another run.
    """
    with fast_kernels(settings.precision, model.device, settings.sequence_length):
        return _train(model, batches, settings, bytes_per_token, heldout, checkpoints, report, name)


def _train(
    model: GPT,
    batches: Batches,
    settings: TrainingSettings,
    bytes_per_token: float,
    heldout: Heldout | None,
    checkpoints: CheckpointPlace | None,
    report: Callable[[int, dict[str, float]], None],
    name: str,
) -> History:
    device = model.device
    optimizer = Optimizer(model, settings)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    cast = autocast(settings.precision, device)
    hidden = torch.compile(model.hidden, dynamic=False) if settings.compile and device.type == "cuda" else model.hidden
    flops_per_token = model.config.flops_per_token(settings.sequence_length)
    peak = peak_flops(device)
    history = History()
    state = None
    if checkpoints is not None and (path := latest_checkpoint(checkpoints.folder)) is not None:
        state = load_checkpoint(path, model, optimizer, identity=checkpoints.identity)
        history = History(**state["progress"]["history"])
        logger.info("%s resumes from %s", name, path)
    batch = batches.batch(history.steps) if history.steps < settings.steps else None
    since = _Since(device, state["progress"]["since"] if state is not None else None)
    model.train()
    if state is not None:
        restore_random_state(state)

    shown: dict[str, float | str] = {}
    with Progress(name, settings.steps, "step", start=history.steps) as bar:
        while batch is not None:
            factor = learning_rate_factor(
                history.steps,
                steps=settings.steps,
                warmup_steps=settings.warmup_steps,
                schedule=settings.schedule,
                final_fraction=settings.final_fraction,
                decay_fraction=settings.decay_fraction,
            )
            optimizer.zero_grad()
            loss = accumulate_gradients(hidden, model.head, *batch, settings.micro_batch_size, cast)
            norm = _clip(parameters, settings.clip_norm)
            finite = (torch.isfinite(loss) & torch.isfinite(norm)).float()
            optimizer.step(factor, finite)
            since.add(loss, norm, finite, batch[0].numel())
            history.steps += 1
            done = history.steps == settings.steps
            # The device is still busy with the step: the next batch costs no time.
            batch = None if done else batches.batch(history.steps)

            if done or history.steps % settings.log_every == 0:
                metrics = since.finish(history, settings)
                metrics["bits_per_byte"] = metrics["loss"] / math.log(2) / bytes_per_token
                metrics["learning_rate"] = factor * settings.learning_rate
                metrics["mfu"] = metrics["tokens_per_second"] * flops_per_token / peak
                if math.isfinite(metrics["loss"]):
                    _append(history.loss_curve, {"step": history.steps} | metrics)
                    shown |= {"loss": metrics["loss"], "tokens_per_second": metrics["tokens_per_second"]}
                report(history.steps, metrics)
            if heldout is not None and (done or _is_due(history.steps, settings.eval_every)):
                with since.paused():
                    bits = heldout.bits_per_byte(model, settings.micro_batch_size or settings.batch_size, cast)
                _append(history.heldout_curve, {"step": history.steps, "bits_per_byte": bits})
                shown |= {"heldout_bits_per_byte": bits}
                report(history.steps, {"heldout_bits_per_byte": bits})
            bar.update(1, **shown)
            if checkpoints is not None and (done or _is_due(history.steps, settings.checkpoint_every)):
                with since.paused():
                    path = save_checkpoint(
                        checkpoints.folder,
                        history.steps,
                        model,
                        optimizer,
                        identity=checkpoints.identity,
                        progress={"history": dataclasses.asdict(history), "since": since.to_dict()},
                        keep=settings.keep_checkpoints,
                    )
                    checkpoints.saved(path)
    model.eval()
    return history


def accumulate_gradients(
    hidden: Callable[[Tensor], Tensor],
    head: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    micro_batch_size: int,
    cast: Callable[[], AbstractContextManager[object]],
) -> Tensor:
    """Adds the gradient of a batch's mean loss to the parameters' gradients, piece by piece.

    The mean is over all targets of the batch that count, however many of them each piece has.

    Args:
        hidden: Maps tokens to what ``head`` reads.
        head: The model's head, which also says where the model is.
        inputs: (sequences, time) int64.
        targets: Likewise; -100 where a token does not count.
        micro_batch_size: Sequences a piece; 0: all.
        cast: Makes the context in which the model runs.

    Returns:
        The batch's mean loss in nats a token, 0-D fp32, without a gradient.
    """
    device = next(head.parameters()).device
    count = count_targets(targets).clamp_min(1).to(device, torch.float32)
    loss = torch.zeros((), device=device)
    size = micro_batch_size or inputs.shape[0]
    for start in range(0, inputs.shape[0], size):
        x, y = (_move(tokens[start : start + size], device) for tokens in (inputs, targets))
        with cast():
            piece = summed_loss(hidden(x), head, y) / count
        piece.backward()  # type: ignore[no-untyped-call]
        loss += piece.detach()
    return loss


class _Since:
    """Sums since the last point of the curves, kept on the device so that nothing waits for it in between."""

    def __init__(self, device: torch.device, saved: Mapping[str, Any] | None = None) -> None:
        self._device = device
        # Sum of losses, number of steps in it, the newest gradient norm, skipped steps in a row.
        self._figures = torch.tensor(saved["figures"] if saved else [0.0] * 4, device=device).unbind()
        self._steps: int = saved["steps"] if saved else 0
        self._tokens: int = saved["tokens"] if saved else 0
        self._seconds: float = saved["seconds"] if saved else 0.0
        self._start = self._now()

    def add(self, loss: Tensor, norm: Tensor, finite: Tensor, tokens: int) -> None:
        """Counts a step; one that is not finite only as skipped."""
        kept = finite.bool()
        losses, steps, last_norm, in_a_row = self._figures
        self._figures = (
            losses + loss.where(kept, 0.0),
            steps + finite,
            norm.where(kept, last_norm),
            (in_a_row + 1.0) * (1.0 - finite),
        )
        self._steps += 1
        self._tokens += tokens

    def to_dict(self) -> dict[str, Any]:
        """The sums as plain JSON values, to begin with in a resumed run."""
        figures = torch.stack(self._figures).tolist()
        return {"figures": figures, "steps": self._steps, "tokens": self._tokens, "seconds": self._seconds}

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves the time of a block out."""
        self._seconds += self._now() - self._start
        yield
        self._start = self._now()

    def finish(self, history: History, settings: TrainingSettings) -> dict[str, float]:
        """Adds the sums to ``history``, starts new ones, and gives this stretch's metrics."""
        losses, steps, norm, in_a_row = torch.stack(self._figures).tolist()
        with self.paused():
            history.skipped_steps += self._steps - round(steps)
            history.tokens += self._tokens
            history.seconds += self._seconds
        if in_a_row >= min(MAX_SKIPPED_IN_A_ROW, settings.steps):
            raise InputError(
                f"loss or gradient was not finite in {round(in_a_row)} steps in a row, up to step {history.steps}; "
                f"a smaller learning_rate than {settings.learning_rate:g} or a longer warm-up may help"
            )
        metrics = {
            "loss": losses / steps if steps else math.nan,
            "gradient_norm": norm if steps else math.nan,
            "tokens_per_second": self._tokens / self._seconds,
        }
        self._figures = (*torch.zeros(3, device=self._device).unbind(), self._figures[3])
        self._steps, self._tokens, self._seconds = 0, 0, 0.0
        return metrics

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


def _clip(parameters: list[nn.Parameter], clip_norm: float) -> Tensor:
    """Scales the whole gradient down to norm ``clip_norm`` where it is longer, and returns its norm before."""
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None], foreach=True)
    if clip_norm:
        nn.utils.clip_grads_with_norm_(parameters, clip_norm, norm, foreach=True)
    return norm


def _move(tokens: Tensor, device: torch.device) -> Tensor:
    if device.type != "cuda":
        return tokens.to(device)
    return tokens.pin_memory().to(device, non_blocking=True)


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _append(columns: dict[str, list[float]], row: Mapping[str, float]) -> None:
    for key, value in row.items():
        columns.setdefault(key, []).append(value)
