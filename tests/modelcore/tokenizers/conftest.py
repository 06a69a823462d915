from pathlib import Path

import pytest
import sentencepiece

from modelcore.tokenizers import Tokenizer
from modelcore.tokenizers.training import train_sentencepiece

ORIGINALS = Path(__file__).parents[2] / "data" / "tokenizers"
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


@pytest.fixture(scope="session")
def sentencepiece_llama():
    return sentencepiece.SentencePieceProcessor(model_file=str(ORIGINALS / "llama" / "tokenizer.model"))


@pytest.fixture(scope="session")
def transformers_llama(sentencepiece_llama):
    """transformers' class on the same vocabulary, its merges drawn from the scores by transformers' own code."""
    from transformers import LlamaTokenizer
    from transformers.convert_slow_tokenizer import generate_merges

    size = sentencepiece_llama.get_piece_size()
    vocabulary = {sentencepiece_llama.id_to_piece(i): i for i in range(size)}
    scores = {piece: sentencepiece_llama.get_score(i) for piece, i in vocabulary.items()}
    return LlamaTokenizer(vocab=vocabulary, merges=generate_merges(vocabulary, scores))
