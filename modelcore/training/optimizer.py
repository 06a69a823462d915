"""The optimizer of a model: AdamW, or Muon for the hidden matrices and AdamW for everything else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from modelcore.gptx import GPT
from modelcore.training.adamw import AdamW
from modelcore.training.muon import Muon
from modelcore.training.recipe import TrainingSettings


class Optimizer:
    """Updates a model's parameters.

    AdamW (Loshchilov and Hutter 2019) decays matrices only. With ``settings.optimizer == "muon"`` the matrices inside
    the blocks go to :class:`~modelcore.training.muon.Muon`, the fused ones (query, key and value; gate and up) part by
    part; embeddings, head, norms and biases stay with AdamW.

    Args:
        model: The model, already on its device.
        settings: Optimizer, learning rates, betas and weight decay are taken from here.
    """

    def __init__(self, model: GPT, settings: TrainingSettings) -> None:
        self._settings = settings
        named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        self._parameters = list(named.values())
        self.muon: Muon | None = None
        if settings.optimizer == "muon":
            matrices = {
                name: (parameter, _fused_rows(model, name, parameter))
                for name, parameter in named.items()
                if name.startswith("blocks.") and parameter.ndim == 2
            }
            self.muon = Muon(matrices, weight_decay=settings.weight_decay, iterations=settings.muon_iterations)
            named = {name: parameter for name, parameter in named.items() if name not in matrices}
        self._adamw_names = named
        decayed = [parameter for parameter in named.values() if parameter.ndim >= 2]
        others = [parameter for parameter in named.values() if parameter.ndim < 2]
        self.adamw = AdamW([(decayed, settings.weight_decay), (others, 0.0)], settings.betas)

    @torch.no_grad()
    def step(self, factor: float, taken: Tensor) -> None:
        """Moves the parameters along their gradients.

        Args:
            factor: What the peak learning rates are multiplied by.
            taken: 0-D fp32 on the model's device: 1, or 0 to leave parameters and state as they are, because the
                step is a spike or its gradients are not finite.
        """
        self.adamw.step(self._settings.learning_rate * factor, taken)
        if self.muon is not None:
            self.muon.step(self._settings.muon_learning_rate * factor, taken)

    def zero_grad(self) -> None:
        """Drops the gradients."""
        for parameter in self._parameters:
            parameter.grad = None

    def state_tensors(self) -> dict[str, Tensor]:
        """Everything but the parameters that the next step depends on, by name."""
        tensors = {
            f"adamw.{key}.{name}": value
            for name, parameter in self._adamw_names.items()
            for key, value in self.adamw.state.get(parameter, {}).items()
        }
        if self.muon is not None:
            tensors |= {f"muon.momentum.{name}": value for name, value in self.muon.state_tensors().items()}
        return tensors

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes over what :meth:`state_tensors` gave, on whatever device it lies."""
        for name, parameter in self._adamw_names.items():
            state = {
                key: tensors[f"adamw.{key}.{name}"].to(parameter.device)
                for key in ("step", "exp_avg", "exp_avg_sq")
                if f"adamw.{key}.{name}" in tensors
            }
            if state:
                self.adamw.state[parameter] = state
        if self.muon is not None:
            prefix = "muon.momentum."
            own = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
            self.muon.load_state_tensors(own)


def _fused_rows(model: GPT, name: str, parameter: nn.Parameter) -> Sequence[int]:
    """Rows of the matrices that a parameter holds one above the other."""
    if name.endswith("attention.qkv.weight"):
        return model.config.qkv_sizes
    if name.endswith("feedforward.up.weight") and model.config.feedforward == "swiglu":
        return (model.config.d_ff, model.config.d_ff)
    return (parameter.shape[0],)
