"""Greedy decoding with gpt2-small at its real size, in fp32 and int8, one text at a time, beside transformers.

A step reads all weights but the tables that are looked up once, so the memory's bandwidth by their bytes is the most
steps a second that can be had: the roof.
"""

from __future__ import annotations

import copy
import dataclasses
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import nn

from bench.benchmark import Options, main
from bench.cpu.processor import bandwidth
from bench.measure import Measurement, alternate, note, timed
from bench.row import Row
from modelcore.gptx import GPT, GPTConfig
from modelcore.inference import SamplingConfig, generate
from modelcore.models import get_config
from modelcore.quantization import quantize_model

PROMPT_TOKENS, NEW_TOKENS = 16, 128
PEER, LLAMA_CPP = "Hugging Face", "llama.cpp"
NAME = "decoding gpt2-small"
GREEDY = SamplingConfig(temperature=0)

Continue = Callable[[int], list[int]]
"""Continues the prompt by so many tokens, and gives them."""


def rows(options: Options) -> Iterator[Row]:
    """Throughput, its share of the roof, and the time to the first token; then the same model in int8."""
    model = make_model(options)
    count = 8 if options.small else NEW_TOKENS
    prompt = torch.randint(
        model.config.vocab_size, (PROMPT_TOKENS,), generator=torch.Generator().manual_seed(0)
    ).tolist()
    rounded = quantize_model(copy.deepcopy(model), "int8", head=True)
    read = {"ours": read_bytes(model), "ours in int8": read_bytes(rounded)}  # later it is packed
    contenders: dict[str, Continue] = {
        "ours": ours(model, prompt),
        PEER: huggingface(model, prompt),
        "ours in int8": ours(rounded, prompt),
    }
    with tempfile.TemporaryDirectory() as folder:
        if "llamacpp" in options.peers:
            contenders |= llama_cpp(options.peers["llamacpp"], model, prompt, Path(folder))
        _tell_whether_equal(contenders, count)
        whole = _seconds(contenders, count, 1 if options.small else 3)
        first = _seconds(contenders, 1, 1 if options.small else 7)
    speed = {who: count / seconds.median for who, seconds in whole.items()}
    first_token = {who: 1e3 * seconds.median for who, seconds in first.items()}
    roof = bandwidth(options.small)
    for name, who, peers in (
        (f"{NAME}, fp32", "ours", {PEER: PEER, f"{LLAMA_CPP} f32": f"{LLAMA_CPP} f32"}),
        (
            f"{NAME}, int8",
            "ours in int8",
            {"ours in fp32": "ours", PEER: PEER, f"{LLAMA_CPP} q8_0": f"{LLAMA_CPP} q8_0"},
        ),
    ):
        for shown, peer in peers.items():
            if peer in speed:
                yield Row(name, "throughput", speed[who], "tok/s", shown, speed[peer])
        share = read[who] / roof
        theirs = (PEER, speed[PEER] * share) if who == "ours" else ("", None)
        yield Row(name, "share of the bandwidth's roof", speed[who] * share, "fraction", *theirs)
        shown, peer = next(iter(peers.items()))
        yield Row(name, "time to the first token", first_token[who], "ms", shown, first_token[peer])


def config_of(options: Options) -> GPTConfig:
    """The configuration of gpt2-small, or two narrow layers of it."""
    config = get_config("gpt2-small")
    sizes = {
        "vocab_size": 64,
        "context_length": 32,
        "n_layers": 2,
        "d_model": 32,
        "n_heads": 2,
        "n_kv_heads": 2,
        "d_ff": 64,
    }
    return dataclasses.replace(config, **sizes) if options.small else config  # type: ignore[arg-type]


def make_model(options: Options) -> GPT:
    """The model with random weights that are the same every time."""
    torch.manual_seed(0)
    return GPT(config_of(options)).eval()


def ours(model: GPT, prompt: list[int]) -> Continue:
    """:func:`modelcore.inference.generate`."""
    return lambda count: generate(model, [prompt], GREEDY, max_tokens=count)[0].tokens


def huggingface(model: GPT, prompt: list[int]) -> Continue:
    """``generate`` of transformers, with its default cache."""
    from bench.cpu.hugging_face import as_huggingface

    peer = as_huggingface(model).eval()
    ids = torch.tensor([prompt])
    mask = torch.ones_like(ids)

    def go_on(count: int) -> list[int]:
        made: list[int] = peer.generate(
            ids, attention_mask=mask, do_sample=False, min_new_tokens=count, max_new_tokens=count, pad_token_id=0
        )[0, len(prompt) :].tolist()
        return made

    return go_on


def llama_cpp(package: Path, model: GPT, prompt: list[int], folder: Path) -> dict[str, Continue]:
    """llama.cpp with as many threads as torch has, with the same weights in fp32 and in its own eight bits."""
    import sys

    from modelcore.convert.gguf import DType, write_gguf

    sys.path.append(str(package))  # behind this environment's own packages
    import llama_cpp

    def load(dtype: DType) -> Continue:
        file = folder / f"{dtype}.gguf"
        write_gguf(file, model, None, name="benchmark", dtype=dtype)
        peer = llama_cpp.Llama(
            str(file),
            n_ctx=model.config.context_length,
            n_threads=torch.get_num_threads(),
            n_threads_batch=torch.get_num_threads(),
            verbose=False,
        )

        def go_on(count: int) -> list[int]:
            peer.reset()
            tokens = peer.generate(prompt, temp=0.0, repeat_penalty=1.0)
            return [next(tokens) for _ in range(count)]

        return go_on

    return {f"{LLAMA_CPP} f32": load("f32"), f"{LLAMA_CPP} q8_0": load("q8_0")}


def read_bytes(model: GPT) -> int:
    """Bytes of weights that a step reads: all but the tables that are looked up; a tied head is read."""
    tensors = {id(each): each.nbytes for each in (*model.parameters(), *model.buffers())}
    tables: list[nn.Module | None] = [model.position_embedding]
    if getattr(model.head, "weight", None) is not model.embedding.weight:
        tables.append(model.embedding)
    unread = sum(parameter.nbytes for table in tables if table is not None for parameter in table.parameters())
    return sum(tensors.values()) - unread


def _seconds(contenders: dict[str, Continue], count: int, runs: int) -> dict[str, Measurement]:
    def run(go_on: Continue) -> Callable[[], float]:
        return timed(lambda: go_on(count))

    # Everyone has run once, when the tokens were compared.
    return alternate({who: run(go_on) for who, go_on in contenders.items()}, runs=runs, warmup=0)


def _tell_whether_equal(contenders: dict[str, Continue], count: int) -> None:
    """Everyone continues the same prompt with the same weights; rounding may part them."""
    expected = contenders["ours"](count)
    for who, go_on in contenders.items():
        made = go_on(count)
        same = next((place for place in range(count) if made[place] != expected[place]), count)
        note(f"{who}: {same} of {count} tokens as ours in fp32")


if __name__ == "__main__":
    main(rows)
