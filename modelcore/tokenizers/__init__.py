"""Tokenizers: SentencePiece training, encoding and decoding without loss, and export to the Hugging Face formats."""

from modelcore.tokenizers.streaming import StreamDecoder
from modelcore.tokenizers.tokenizer import Tokenizer

__all__ = ["StreamDecoder", "Tokenizer"]
