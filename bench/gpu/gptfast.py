"""gpt-fast, from a checkout of it."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import torch

from bench.benchmark import Options
from bench.gpu.generation import TEMPERATURE, TOP_K, Request, figures, weight_bytes
from bench.gpu.work import TINYLLAMA, device_of
from modelcore.gptx import GPTConfig


def time_gptfast(request: Request, options: Options, weights: Literal["bf16", "int8"]) -> dict[str, float]:
    """Its figures for one text, the one-token step compiled as its command line does it with ``--compile``."""
    device, request = device_of(options), request.at(options)
    theirs, model = _build(options.peers["gptfast"], TINYLLAMA.at(options).config, device, weights)
    if device.type == "cuda":
        theirs.decode_one_token = torch.compile(theirs.decode_one_token, mode="reduce-overhead", fullgraph=True)
    size = weight_bytes(model, "tok_embeddings.weight")
    prompt = torch.tensor(request.prompts(options)[0], dtype=torch.int, device=device)
    sampling = {"temperature": TEMPERATURE, "top_k": TOP_K}

    def generate() -> Any:
        return theirs.generate(
            model, prompt, request.new_tokens, batch_size=1, interactive=False, draft_model=None, **sampling
        )

    generate()  # makes the cache that the first token alone needs too
    positions = torch.arange(request.prompt_tokens, device=device)

    @torch.no_grad()
    def first() -> int:
        return int(theirs.prefill(model, prompt.view(1, -1), positions, **sampling))

    return figures(generate, request, size, options, first)


def _build(folder: Path, config: GPTConfig, device: torch.device, weights: Literal["bf16", "int8"]) -> tuple[Any, Any]:
    """Its generating module, and its model of our shape with random weights."""
    sys.path.insert(0, str(folder))
    # Its own imports two tokenizers' libraries; nothing here is text.
    sys.modules["tokenizer"] = tokenizer = ModuleType("tokenizer")
    vars(tokenizer)["get_tokenizer"] = None
    shape = importlib.import_module("model")
    generating = importlib.import_module("generate")
    with torch.device("meta"):
        model = shape.Transformer(
            shape.ModelArgs(
                block_size=config.context_length,
                vocab_size=config.vocab_size,
                n_layer=config.n_layers,
                n_head=config.n_heads,
                dim=config.d_model,
                intermediate_size=config.d_ff,
                n_local_heads=config.n_kv_heads,
                norm_eps=config.norm_eps,
            )
        ).to(torch.bfloat16)
        if weights == "int8":
            model = importlib.import_module("quantize").WeightOnlyInt8QuantHandler(model).convert_for_runtime()
    model = model.to_empty(device=device).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.02)
        for buffer in model.buffers():
            # Rounded weights, and the size of a step between two of them.
            buffer.random_(-127, 128) if buffer.dtype == torch.int8 else buffer.fill_(2e-4)
    return generating, model
