"""Decoding on a GPU without waiting for the host: one token's way through the model, captured and replayed.

A token of a small model takes a GPU less time than it takes Python to launch the hundred kernels of its layers. So the
whole step, with the choice of the token, is captured in a CUDA graph and launched as one; and the host looks at a token
only while the next one is made already.

The path is taken by itself where it can be: on a GPU with Triton, for the models and sizes that
:mod:`modelcore.kernels` knows. Everything else goes the ordinary way.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from modelcore.gptx import GPT, KVCache
from modelcore.inference.chooser import TokenChooser
from modelcore.kernels import runs_kernels

if TYPE_CHECKING:
    from modelcore.kernels.decode_step import DecodeStep
    from modelcore.kernels.weights import DecodeWeights

WORTH_CAPTURING = 32
"""Fewest tokens to come for which a step is captured; one that is captured already is used for any number."""

_SLOTS_MULTIPLE = 256  # so that texts of nearly the same length share a captured step
_MOST_BYTES_KEPT = 2**28  # keys and values of a step that waits for its next use


class CapturedStep:
    """A :class:`~modelcore.kernels.decode_step.DecodeStep` of one model, and the CUDA graph of its launches.

    Lent to one generation at a time, by :meth:`lend`. It keeps no weights, only where they lay when it was captured.

    Attributes:
        cache: To read the prompts into.
    """

    def __init__(self, model: GPT, rows: int, slots: int, weights: DecodeWeights) -> None:
        from modelcore.kernels.decode_step import DecodeStep

        self._step: DecodeStep = DecodeStep(model.config, rows, slots, weights)
        self._places = weights.places()
        self._weights: DecodeWeights | None = weights
        self._graph: torch.cuda.CUDAGraph | None = None
        self._launched = False
        on_gpu = weights.embedding.is_cuda
        self._copies = [torch.empty(rows, dtype=torch.long, pin_memory=on_gpu) for _ in range(2)]
        self._copied = [torch.cuda.Event() for _ in range(2)] if on_gpu else []  # type: ignore[no-untyped-call]
        self._turn = 0

    @classmethod
    def lend(cls, model: GPT, rows: int, slots: int, most: int) -> CapturedStep | None:
        """A step for a batch, or None where the ordinary way is to be gone.

        Args:
            model: The model, in evaluation mode.
            rows: Number of texts.
            slots: Most tokens of a text.
            most: Most tokens to come.
        """
        if not runs_kernels(model.device) or torch.is_autocast_enabled(model.device.type):
            return None
        from modelcore.kernels.decode_step import MOST_ROWS
        from modelcore.kernels.weights import read_weights

        weights = read_weights(model, slots) if rows <= MOST_ROWS else None
        if weights is None:
            return None
        step = _idle.pop(model, None)
        if step is not None and step._fits(rows, slots, weights):
            step._weights = weights
            return step
        if most < WORTH_CAPTURING:
            if step is not None:
                _idle[model] = step
            return None
        room = min(model.config.context_length, -(-slots // _SLOTS_MULTIPLE) * _SLOTS_MULTIPLE)
        return cls(model, rows, room if read_weights(model, room) is not None else slots, weights)

    def _fits(self, rows: int, slots: int, weights: DecodeWeights) -> bool:
        return self._step.rows == rows and self.cache.slots >= slots and self._places == weights.places()

    def give_back(self, model: GPT) -> None:
        """Ends what it was lent for. It waits for the model's next generation, unless it is large."""
        self._weights = None
        self.cache.rewind([0] * self._step.rows)
        if self.cache.nbytes <= _MOST_BYTES_KEPT:
            _idle[model] = self

    @property
    def cache(self) -> KVCache:
        """To read the prompts into."""
        return self._step.cache

    def tokens(self, first: Tensor, chooser: TokenChooser, most: Callable[[], int]) -> Iterator[list[int]]:
        """Yields each row's next token, step after step; one more step runs already.

        A row that is over goes on with the rest; what becomes of it means nothing.

        Args:
            first: (rows,) int64, the tokens that follow what the cache holds.
            chooser: Whose settings and random numbers count.
            most: How many steps may follow in all; asked before each.
        """
        self._step.tokens.copy_(first)
        self._step.lengths.copy_(self.cache.lengths)
        self._step.set_rules(chooser.samplings)
        chooser.record(first)
        ahead: deque[Callable[[], list[int]]] = deque()
        launched = 0
        while True:
            with torch.cuda.device(first.device) if first.is_cuda else nullcontext():  # Triton launches on the current
                while len(ahead) < 2 and launched < most():
                    self._launch(chooser)
                    ahead.append(self._look())
                    launched += 1
            if not ahead:
                return
            yield ahead.popleft()()

    def _launch(self, chooser: TokenChooser) -> None:
        """Makes every row's next token, without waiting."""
        assert self._weights is not None  # noqa: S101  (lent)
        step, chooses = self._step, self._step.can_choose(chooser.samplings)
        if chooses:
            chooser.draw_uniform(step.uniform)
        if not self._launched or not step.tokens.is_cuda:
            step.launch(self._weights)  # the first time the kernels are compiled and loaded, which no capture allows
            self._launched = True
        else:
            if self._graph is None:
                self._graph = self._captured(self._weights)
            self._graph.replay()
        if not chooses:
            step.tokens.copy_(chooser.choose(step.logits))
            chooser.record(step.tokens)

    def _captured(self, weights: DecodeWeights) -> torch.cuda.CUDAGraph:
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream(self._step.tokens.device)  # type: ignore[no-untyped-call]
        with torch.cuda.stream(stream):
            graph.capture_begin(capture_error_mode="thread_local")
            self._step.launch(weights)
            graph.capture_end()
        return graph

    def _look(self) -> Callable[[], list[int]]:
        """Has the tokens copied to the host; the function waits for them."""
        copy, turn = self._copies[self._turn], self._turn
        self._turn = 1 - turn
        copy.copy_(self._step.tokens, non_blocking=True)
        if self._copied:
            self._copied[turn].record()

        def wait() -> list[int]:
            if self._copied:
                self._copied[turn].synchronize()
            return copy.tolist()

        return wait


_idle: WeakKeyDictionary[GPT, CapturedStep] = WeakKeyDictionary()
"""The step that each model used last, while nobody uses it."""
