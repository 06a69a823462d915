"""Our models as transformers' own, with the same weights: the peer that is always there."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from modelcore.convert.huggingface import write_huggingface
from modelcore.gptx import GPT


def as_huggingface(model: GPT) -> Any:
    """The model of transformers that ``model`` exports to, in fp32 with transformers' default settings."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        write_huggingface(Path(folder), model, None)
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
