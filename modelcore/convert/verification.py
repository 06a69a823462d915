"""The check that ends a conversion: the program that owns the format loads the files and must agree with us."""

from __future__ import annotations

import copy
import logging
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from modelcore.errors import ConversionError
from modelcore.gptx import GPT
from modelcore.loading import loading
from modelcore.tokenizers import Tokenizer

logger = logging.getLogger(__name__)

TOLERANCE = 1e-4
"""Largest absolute difference of logits, in fp32 on the CPU, that a conversion may show."""

ROUNDING_BOUNDS = {"f16": 0.005, "bf16": 0.05, "q8_0": 0.1}
"""Where weights are rounded: the largest root mean square of the logits' differences, as a part of the logits' own
spread, their root mean square about their mean at each position."""

PROBE_TOKENS = 64
"""Length of the random sequences compared; shorter where the context is."""

PROBE_TEXTS = (
    "The quick brown fox jumps over the lazy dog.",
    " two  spaces,\n a line break\tand a tab ",
    "Ångström, naïve — 东京, 🙂",
)
"""Texts whose ids both tokenizers must agree on."""


def difference_from_transformers(model: GPT, folder: Path) -> float | None:
    """Loads ``folder`` with transformers and compares its logits with the model's.

    Args:
        model: What the folder must agree with; compared in fp32 on the CPU. Its vocabulary may end before the
            folder's, where that is padded.
        folder: A Hugging Face model folder.

    Returns:
        The largest absolute difference, or None if transformers is not installed.

    Raises:
        ConversionError: If transformers cannot load the folder, or the difference is over :data:`TOLERANCE`.
    """
    if find_spec("transformers") is None:
        logger.warning("transformers is not installed: %s was not loaded with it", folder)
        return None
    theirs = _load_with_transformers(folder)
    tokens = _probe(model)
    with torch.inference_mode():
        logits = theirs(tokens).logits[..., : model.config.vocab_size]
        return _checked((logits - _in_fp32(model)(tokens)).abs().max().item(), folder)


def difference_from_peft(model: GPT, adapter: Path, base: Path) -> float | None:
    """Loads ``adapter`` on ``base`` with peft and compares the logits with those of ``model``, adapted by us.

    Args:
        model: Our model with the adapter on it.
        adapter: A PEFT folder.
        base: The Hugging Face folder of the model without it.

    Returns:
        The largest absolute difference, or None if peft is not installed.

    Raises:
        ConversionError: If peft cannot load the adapter, or the difference is over :data:`TOLERANCE`.
    """
    if find_spec("peft") is None or find_spec("transformers") is None:
        logger.warning("peft is not installed: %s was not loaded with it", adapter)
        return None
    with loading():
        from peft import PeftModel

    plain = _load_with_transformers(base)
    try:
        theirs = PeftModel.from_pretrained(plain, adapter)
    except Exception as error:
        raise ConversionError(f"peft cannot load {adapter}: {error}") from error
    theirs.eval()
    tokens = _probe(model)
    with torch.inference_mode():
        return _checked((theirs(tokens).logits - _in_fp32(model)(tokens)).abs().max().item(), adapter)


def difference_from_ours(model: GPT, other: GPT, folder: Path) -> float:
    """Like :func:`difference_from_transformers`, for a folder that our own reader has loaded as ``other``."""
    tokens = _probe(model)
    with torch.inference_mode():
        return _checked((_in_fp32(other)(tokens) - _in_fp32(model)(tokens)).abs().max().item(), folder)


def difference_after_rounding(model: GPT, other: GPT, path: Path, bound: float) -> float:
    """Compares a model with the same one whose weights were rounded.

    Args:
        model: What the file was written from.
        other: What it holds.
        path: The file, for the message.
        bound: Largest relative difference, as in :data:`ROUNDING_BOUNDS`.

    Returns:
        The largest absolute difference of logits.

    Raises:
        ConversionError: If the relative difference is over ``bound``.
    """
    tokens = _probe(model)
    with torch.inference_mode():
        expected = _in_fp32(model)(tokens)
        difference = _in_fp32(other)(tokens) - expected
        spread = (expected - expected.mean(dim=-1, keepdim=True)).square().mean().sqrt()
        relative = (difference.square().mean().sqrt() / spread).item()
    if not relative <= bound:  # NaN is no pass
        raise ConversionError(
            f"logits of {path} differ from its source's by {relative:.3g} of their spread; rounding explains {bound}"
        )
    logger.info("rounding the weights moves the logits by %.2g %% of their spread", 100 * relative)
    return float(difference.abs().max())


def check_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Loads the tokenizer in ``folder`` with transformers, if installed, and compares ids and texts with ours.

    Raises:
        ConversionError: If it cannot be loaded, or one of :data:`PROBE_TEXTS` has other ids or comes back changed.
    """
    if find_spec("transformers") is None:
        return
    with loading():
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


def check_vocabulary(tokenizer: Tokenizer, path: Path) -> None:
    """Reads the vocabulary of a GGUF file and compares each token's text, and the special ids, with the tokenizer's.

    Raises:
        ConversionError: Naming the first token that differs.
    """
    from modelcore.convert.gguf import read_fields
    from modelcore.convert.gguf_vocabulary import token_bytes

    fields = read_fields(path)
    count = len(fields["tokenizer.ggml.tokens"])
    if count != tokenizer.vocab_size:
        raise ConversionError(f"{path} has {count} tokens; its source has {tokenizer.vocab_size}")
    for token in range(count):
        text, expected = token_bytes(fields, token), tokenizer.decode_bytes([token])
        if text != expected:
            raise ConversionError(f"token {token} of {path} stands for {text!r}, not for {expected!r}")
    for name, expected_id in (("bos", tokenizer.bos_id), ("eos", tokenizer.eos_id), ("padding", tokenizer.pad_id)):
        if fields.get(f"tokenizer.ggml.{name}_token_id") != expected_id:
            raise ConversionError(f"the {name} token of {path} is not {expected_id}, as in its source")


def _load_with_transformers(folder: Path) -> Any:
    """The folder's model, in fp32 and evaluation mode.

    Raises:
        ConversionError: If it cannot be loaded whole.
    """
    with loading():
        from transformers import AutoModelForCausalLM, PreTrainedModel  # noqa: F401, what every model imports first
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
    return theirs.eval()


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
