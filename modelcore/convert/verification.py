"""The check that ends a conversion: the program that owns the format loads the files and must agree with us."""

from __future__ import annotations

import copy
import logging
from importlib.util import find_spec
from pathlib import Path

import torch

from modelcore.gptx import GPT
from modelcore.tokenizers import Tokenizer

logger = logging.getLogger(__name__)

TOLERANCE = 1e-4
"""Largest absolute difference of logits, in fp32 on the CPU, that a conversion may show."""

PROBE_TOKENS = 64
"""Length of the random sequences compared; shorter where the context is."""

PROBE_TEXTS = (
    "The quick brown fox jumps over the lazy dog.",
    " two  spaces,\n a line break\tand a tab ",
    "Ångström, naïve — 东京, 🙂",
)
"""Texts whose ids both tokenizers must agree on."""


class ConversionError(RuntimeError):
    """A converted model does not compute what its source does; nothing of it was kept."""


def difference_from_transformers(model: GPT, folder: Path) -> float | None:
    """Loads ``folder`` with transformers and compares its logits with the model's.

    Args:
        model: What the folder must agree with; compared in fp32 on the CPU.
        folder: A Hugging Face model folder.

    Returns:
        The largest absolute difference, or None if transformers is not installed.

    Raises:
        ConversionError: If transformers cannot load the folder, or the difference is over :data:`TOLERANCE`.
    """
    if find_spec("transformers") is None:
        logger.warning("transformers is not installed: %s was not loaded with it", folder)
        return None
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging as their_logging

    bars = their_logging.is_progress_bar_enabled()
    their_logging.disable_progress_bar()
    try:
        theirs, report = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, output_loading_info=True
        )
    except Exception as error:
        raise ConversionError(f"transformers cannot load {folder}: {error}") from error
    finally:
        if bars:
            their_logging.enable_progress_bar()
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if report.get(kind):
            raise ConversionError(f"transformers found {kind} in {folder}: {sorted(map(str, report[kind]))[:3]}")
    theirs.eval()
    tokens = _probe(model)
    with torch.inference_mode():
        return _checked((theirs(tokens).logits - _in_fp32(model)(tokens)).abs().max().item(), folder)


def difference_from_ours(model: GPT, other: GPT, folder: Path) -> float:
    """Like :func:`difference_from_transformers`, for a folder that our own reader has loaded as ``other``."""
    tokens = _probe(model)
    with torch.inference_mode():
        return _checked((_in_fp32(other)(tokens) - _in_fp32(model)(tokens)).abs().max().item(), folder)


def check_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Loads the tokenizer in ``folder`` with transformers, if installed, and compares ids and texts with ours.

    Raises:
        ConversionError: If it cannot be loaded, or one of :data:`PROBE_TEXTS` has other ids or comes back changed.
    """
    if find_spec("transformers") is None:
        return
    from transformers import AutoTokenizer

    try:
        theirs = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        raise ConversionError(f"transformers cannot load the tokenizer in {folder}: {error}") from error
    for text in PROBE_TEXTS:
        ids, expected = theirs.encode(text, add_special_tokens=False), tokenizer.encode(text)
        if ids != expected:
            raise ConversionError(f"the tokenizer in {folder} turns {text!r} into {ids}, not into {expected}")
        if theirs.decode(ids) != tokenizer.decode(ids):
            raise ConversionError(f"the tokenizer in {folder} does not give {text!r} back")


def _probe(model: GPT) -> torch.Tensor:
    """Random ids, (2, time), the same at every call."""
    time = min(PROBE_TOKENS, model.config.context_length)
    return torch.randint(model.config.vocab_size, (2, time), generator=torch.Generator().manual_seed(0))


def _in_fp32(model: GPT) -> GPT:
    """The model itself if it is in fp32 on the CPU, or a copy that is."""
    if model.embedding.weight.dtype == torch.float32 and model.device.type == "cpu":
        return model.eval()
    return copy.deepcopy(model).to("cpu", torch.float32).eval()


def _checked(difference: float, folder: Path) -> float:
    if not difference <= TOLERANCE:  # NaN is no pass
        raise ConversionError(f"logits of {folder} differ from its source's by {difference:.3g}; allowed: {TOLERANCE}")
    return difference
