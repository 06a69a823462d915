"""How training grows with the GPUs of a host: 1, 2, 4 ... of them, as torchrun starts a process for each.

Three things are asked of a model:

- Speed. Each GPU gets the batch that one GPU has, and N of them should train N times the tokens a second. That share is
  the efficiency: the ratio of a row of throughput.
- Losses. The same batches, of real text, however many GPUs share them: a single GPU then takes a batch in as many
  pieces as there are GPUs at most. What rounding alone does is seen by a single GPU that takes smaller pieces.
- Checkpoints. A run on all GPUs leaves one half-way, and half of the GPUs go on from it.
"""

from __future__ import annotations

import dataclasses
import shutil
import statistics
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench.benchmark import Options, in_fresh_process
from bench.gpu.contest import UNITS
from bench.gpu.curves import write_sample_tokens
from bench.gpu.training import RandomTokens, our_settings
from bench.gpu.work import Work, build
from bench.measure import note
from bench.row import Row
from modelcore import launch
from modelcore.atomic import write_json
from modelcore.data.loader import TrainingBatches, WindowSampler
from modelcore.data.shards import open_split
from modelcore.errors import InputError
from modelcore.gptx import pad_vocabulary
from modelcore.training import CheckpointPlace, TrainingSettings, train
from modelcore.training.history import History
from modelcore.training.loop import Batches
from modelcore.training.parallel import Ranks, join
from modelcore.training.recipe import Parallel
from modelcore.training.sharding import shard

STEPS = 50
"""Steps whose losses are compared."""

ONE, ROUNDING = "one GPU", "one GPU, smaller pieces"

_LEAST = 1e-6  # nats that fp32 tells apart in a loss of ten


@dataclass(frozen=True)
class Scaling:
    """One model, trained on more and more GPUs.

    Attributes:
        module: The benchmark's module, which holds this as ``SCALING``.
        title: Model and strategy, in a few words.
        work: The model, and the batch of each GPU.
        parallel: How the GPUs train together.
        learning_rate: Peak of AdamW's where losses are compared.
    """

    module: str
    title: str
    work: Work
    parallel: Parallel
    learning_rate: float

    @property
    def parts(self) -> dict[str, Callable[[Options], dict[str, Any]]]:
        """What is done in processes of its own, for :func:`bench.benchmark.main`."""
        return {"scaled": self._scaled, "rounding": self._rounding, "resumed": self._resumed}

    def rows(self, options: Options) -> Iterator[Row]:
        """Speed, memory and losses by number of GPUs, beside one; the losses themselves go to ``options.folder``.

        Raises:
            InputError: If there are fewer than two GPUs.
            RuntimeError: If a part fails.
        """
        name = f"{self.module.rpartition('.')[2]} {self.title}"
        counts = counts_of(options)
        with tempfile.TemporaryDirectory() as scratch:
            write_sample_tokens(Path(scratch), options.small)
            inside = dataclasses.replace(options, folder=Path(scratch))
            found = {count: self._run("scaled", count, inside) for count in counts}
            rounding = self._run("rounding", 1, inside)["losses"]
            half = counts[-1] // 2
            shutil.rmtree(max(_checkpoints(inside).glob("step-*")))  # the one at the end
            resumed = self._run("resumed", half, inside)["losses"]
        curves = {count: figures.pop("losses") for count, figures in found.items()}
        one, reference = found[1], curves[1]
        for count, figures in found.items():
            scaled = f"{name}, {gpus(count)}"
            for metric, unit in UNITS.items():
                if metric not in figures:
                    continue
                if count == 1:
                    yield Row(scaled, metric, figures[metric], unit)
                elif metric == "throughput":
                    yield Row(scaled, metric, figures[metric], unit, f"{count} x {ONE}", count * one[metric])
                else:
                    yield Row(scaled, metric, figures[metric], unit, ONE, one[metric])
            if count > 1:
                yield from _apart(scaled, f"over {len(reference)} steps", curves[count], reference, rounding)
        at_the_end = -len(resumed)
        yield from _apart(
            f"{name}, {gpus(counts[-1])} then {half}",
            f"over the last {len(resumed)} steps",
            resumed,
            reference[at_the_end:],
            rounding[at_the_end:],
        )
        if options.folder is not None:
            named = {gpus(count): curve for count, curve in curves.items()}
            others = {ROUNDING: rounding, f"resumed on {gpus(half)}": resumed}
            write_json(options.folder / f"{name.split()[0]}.curves.json", named | others)

    def _run(self, part: str, count: int, options: Options) -> dict[str, Any]:
        found = in_fresh_process(self.module, part, options, processes=count)
        told = [f"{metric} {found[metric]:.4g} {unit}" for metric, unit in UNITS.items() if metric in found]
        told.append(f"loss {found['losses'][0]:.4f} at first, {found['losses'][-1]:.4f} at last")
        note(f"{part}, {gpus(count)}: {', '.join(told)}")
        return found

    def _scaled(self, options: Options) -> dict[str, Any]:
        """Speed and losses with the processes there are; all GPUs leave checkpoints."""
        work, count = self.work.at(options), launch.world_size()
        timed = our_settings(work, options, batch_size=count * work.batch_size, parallel=self.parallel)
        compared = self._compared(work, options)
        all_gpus = count == counts_of(options)[-1]
        place = CheckpointPlace(_checkpoints(options), identity={}) if all_gpus else None
        with join(_device()) as ranks:
            figures = _figures(*_train(work, RandomTokens(work), timed, ranks))
            history, _ = _train(work, _text(options, compared), compared, ranks, place)
        return figures | {"losses": history.loss_curve["loss"]}

    def _rounding(self, options: Options) -> dict[str, Any]:
        """The losses of a single GPU that takes its batch in smaller pieces."""
        work = self.work.at(options)
        settings = self._compared(work, options, micro_batch_size=work.batch_size // 2)
        with join(_device()) as ranks:
            history, _ = _train(work, _text(options, settings), settings, ranks)
        return {"losses": history.loss_curve["loss"]}

    def _resumed(self, options: Options) -> dict[str, Any]:
        """The losses after the checkpoint that lies half-way."""
        work = self.work.at(options)
        settings = self._compared(work, options)
        place = CheckpointPlace(_checkpoints(options), identity={})
        with join(_device()) as ranks:
            history, _ = _train(work, _text(options, settings), settings, ranks, place)
        return {"losses": history.loss_curve["loss"][settings.checkpoint_every :]}

    def _compared(self, work: Work, options: Options, **settings: Any) -> TrainingSettings:
        """The settings of runs whose losses are compared: one batch for all GPUs, in pieces of one GPU's."""
        steps = 6 if options.small else STEPS
        asked: dict[str, Any] = {
            "steps": steps,
            "batch_size": counts_of(options)[-1] * work.batch_size,
            "micro_batch_size": work.batch_size,
            "sequence_length": work.sequence_length,
            "learning_rate": self.learning_rate,
            "warmup_steps": steps // 10,
            "checkpoint_every": steps // 2,
            "log_every": 1,
            "pad_vocab_to_multiple": 128,
            "parallel": self.parallel,
        }
        return TrainingSettings(**(asked | dict(options.settings) | settings))


def counts_of(options: Options) -> tuple[int, ...]:
    """How many GPUs are trained on, one after the other: the powers of two; only for the motions, of CPU processes.

    Raises:
        InputError: If there are fewer than two GPUs.
    """
    if options.small:
        return (1, 2, 4)
    if (there := torch.cuda.device_count()) < 2:
        raise InputError(f"torch sees {gpus(there)}, and scaling takes two or more; --small goes through the motions")
    return tuple(2**power for power in range(there.bit_length()))


def gpus(count: int) -> str:
    """``1 GPU``, ``2 GPUs``."""
    return f"{count} GPU{'s' * (count != 1)}"


def _train(
    work: Work, batches: Batches, settings: TrainingSettings, ranks: Ranks, place: CheckpointPlace | None = None
) -> tuple[History, float]:
    """What training gave, and the most memory that a GPU needed for it in GiB, 0 on a CPU."""
    on_gpu = ranks.device.type == "cuda"
    sharding = shard(pad_vocabulary(build(work.config, ranks.device), settings.pad_vocab_to_multiple), settings, ranks)
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(ranks.device)
    history = train(
        sharding.model,
        batches,
        settings,
        bytes_per_token=1.0,
        checkpoints=place,
        name=gpus(ranks.world_size),
        sharding=sharding,
    )
    most = torch.cuda.max_memory_allocated(ranks.device) if on_gpu else 0
    return history, max(float(each) for each in ranks.gather_all(torch.tensor(most / 2**30)))


def _figures(history: History, peak_memory: float) -> dict[str, float]:
    """Medians of the windows but the first, in which kernels are compiled."""
    figures = {
        metric: statistics.median(history.loss_curve[column][1:])
        for metric, column in (("throughput", "tokens_per_second"), ("MFU", "mfu"))
    }
    return figures | ({"peak memory": peak_memory} if peak_memory else {})


def _apart(name: str, when: str, curve: list[float], reference: list[float], rounding: list[float]) -> Iterator[Row]:
    """How far losses are from one GPU's, beside what rounding does to these."""
    ours, peer = (
        [abs(loss - other) for loss, other in zip(losses, reference, strict=True)] for losses in (curve, rounding)
    )
    for metric, of in (("largest", max), ("mean", statistics.mean)):
        difference, usual = max(of(ours), _LEAST), max(of(peer), _LEAST)
        yield Row(name, f"{metric} difference of losses {when}", difference, "nats", ROUNDING, usual)


def _text(options: Options, settings: TrainingSettings) -> TrainingBatches:
    """Batches of the sample's text."""
    split = open_split(Path(str(options.folder)) / "tokens", "train")
    return TrainingBatches(
        split, WindowSampler(split.n_tokens, settings.sequence_length, settings.seed), settings.batch_size
    )


def _checkpoints(options: Options) -> Path:
    return Path(str(options.folder)) / "checkpoints"


def _device() -> torch.device:
    """This process's GPU; a CPU where there is none."""
    return torch.device("cuda", launch.local_rank()) if torch.cuda.is_available() else torch.device("cpu")
