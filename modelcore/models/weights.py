"""Weights in a safetensors file: mapped, held against what a model needs, and made its parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.overrides import TorchFunctionMode

from modelcore.errors import InputError
from modelcore.gptx import GPT, GPTConfig

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def map_tensors(path: Path, *, apart: bool = False) -> dict[str, Tensor]:
    """All tensors of a safetensors file, by name, mapped into memory: a page is read when it is first used.

    Args:
        path: The file.
        apart: Map the file anew for each tensor, for who will let them go one by one: the pages of one are then given
            back with it, and not with the last of all. It costs address space, the file's size for each tensor.

    Raises:
        InputError: If the file is missing, truncated or no safetensors file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (it is no mapping)
        for name in tensors if apart else ():
            with safe_open(path, framework="pt") as file:
                tensors[name] = file.get_tensor(name)
        return tensors
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{path} is missing") from None
    except (SafetensorError, OSError) as error:
        if path.is_dir():
            raise InputError(f"{path} is a folder; a safetensors file is needed") from None
        if _is_pickle(path):
            raise InputError(
                f"{path} is no safetensors file but a pickle, which can run code when it is read; it was not opened: "
                "save the weights as safetensors"
            ) from None
        raise InputError(f"{path} is truncated or no safetensors file: {error}") from None


def check_tensors(source: Path, tensors: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]]) -> None:
    """Compares a file's tensors with what the model needs.

    Args:
        source: Where they come from, for the message.
        tensors: The tensors found, by name.
        expected: The shape of each tensor needed.

    Raises:
        InputError: Naming the first tensors that are missing, unexpected, of another shape, or not all of one
            floating-point type.
    """
    if missing := expected.keys() - tensors.keys():
        raise InputError(f"{source} lacks {len(missing)} of the tensors needed: {_some(missing)}")
    if unexpected := tensors.keys() - expected.keys():
        raise InputError(f"{source} has {len(unexpected)} tensors that match nothing in the model: {_some(unexpected)}")
    first_name, first = next(iter(tensors.items()))
    for name, tensor in tensors.items():
        if tuple(tensor.shape) != expected[name]:
            raise InputError(f"{source}: {name} has shape {tuple(tensor.shape)}; {expected[name]} is needed")
        if tensor.dtype not in _DTYPES:
            raise InputError(f"{source}: {name} is {tensor.dtype}; weights must be float32, bfloat16 or float16")
        if tensor.dtype != first.dtype:
            raise InputError(f"{source}: {name} is {tensor.dtype}, {first_name} is {first.dtype}; one type is needed")


def check_depth(source: Path, tensors: Mapping[str, Tensor], config: GPTConfig) -> None:
    """Refuses a configuration of more layers than a file has tensors, before memory is spent on building them.

    Raises:
        InputError: Naming both numbers.
    """
    if config.n_layers >= len(tensors):
        raise InputError(f"{source} holds {len(tensors)} tensors; a model of {config.n_layers} layers has more")


def empty_model(config: GPTConfig) -> GPT:
    """A model whose weights are still memory nobody has touched; no random number is drawn.

    Raises:
        InputError: If not even that fits the address space: the configuration is wrong, or the machine too small.
    """
    try:
        with _WithoutInitialization():
            return GPT(config)
    except RuntimeError as error:  # the allocator's
        raise InputError(f"a model of {config.num_params():,} parameters does not fit into memory") from error


def tensor_shapes(model: GPT) -> dict[str, tuple[int, ...]]:
    """Names and shapes of what is stored of a model: all its parameters, but a tied head."""
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if model.config.tie_embeddings:
        del shapes["head.weight"]
    return shapes


def fill_model(model: GPT, tensors: dict[str, Tensor]) -> GPT:
    """Makes ``tensors`` the model's parameters, without copying, and sets it to evaluation mode.

    Args:
        model: From :func:`empty_model`.
        tensors: Every parameter by name, in the right shape; ``head.weight`` left out if it is tied.
    """
    tied = model.config.tie_embeddings
    model.load_state_dict(tensors | ({"head.weight": tensors["embedding.weight"]} if tied else {}), assign=True)
    if tied:  # assigning made two parameters of the one tensor
        model.head.weight = model.embedding.weight
    return model.eval()


def _is_pickle(path: Path) -> bool:
    """Whether a file begins as a pickle does, bare or in the archive of ``torch.save``.

    A safetensors file begins with the length of its header, in eight bytes of which the last four are zero.
    """
    with open(path, "rb") as file:
        start = file.read(8)
    return start[:4] == b"PK\x03\x04" or (start[:1] == b"\x80" and start[4:] != bytes(4))


class _WithoutInitialization(TorchFunctionMode):
    """Leaves out the drawing of random weights that are about to be replaced."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        return kwargs["tensor"] if getattr(func, "__module__", None) == "torch.nn.init" else func(*args, **kwargs)


def _some(names: Iterable[str]) -> str:
    """The first three names, and how many more there are."""
    ordered = sorted(names)
    rest = f" and {len(ordered) - 3} more" if len(ordered) > 3 else ""
    return ", ".join(ordered[:3]) + rest
