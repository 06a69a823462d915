"""What training stages write, known without torch: the stages that leave training to a job do without it."""

from __future__ import annotations

from modelcore.stages.outputs import Output
from modelcore.tokenizers import TOKENIZER_FILES

MODEL = Output("native model", "config.json", '"modelcore"', (*TOKENIZER_FILES, "model.safetensors", "training.json"))
ADAPTER = Output("adapter", "adapter_config.json", '"peft_type"', ("adapter_model.safetensors", "base_model.json"))
