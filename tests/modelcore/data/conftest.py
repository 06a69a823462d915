import pytest

from modelcore.tokenizers import Tokenizer
from modelcore.tokenizers.training import train_sentencepiece

SENTENCE = "It is a truth universally acknowledged, that a single man in want of a good fortune needs a wife.\n"


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_sentencepiece([SENTENCE * 20], folder, vocab_size=320, algorithm="bpe", seed=0)
    return Tokenizer.load(folder)
