"""Adapters of Hugging Face's PEFT: read on their base, and written anew in our form with the base's digest.

Both sides keep LoRA adapters in PEFT's own format (:mod:`modelcore.adapters.peft_format`). What a conversion adds: one
that peft saved may name its modules by a pattern or keep a copy of the head; ours names them in a list, holds nothing
of the base, and records which base it belongs to, so that it is never put on another one.
"""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path

from modelcore.adapters import load_adapter, save_adapter
from modelcore.convert.huggingface import write_huggingface
from modelcore.convert.verification import difference_from_ours, difference_from_peft
from modelcore.gptx import GPT


def rewrite_adapter(source: Path, folder: Path, model: GPT, native_base: Path | None) -> tuple[float, bool]:
    """Writes the adapter in ``source`` into ``folder``, and checks both on the base, by peft too if it is installed.

    Args:
        source: A PEFT folder.
        folder: An existing folder, usually a temporary one.
        model: The base; it is changed.
        native_base: The native folder that ``model`` was loaded from, whose digest is checked and recorded; None for
            a base of another format.

    Returns:
        The largest difference of logits, and whether peft has loaded both.

    Raises:
        InputError: If the adapter is damaged, of an unknown kind, or was trained on another base.
        ConversionError: If the adapter written, or peft, does not compute what the source does here.
    """
    plain = copy.deepcopy(model)
    adapted = load_adapter(source, model, base=native_base)
    save_adapter(folder, adapted, base=native_base)
    written = load_adapter(folder, copy.deepcopy(plain), base=native_base)
    differences: list[float | None] = [difference_from_ours(adapted, written, folder)]
    with tempfile.TemporaryDirectory() as base:
        write_huggingface(Path(base), plain, None)
        differences += [difference_from_peft(adapted, adapter, Path(base)) for adapter in (source, folder)]
    known = [difference for difference in differences if difference is not None]
    return max(known), len(known) == len(differences)
