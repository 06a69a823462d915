"""Tiny models of both architectures, and tokenizers of both kinds."""

import pytest
import torch

from modelcore.gptx import GPT, GPTConfig
from modelcore.tokenizers import Tokenizer
from modelcore.tokenizers.training import train_sentencepiece

TEXT = (
    "It is a truth universally acknowledged, that a single man in possession of a good fortune, must be in want of "
    "a wife.\n\nHowever little known the feelings or views of such a man may be on his first entering a neighbourhood, "
    'this truth is so well fixed in the minds of the surrounding families.\n\n"My dear Mr. Bennet," said his lady'
)
VOCAB_SIZE = 320

LLAMA = GPTConfig(vocab_size=VOCAB_SIZE, context_length=40, n_layers=2, d_model=64, n_heads=4, n_kv_heads=2, d_ff=96)
GPT2 = GPTConfig(
    vocab_size=VOCAB_SIZE, context_length=40, n_layers=2, d_model=64, n_heads=4, n_kv_heads=4, d_ff=96,
    positions="learned", norm="layernorm", feedforward="gelu_tanh", attention_bias=True, feedforward_bias=True,
    norm_bias=True, tie_embeddings=True,
)  # fmt: skip


@pytest.fixture(scope="session", params=["unigram", "bpe"])
def tokenizer(request, tmp_path_factory) -> Tokenizer:
    folder = tmp_path_factory.mktemp(request.param)
    train_sentencepiece([TEXT] * 3, folder, vocab_size=VOCAB_SIZE, algorithm=request.param, seed=0)
    return Tokenizer.load(folder)


@pytest.fixture
def randomized():
    """Makes a model in which every parameter counts: biases and norms are drawn too."""

    @torch.no_grad()
    def make(config: GPTConfig) -> GPT:
        model = GPT(config)
        generator = torch.Generator().manual_seed(0)
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator) + (parameter.dim() == 1))
        return model.eval()

    return make
