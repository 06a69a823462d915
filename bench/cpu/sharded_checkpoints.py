"""Sharded checkpoints of two processes, beside the storage that ``torch.distributed.checkpoint`` (DCP) comes with.

Ours writes safetensors and an index in JSON, sums every file, and checks the sums before it loads; torch's pickles its
metadata, and does neither. Both flush what they save to the disk. ``a step waits`` is the time until a save behind the
steps lets the training go on. Everyone loads what the system still holds in memory.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import TCPStore
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.state_dict_loader import load as load_by_torch
from torch.distributed.checkpoint.state_dict_saver import async_save
from torch.distributed.checkpoint.state_dict_saver import save as save_by_torch

from bench.benchmark import Options, main
from bench.measure import Measurement, alternate, timed
from bench.row import Row
from modelcore.gptx import GPTConfig
from modelcore.models import get_config
from modelcore.training import TrainingSettings
from modelcore.training.optimizer import Optimizer
from modelcore.training.parallel import join
from modelcore.training.sharded_state import ShardedCheckpoints
from modelcore.training.sharding import build

PROCESSES = 2
NAME = "sharded_checkpoints gpt2-small of 2 layers with AdamW, 2 processes"
PEER, PEER_BEHIND = "torch DCP", "torch DCP, async_save"


def rows(options: Options) -> Iterator[Row]:
    """Gigabytes a second of all processes together, and the milliseconds that a step waits."""
    context = multiprocessing.get_context("spawn")
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    with (
        tempfile.TemporaryDirectory(dir=Path.cwd()) as folder,  # /tmp is memory on some machines
        ProcessPoolExecutor(PROCESSES, mp_context=context) as pool,
    ):
        tasks = [pool.submit(_of_process, rank, store.port, Path(folder), options) for rank in range(PROCESSES)]
        (size, seconds), _ = (task.result() for task in tasks)
    for metric in ("save", "load"):
        speed = {who: size / each.median / 1e9 for who, each in seconds[metric].items()}
        yield Row(NAME, metric, speed["ours"], "GB/s", PEER, speed[PEER])
    waits = {who: 1000 * each.median for who, each in seconds["a step waits"].items()}
    yield Row(NAME, "a step waits", waits["ours"], "ms", PEER_BEHIND, waits[PEER_BEHIND])


def _of_process(rank: int, port: int, folder: Path, options: Options) -> tuple[int, dict[str, dict[str, Measurement]]]:
    """The bytes of the state as a whole, and by metric and contender the seconds; the same work on each process."""
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(PROCESSES),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # the store is there already, as with torchrun
    }
    settings = TrainingSettings(steps=1, batch_size=2, sequence_length=1, learning_rate=1e-4, parallel="fsdp")
    runs = 1 if options.small else 3
    with join(torch.device("cpu")) as ranks:
        model = build(_config(options), settings, ranks).model
        optimizer = Optimizer(model, settings)
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step(1.0, torch.ones(()))
        optimizer.zero_grad()
        state = {f"model/{name}": parameter.detach() for name, parameter in model.named_parameters()}
        state |= {f"optimizer/{name}": tensor for name, tensor in optimizer.state_tensors().items()}
        group = dist.new_group(backend="gloo")
        path = folder / "torch"
        with ShardedCheckpoints(str(folder / "ours"), folder / "scratch", {}, 1) as checkpoints:

            def save() -> None:
                checkpoints.save(1, model, {"optimizer": optimizer}, progress={}, random={})

            def save_all() -> None:
                save()
                checkpoints.finish()

            def torch_save() -> None:
                save_by_torch(state, storage_writer=FileSystemWriter(path), process_group=group)

            def load() -> None:
                checkpoints.resume(model, {"optimizer": optimizer})

            def torch_load() -> None:
                load_by_torch(state, storage_reader=FileSystemReader(path), process_group=group)

            def step_waits() -> float:
                seconds = timed(save, dist.barrier)()
                checkpoints.finish()
                return seconds

            def torch_step_waits() -> float:
                begun = []
                seconds = timed(lambda: begun.append(_async_save(state, path, group)), dist.barrier)()
                begun[0]()
                return seconds

            def both(ours: Callable[[], None], theirs: Callable[[], None]) -> dict[str, Measurement]:
                contenders = {"ours": timed(ours, dist.barrier), PEER: timed(theirs, dist.barrier)}
                return alternate(contenders, runs=runs)

            seconds = {"save": both(save_all, torch_save), "load": both(load, torch_load)}
            contenders = {"ours": step_waits, PEER_BEHIND: torch_step_waits}
            seconds["a step waits"] = alternate(contenders, runs=runs)
    return sum(tensor.nbytes for tensor in state.values()), seconds


def _async_save(state: dict[str, Tensor], path: Path, group: dist.ProcessGroup) -> Callable[[], object]:
    """Begins torch's save behind the steps; what is given waits for its end."""
    future = async_save(state, storage_writer=FileSystemWriter(path), process_group=group)
    return future.result  # type: ignore[union-attr]


def _config(options: Options) -> GPTConfig:
    config = get_config("gpt2-small")
    if options.small:
        return dataclasses.replace(config, n_layers=1, d_model=32, n_heads=2, n_kv_heads=2, d_ff=64, vocab_size=256)
    return dataclasses.replace(config, n_layers=2)


if __name__ == "__main__":
    main(rows)
