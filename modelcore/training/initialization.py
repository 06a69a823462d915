"""Weights drawn where they will lie: each process of a run in pieces draws its own part, and never holds the whole.

A model is made on torch's meta device, where a tensor has a shape and no memory, and what its constructor would have
drawn is written down. Once the model lies over the ranks, each of them draws all numbers again, one tensor at a time,
in the constructor's order and from the same generator, and keeps what is its own. So the weights, and the generator
after them, are those of one process, bit for bit; and nothing has to be sent.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from modelcore.gptx import GPT, GPTConfig
from modelcore.training.local import local


class DeferredModel:
    """A model whose weights are still to be drawn.

    Args:
        config: The model's shape.

    Attributes:
        model: The model; its parameters are on the meta device, its buffers on the CPU.
    """

    def __init__(self, config: GPTConfig) -> None:
        recorder = _Recorder()
        with recorder:
            self.model = GPT(config)
        self._draws = recorder.draws
        self._names = {parameter: name for name, parameter in self.model.named_parameters()}

    @torch.no_grad()
    def draw(self) -> None:
        """Draws from torch's global generator what the constructor would have, and keeps this rank's part of it.

        The model has been laid over the ranks, and has memory (:func:`allocate`).
        """
        from modelcore.training.pieces import pieces_of_part  # imports torch's compiler

        parameters = dict(self.model.named_parameters())
        for parameter in parameters.values():
            local(parameter).zero_()  # rows that pad a vocabulary are drawn by nobody
        pieces = pieces_of_part(self.model, parameters)
        last = {parameter: number for number, (parameter, _) in enumerate(self._draws)}
        for number, (parameter, draw) in enumerate(self._draws):
            whole = torch.empty_like(parameter, device="cpu")
            draw(whole)
            # A module of torch's draws first, the model again; of a head that is tied only the generator remembers.
            if last[parameter] != number or parameter not in self._names:
                continue
            for offset, box in pieces[self._names[parameter]].boxes.items():
                box.copy_(whole[tuple(slice(o, o + n) for o, n in zip(offset, box.shape, strict=True))])


def allocate(model: GPT, device: torch.device) -> None:
    """Brings a model to a device; parameters on the meta device get memory there, whose content is anything."""
    if not model.embedding.weight.is_meta:
        model.to(device)
        return
    buffers = dict(model.named_buffers())
    model.to_empty(device=device)
    for name, buffer in buffers.items():
        model.get_buffer(name).copy_(buffer)
    if model.config.tie_embeddings:  # two parameters were made of the one
        model.head.weight = model.embedding.weight


class _Recorder(TorchFunctionMode):
    """Makes parameters on the meta device, and writes down what would have been drawn into them."""

    def __init__(self) -> None:
        super().__init__()
        self.draws: list[tuple[nn.Parameter, Callable[[Tensor], Any]]] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.empty:  # torch's modules make their parameters so, and nothing else
            return func(*args, **{**kwargs, "device": "meta"})
        rest: list[Any] = []
        if getattr(func, "__module__", None) == "torch.nn.init":
            parameter = kwargs.pop("tensor")
        elif func in (Tensor.fill_, Tensor.zero_):
            parameter, *rest = args
        else:
            return func(*args, **kwargs)
        self.draws.append((parameter, lambda tensor: func(tensor, *rest, **kwargs)))
        return parameter
