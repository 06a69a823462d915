"""Low-rank adapters: training them, keeping them in PEFT's format, merging them into their base."""

from modelcore.adapters.layers import LoRAConfig
from modelcore.adapters.lora import add_lora, lora_parameters, merge
from modelcore.adapters.peft_format import load_adapter, save_adapter
from modelcore.adapters.switching import AdapterChoice, AdapterSwitch

__all__ = [
    "AdapterChoice",
    "AdapterSwitch",
    "LoRAConfig",
    "add_lora",
    "load_adapter",
    "lora_parameters",
    "merge",
    "save_adapter",
]
