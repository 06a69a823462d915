"""From a model and a prompt to text: samplers, generation with the key-value cache, and text in and out."""

from modelcore.loading import loading

with loading():  # torch, where it is not loaded yet
    from modelcore.inference.generate import Generation, generate, stream
    from modelcore.inference.samplers import SamplingConfig
    from modelcore.inference.speculative import SpeculativeDecoder
    from modelcore.inference.text import Completion, TextGenerator

__all__ = [
    "Completion",
    "Generation",
    "SamplingConfig",
    "SpeculativeDecoder",
    "TextGenerator",
    "generate",
    "stream",
]
