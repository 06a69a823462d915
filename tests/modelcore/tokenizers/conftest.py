from pathlib import Path

import pytest

from modelcore.tokenizers import Tokenizer
from modelcore.tokenizers.training import train_sentencepiece

EXAMPLES = Path(__file__).parents[3] / "examples" / "austen"


@pytest.fixture(scope="session")
def novel() -> str:
    """The beginning of a novel that the tokenizers are trained on."""
    return (EXAMPLES / "train" / "emma.txt").read_text(encoding="utf-8")[:150_000]


@pytest.fixture(scope="session")
def unseen() -> str:
    """A whole novel that they are not trained on."""
    return (EXAMPLES / "heldout" / "sense_and_sensibility.txt").read_text(encoding="utf-8")


@pytest.fixture(scope="session", params=["unigram", "bpe"])
def tokenizer(request, novel, tmp_path_factory) -> Tokenizer:
    folder = tmp_path_factory.mktemp(request.param)
    train_sentencepiece([novel], folder, vocab_size=1000, algorithm=request.param, seed=0)
    return Tokenizer.load(folder)
