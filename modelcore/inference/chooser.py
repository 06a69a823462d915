"""The next token of every row of a batch, each by settings, random numbers and history of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from modelcore.inference.samplers import History, SamplingConfig, adjust, bias_vector, draw, greedy


class TokenChooser:
    """Chooses tokens for a batch of texts.

    A row's choice depends on its own logits, settings and tokens alone. Rows that differ in nothing but the seed go
    through the rules together.

    Args:
        samplings: The settings of each row.
        prompts: The ids of each row's prompt.
        vocab_size: Number of ids.
        device: Where the logits will be; random numbers are drawn there.

    Attributes:
        samplings: The settings of the rows that are left.

    Raises:
        InputError: If a ``logit_bias`` names an id outside the vocabulary.
    """

    def __init__(
        self,
        samplings: Sequence[SamplingConfig],
        prompts: Sequence[Sequence[int]],
        vocab_size: int,
        device: torch.device,
    ) -> None:
        self.vocab_size = vocab_size
        self._device = device
        self.samplings = list(samplings)
        self._generators = [torch.Generator(device).manual_seed(sampling.seed) for sampling in samplings]
        reads_history = any(sampling.reads_history for sampling in samplings)
        self._history = History.of(prompts, vocab_size, device) if reads_history else None
        self._groups = self._grouped()

    def choose(self, logits: Tensor) -> Tensor:
        """One token a row, without asking the device for anything.

        Args:
            logits: (batch, vocab), as the model gives them.

        Returns:
            (batch,) int64 ids. The id ``vocab_size``, which does not exist, marks a row without a finite logit.
        """
        logits = logits.float()
        chosen = torch.empty(len(self.samplings), dtype=torch.long, device=logits.device)
        for sampling, rows, index, bias in self._groups:
            history = self._history.rows(index) if self._history is not None else None
            own = logits if len(self._groups) == 1 else logits[index]
            scores = adjust(own, sampling, history, bias)  # (group, V)
            tokens = greedy(scores) if sampling.temperature == 0.0 else draw(scores, self._uniform(rows))
            chosen[index] = tokens.masked_fill(~scores.amax(dim=-1).isfinite(), self.vocab_size)
        return chosen

    def record(self, tokens: Tensor) -> None:
        """Adds one token a row, (batch,) int64, to the history."""
        if self._history is not None:
            self._history = self._history.extended(tokens)

    def keep(self, rows: list[int]) -> None:
        """Keeps these rows alone, in this order: texts that have ended leave the batch."""
        self.samplings = [self.samplings[row] for row in rows]
        self._generators = [self._generators[row] for row in rows]
        if self._history is not None:
            self._history = self._history.rows(torch.tensor(rows, device=self._device))
        self._groups = self._grouped()

    def draw_uniform(self, numbers: Tensor) -> None:
        """The random numbers of the next choice, as :meth:`choose` would draw them; greedy rows draw none.

        Args:
            numbers: (batch, vocab) float64, filled with numbers in [0, 1).
        """
        for row, sampling in enumerate(self.samplings):
            if sampling.temperature != 0.0:
                numbers[row].uniform_(generator=self._generators[row])

    def _uniform(self, rows: list[int]) -> Tensor:
        """The next random numbers of these rows, (rows, vocab) float64 in [0, 1)."""
        numbers = torch.empty(len(rows), self.vocab_size, dtype=torch.float64, device=self._device)
        for place, row in enumerate(rows):
            numbers[place].uniform_(generator=self._generators[row])
        return numbers

    def _grouped(self) -> list[tuple[SamplingConfig, list[int], Tensor, Tensor | None]]:
        """The rows that share their rules: rules, rows, the rows on the device, and the rules' bias vector."""
        groups: list[tuple[SamplingConfig, list[int]]] = []
        for row, sampling in enumerate(self.samplings):
            rules = dataclasses.replace(sampling, seed=0)
            rows = next((rows for known, rows in groups if known == rules), None)
            if rows is None:
                groups.append((rules, [row]))
            else:
                rows.append(row)
        return [
            (
                rules,
                rows,
                torch.tensor(rows, device=self._device),
                bias_vector(rules.logit_bias, self.vocab_size, self._device),
            )
            for rules, rows in groups
        ]
