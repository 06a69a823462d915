"""The training loop: batches in, a trained model out, and everything needed to go on after a crash left on the way."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch import Tensor

from modelcore.errors import InputError
from modelcore.gptx import GPT
from modelcore.progress import Progress
from modelcore.training.averaging import WeightAverage
from modelcore.training.checkpoints import CheckpointPlace, open_checkpoints
from modelcore.training.gradients import accumulate_gradients, clip_gradients
from modelcore.training.heldout import Heldout
from modelcore.training.history import History, Since
from modelcore.training.optimizer import Optimizer
from modelcore.training.peak import peak_flops
from modelcore.training.precision import autocast, fast_kernels
from modelcore.training.random_state import random_state, restore_random_state
from modelcore.training.recipe import TrainingSettings
from modelcore.training.recomputation import cheap_recomputation
from modelcore.training.schedule import learning_rate_factor
from modelcore.training.sharding import Sharding
from modelcore.training.spikes import SpikeRule
from modelcore.training.state import Part
from modelcore.training.stragglers import OwnTime


class Batches(Protocol):
    """Where batches come from: see :class:`modelcore.data.loader.TrainingBatches`."""

    def batch(self, step: int, rank: int = 0, world_size: int = 1) -> tuple[Tensor, ...]:
        """Inputs and targets of a rank's part, (sequences, time) int64 each; targets that do not count are -100.

        A third tensor of that shape, if there is one, numbers the document of each token: attention stays inside.
        """


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
    sharding: Sharding | None = None,
) -> History:
    """Trains the parameters of ``model`` that require a gradient, in place, on the device they are on.

    A step whose loss or gradient is not finite, or that is a spike, changes nothing and is counted. With
    ``checkpoints`` the run goes on from the newest complete one, and ends, on a CPU, bit for bit as if it had never
    been interrupted.

    Args:
        model: The model; left in evaluation mode, with the averaged weights where ``settings.ema_decay`` asks for an
            average.
        batches: Gives each step's batch by its number.
        settings: How to train.
        bytes_per_token: Mean UTF-8 bytes that a training token stands for, for bits per byte.
        heldout: What to evaluate on, every ``settings.eval_every`` steps and at the end; where an average of the
            weights is kept, that is evaluated.
        checkpoints: Where to save the run's state, every ``settings.checkpoint_every`` steps and at the end.
        report: Called with a step's number (from 1) and its metrics by name, every ``settings.log_every`` steps and
            after each evaluation.
        name: What progress is shown as.
        sharding: The model's place on the processes that train it together, as
            :func:`~modelcore.training.sharding.shard` gave it; None: this process is alone. All call this function with
            the same arguments; ``report`` is called on the first alone.

    Returns:
        What was done, earlier parts of a resumed run included.

    Raises:
        InputError: If too many steps in a row are not finite, weights or held-out loss are not finite, the
            newest checkpoint is of another run, or all are damaged. A checkpoint written before stays.
    """
    recompute = cheap_recomputation() if settings.recompute == "cheap" else contextlib.nullcontext()
    with fast_kernels(settings.precision, model.device, settings.sequence_length), recompute:
        model.gradient_checkpointing = settings.recompute == "blocks"
        model.compiled = settings.compile and model.device.type == "cuda"
        try:
            return _train(
                model,
                batches,
                settings,
                bytes_per_token,
                heldout,
                checkpoints,
                report,
                name,
                sharding or Sharding(model),
            )
        finally:
            model.gradient_checkpointing = model.compiled = False


def _train(
    model: GPT,
    batches: Batches,
    settings: TrainingSettings,
    bytes_per_token: float,
    heldout: Heldout | None,
    checkpoints: CheckpointPlace | None,
    report: Callable[[int, dict[str, float]], None],
    name: str,
    sharding: Sharding,
) -> History:
    ranks = sharding.ranks
    device = model.device
    trained = {key: parameter for key, parameter in model.named_parameters() if parameter.requires_grad}
    parameters = list(trained.values())
    optimizer = Optimizer(model, settings)
    average = WeightAverage(trained, settings.ema_decay)
    spikes = SpikeRule(settings.spike_deviations, device)
    parts: dict[str, Part] = {"optimizer": optimizer, "average": average, "spikes": spikes}
    gradient_sum, own_time = sharding.gradient_sum(), OwnTime(ranks)
    gradient_sum.before_waiting = own_time.end
    cast = autocast(settings.precision, device)
    flops_per_token = model.config.flops_per_token(settings.sequence_length)
    peak = peak_flops(device) * ranks.world_size

    history = History()
    saved = open_checkpoints(checkpoints, sharding, settings.keep_checkpoints) if checkpoints is not None else None
    state = saved.resume(model, parts) if saved is not None else None
    if state is not None:
        history = History(**state["progress"]["history"])
    if sharding.whole:
        ranks.share(parameters)
    batch = batches.batch(history.steps, ranks.rank, ranks.size) if history.steps < settings.steps else None
    since = Since(device, state["progress"]["since"] if state is not None else None)
    model.train()
    restore_random_state(state, seed=settings.seed, device=device, ranks=ranks)

    shown: dict[str, float | str] = {}
    own_time.start()
    with saved or contextlib.nullcontext(), Progress(name, settings.steps, "step", start=history.steps) as bar:
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
            loss = accumulate_gradients(model.hidden, model.head, batch, settings.micro_batch_size, cast, gradient_sum)
            own_time.start()
            norm = clip_gradients(parameters, settings.clip_norm, sharding.norm)
            finite = (torch.isfinite(loss) & torch.isfinite(norm)).float()
            spike = spikes.is_spike(loss, norm, finite)
            taken = finite - spike
            optimizer.step(factor, taken)
            average.update(history.steps, taken)
            batch_tokens = batch[0].numel() * ranks.size
            since.add(loss, norm, finite, spike, batch_tokens)
            history.steps += 1
            done, paused = history.steps == settings.steps, False
            # The device is still busy with the step: the next batch costs no time.
            batch = None if done else batches.batch(history.steps, ranks.rank, ranks.size)

            if done or history.steps % settings.log_every == 0:
                metrics = since.finish(history, settings)
                metrics["bits_per_byte"] = metrics["loss"] / math.log(2) / bytes_per_token
                metrics["learning_rate"] = factor * settings.learning_rate
                metrics["mfu"] = metrics["tokens_per_second"] * flops_per_token / peak
                if math.isfinite(metrics["loss"]):
                    _append(history.loss_curve, {"step": history.steps} | metrics)
                    shown |= {"loss": metrics["loss"], "tokens_per_second": metrics["tokens_per_second"]}
                with since.paused():
                    metrics |= own_time.report(batch_tokens)
                if ranks.first:
                    report(history.steps, metrics)
            if heldout is not None and (done or _is_due(history.steps, settings.eval_every)):
                paused = True
                with since.paused(), average.in_place():
                    rows = settings.micro_batch_size or settings.batch_size
                    bits = heldout.bits_per_byte(model, rows, cast, ranks)
                    sharding.forget_gathered()
                _check_finite("the held-out loss", bits, history.steps, settings)
                _append(history.heldout_curve, {"step": history.steps, "bits_per_byte": bits})
                shown |= {"heldout_bits_per_byte": bits}
                if ranks.first:
                    report(history.steps, {"heldout_bits_per_byte": bits})
            bar.update(1, **shown)
            save = saved is not None and (done or _is_due(history.steps, settings.checkpoint_every))
            if done or save:
                paused = True
                with since.paused():
                    # Weights so large that their squares overflow are as lost as those that are NaN.
                    norm_of_weights = sharding.norm({p: p.detach() for p in parameters}).item()
                    _check_finite("the norm of the weights", norm_of_weights, history.steps, settings)
                    if saved is not None and save:
                        progress = {"history": dataclasses.asdict(history), "since": since.to_dict()}
                        random = random_state(device, ranks)
                        saved.save(history.steps, model, parts, progress=progress, random=random)
            if paused:  # the first rank wrote a checkpoint while others waited, and so on
                own_time.start()
        if saved is not None:
            saved.finish()
    average.apply()
    model.eval()
    return history


def _check_finite(what: str, value: float, step: int, settings: TrainingSettings) -> None:
    if not math.isfinite(value):
        raise InputError(
            f"{what} is {value} after step {step}: training has diverged; a smaller learning_rate than "
            f"{settings.learning_rate:g} or a longer warm-up may help"
        )


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _append(columns: dict[str, list[float]], row: Mapping[str, float]) -> None:
    for key, value in row.items():
        columns.setdefault(key, []).append(value)
