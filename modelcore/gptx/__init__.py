"""The decoder-only transformer: one architecture, of which GPT-2, Llama, Mistral, BLOOM and MPT are configurations."""

from modelcore.gptx.config import GPTConfig
from modelcore.gptx.kv_cache import KVCache
from modelcore.gptx.rope_scaling import RopeScaling
from modelcore.gptx.transformer import GPT, evaluating
from modelcore.gptx.vocab_padding import pad_vocabulary

__all__ = ["GPT", "GPTConfig", "KVCache", "RopeScaling", "evaluating", "pad_vocabulary"]
