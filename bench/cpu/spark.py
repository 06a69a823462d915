"""Text on Spark, on all cores of this machine, beside the stages in one process: speed, and memory by who takes it.

It takes minutes, and so runs by name alone: ``python -m bench.cpu.spark``.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from bench.benchmark import Options, in_fresh_process, main
from bench.cpu.text import documents
from bench.measure import note
from bench.row import Row

SIZE = 64 << 20  # of the corpus, which Spark reads in two portions
VOCAB_SIZE = 2048
ENGINES = ("spark", "local")
PEER = "one process"
WHO = ("driver", "Java", "workers")
_SAMPLE_SECONDS = 0.2


def rows(options: Options) -> Iterator[Row]:
    """Megabytes of text a second, the start of Spark included, and mebibytes, of which each page counts once.

    Both write the same files. Every run is a process of its own; memory is the most that any run took.
    """
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as name:  # /tmp is memory on some machines
        folder = Path(name)
        megabytes = _write_inputs(folder, (1 << 20) if options.small else SIZE) / 1e6
        inside = dataclasses.replace(options, folder=folder)
        for stage in STAGES:
            found: dict[str, list[dict[str, Any]]] = {engine: [] for engine in ENGINES}
            for _ in range(1 if options.small else 3):
                for engine in ENGINES:
                    found[engine].append(in_fresh_process("bench.cpu.spark", f"{stage} {engine}", inside))
                    note(f"{stage} {engine} {found[engine][-1]}")
            speed = {
                engine: megabytes / statistics.median(each["seconds"] for each in of) for engine, of in found.items()
            }
            memory = {engine: max(each["all"] for each in of) for engine, of in found.items()}
            work = f"spark {stage} of {megabytes:.0f} MB"
            yield Row(work, "throughput", speed["spark"], "MB/s", PEER, speed["local"])
            yield Row(work, "peak memory", memory["spark"], "MiB", PEER, memory["local"])
            for who in WHO:
                yield Row(work, f"peak memory of {who}", max(each[who] for each in found["spark"]), "MiB")


def _write_inputs(folder: Path, size: int) -> int:
    """Writes the corpus and a tokenizer; returns how many bytes of text there are."""
    from modelcore.stages.train_tokenizer import train_tokenizer

    made = 0
    with open(folder / "corpus.jsonl", "w", encoding="utf-8") as corpus:
        for text in documents(size):
            corpus.write(json.dumps({"text": text}) + "\n")
            made += len(text)
    with open(folder / "some.txt", "w", encoding="utf-8") as some:
        some.writelines(text + "\n" for text in documents(min(size, 1 << 20)))
    train_tokenizer(corpus=folder / "some.txt", out=folder / "tokenizer", vocab_size=min(VOCAB_SIZE, size >> 11))
    return made


def _validate(folder: Path, engine: Any, out: Path) -> None:
    from modelcore.stages.validate_data import validate_data

    outputs: dict[str, Any] = {f"{name}_out": out / name for name in ("train", "heldout", "quarantine", "docs")}
    validate_data(corpus=str(folder / "corpus.jsonl"), engine=engine, **outputs)


def _tokenize(folder: Path, engine: Any, out: Path) -> None:
    from modelcore.stages.tokenize_corpus import tokenize_corpus

    inputs = {"corpus": folder / "corpus.jsonl", "heldout": folder / "some.txt", "tokenizer": folder / "tokenizer"}
    tokenize_corpus(**inputs, engine=engine, out=out)


STAGES: dict[str, Callable[[Path, Any, Path], None]] = {"validate_data": _validate, "tokenize_corpus": _tokenize}


def _measured(stage: str, engine: str, options: Options) -> dict[str, Any]:
    """Runs a stage in this process; tells the seconds that it took, and the memory of all processes and of some."""
    if options.folder is None:
        raise RuntimeError("a part is run by the whole, which gives its folder")
    peaks = dict.fromkeys((*WHO, "all"), 0.0)
    done = threading.Event()
    sampler = threading.Thread(target=_sample, args=(peaks, done))
    with tempfile.TemporaryDirectory(dir=options.folder) as out:
        sampler.start()
        started = time.perf_counter()
        try:
            STAGES[stage](options.folder, engine, Path(out) / "out")
        finally:
            seconds = time.perf_counter() - started
            done.set()
            sampler.join()
    return {"seconds": seconds, **peaks}


def _sample(peaks: dict[str, float], done: threading.Event) -> None:
    """Keeps the most memory that this process and those that it started were seen with, in MiB; seen at the end too.

    A page that several processes share counts for each in part (proportional set size).
    """
    import psutil

    this = psutil.Process()
    over = False
    while not over:
        over = done.wait(_SAMPLE_SECONDS)
        now = dict.fromkeys(WHO, 0.0)
        for process in [this, *this.children(recursive=True)]:
            try:
                who = "driver" if process == this else "Java" if process.name() == "java" else "workers"
                now[who] += process.memory_full_info().pss / (1 << 20)
            except psutil.Error:  # it has ended
                continue
        for who, size in {**now, "all": sum(now.values())}.items():
            peaks[who] = max(peaks[who], size)


PARTS = {f"{stage} {engine}": partial(_measured, stage, engine) for stage in STAGES for engine in ENGINES}

if __name__ == "__main__":
    main(rows, PARTS)
