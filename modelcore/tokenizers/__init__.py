"""Tokenizers: SentencePiece training, encoding and decoding without loss, and export to the Hugging Face formats."""

from modelcore.tokenizers.streaming import StreamDecoder
from modelcore.tokenizers.tokenizer import TOKENIZER_FILES, Tokenizer, copy_tokenizer, find_tokenizer, has_tokenizer

__all__ = ["TOKENIZER_FILES", "StreamDecoder", "Tokenizer", "copy_tokenizer", "find_tokenizer", "has_tokenizer"]
