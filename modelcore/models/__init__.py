"""The models by name, the files a trained one is kept in, and each architecture's map to Hugging Face."""

from modelcore.models.native import load_model, save_model, tokenizer_path
from modelcore.models.presets import PRESETS, get_config

__all__ = ["PRESETS", "get_config", "load_model", "save_model", "tokenizer_path"]
