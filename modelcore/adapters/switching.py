"""Several adapters on one base: each row of a batch uses its own, or none, and the base is held once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, cast

import torch
from torch import Tensor, nn

from modelcore.adapters.layers import LoRALayer
from modelcore.adapters.lora import lora_layers
from modelcore.adapters.peft_format import load_adapter
from modelcore.errors import InputError
from modelcore.gptx import GPT


class AdapterSwitch:
    """Puts adapters beside a model under names, to be chosen row by row.

    For example::

        switch = AdapterSwitch(model)
        switch.add("austen", Path("austen"))
        with switch.choose(["austen", None]):
            logits = model(tokens)  # row 0 by the adapter, row 1 by the base alone

    Where nothing is chosen the model is its base. The adapters are for inference: they are frozen, without dropout.

    Args:
        model: A plain model, its blocks quantized or not, already on its device; changed in place.

    Raises:
        ValueError: If the model has an adapter already.
    """

    def __init__(self, model: GPT) -> None:
        if any(True for _ in lora_layers(model)):
            raise ValueError("the model has an adapter already; give the plain model and add the adapter by name")
        self.model = model
        self.names: list[str] = []
        self.active: AdapterChoice | None = None
        self._layers: dict[str, _SwitchedLayer] = {}

    def add(self, name: str, folder: Path, base: Path | None = None) -> None:
        """Adds the adapter in ``folder`` under a name; arguments and errors as in :func:`load_adapter`.

        Raises:
            InputError: If the name is taken, or the adapter cannot be loaded; the others are then as they were.
        """
        if name in self.names:
            raise InputError(f"an adapter is called {name!r} already; give this one another name")
        for place, layer in self._layers.items():
            self.model.set_submodule(place, layer.base)
        try:
            load_adapter(folder, self.model, base)
            for place, adapted in lora_layers(self.model):
                adapted.eval().requires_grad_(False)
                self._layers.setdefault(place, _SwitchedLayer(adapted.base, self)).adapters[name] = adapted
            self.names.append(name)
        finally:
            for place, adapted in list(lora_layers(self.model)):
                self.model.set_submodule(place, adapted.base)
            for place, layer in self._layers.items():
                self.model.set_submodule(place, layer)

    def choose(self, names: Sequence[str | None]) -> AdapterChoice:
        """What to run a batch in: one name a row, or None for the base alone.

        Raises:
            InputError: If no adapter has such a name.
        """
        for name in names:
            if name is not None and name not in self.names:
                known = ", ".join(self.names) or "none"
                raise InputError(f"no adapter is called {name!r}; known: {known}")
        return AdapterChoice(self, names)


class AdapterChoice:
    """Which adapter each row of a batch uses: a context, which may be entered again and again.

    Attributes:
        names: The adapter of each row, None for the base alone.
        rows: The rows of each adapter, int64.
    """

    def __init__(self, switch: AdapterSwitch, names: Sequence[str | None]) -> None:
        self._switch = switch
        self._before: AdapterChoice | None = None
        self.names = tuple(names)
        self.rows = {
            name: torch.tensor([row for row, other in enumerate(names) if other == name], device=switch.model.device)
            for name in dict.fromkeys(names)
            if name is not None
        }

    def kept(self, rows: Sequence[int]) -> AdapterChoice:
        """The choice for these rows alone, in this order: for a batch that others have left."""
        return AdapterChoice(self._switch, [self.names[row] for row in rows])

    def __enter__(self) -> Self:
        self._before, self._switch.active = self._switch.active, self
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._switch.active = self._before


class _SwitchedLayer(nn.Module):
    """A layer with the corrections that several adapters have for it.

    Attributes:
        base: The layer they all share.
        adapters: What each adapter makes of it, by name; not every adapter changes every layer.
    """

    def __init__(self, base: nn.Module, switch: AdapterSwitch) -> None:
        super().__init__()
        self.base = base
        self.switch = switch
        self.adapters: dict[str, LoRALayer] = {}

    @property
    def weight(self) -> Tensor:
        """The base's weight, for those who ask for its dtype or device."""
        return cast(Tensor, self.base.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Maps a batch, (rows, …), as the base does, and corrects each row as its adapter does.

        Raises:
            InputError: If the batch has another number of rows than were chosen for.
        """
        y = cast(Tensor, self.base(x))
        choice = self.switch.active
        if choice is None:
            return y
        if len(choice.names) != x.shape[0]:
            raise InputError(f"adapters are chosen for {len(choice.names)} rows, the batch has {x.shape[0]}")
        for name, rows in choice.rows.items():
            if (adapted := self.adapters.get(name)) is not None:
                y = y.index_copy(0, rows, adapted.corrected(x[rows], y[rows]))
        return y
