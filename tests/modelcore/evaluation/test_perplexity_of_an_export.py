"""The figures of a model and a text are those that transformers finds with the exported folder, token by token."""

import math

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from modelcore.convert import read_model
from modelcore.convert.huggingface import write_huggingface
from modelcore.data.shards import open_split, write_tokens
from modelcore.evaluation.perplexity import evaluate_split
from modelcore.gptx import GPT, GPTConfig
from modelcore.tokenizers import Tokenizer
from modelcore.tokenizers.training import train_sentencepiece

CONTEXT = 24
TEXTS = [
    "Elinor had always thought it would be more prudent for them to settle at some distance from Norland.\n",
    "“No,” said she — “no; I will not.”\n\nShe went.",
]
CONFIGS = {
    "llama": GPTConfig(300, CONTEXT, 2, 32, 4, 2, 48),
    "gpt2": GPTConfig(
        300, CONTEXT, 2, 32, 4, 4, 48, positions="learned", norm="layernorm", feedforward="gelu_tanh",
        attention_bias=True, feedforward_bias=True, norm_bias=True, tie_embeddings=True,
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_sentencepiece(TEXTS * 20, folder, vocab_size=300, algorithm="bpe", seed=0)
    return Tokenizer.load(folder)


@pytest.mark.parametrize("stride", [1, 7, CONTEXT // 2, CONTEXT])
@pytest.mark.parametrize("kind", CONFIGS)
def test_transformers_finds_the_same_figures(tokenizer, tmp_path, kind, stride):
    torch.manual_seed(0)
    model = GPT(CONFIGS[kind])
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    write_huggingface(tmp_path / "export", model, tokenizer)
    write_tokens(tmp_path / "tokens", tokenizer, train=TEXTS, heldout=TEXTS)

    score = evaluate_split(read_model(tmp_path / "export"), open_split(tmp_path / "tokens", "heldout"), stride=stride)

    probabilities, targets = by_transformers(tmp_path / "export", stride)
    right = probabilities.argmax(axis=1) == targets
    nats = -np.log(probabilities[np.arange(len(targets)), targets]).sum()
    assert score.n_tokens == len(targets) > 2 * CONTEXT
    assert score.perplexity == pytest.approx(math.exp(nats / len(targets)), rel=1e-5)
    assert score.bits_per_byte == pytest.approx(nats / math.log(2) / len("".join(TEXTS).encode()), rel=1e-6)
    assert score.token_accuracy == right.mean()
    assert sum(score.calibration.confidence) == pytest.approx(probabilities.max(axis=1).sum(), rel=1e-6)


@torch.no_grad()
def by_transformers(folder, stride: int) -> tuple[np.ndarray, np.ndarray]:
    """The probabilities of every token, (tokens, vocabulary), and the tokens: a call of the model for each.

    The rule, as it is stated: windows of CONTEXT tokens move by ``stride``, the last ends with the text, and a token
    is scored by the first window that holds it. It sees what that window holds before it and, before the window's
    first token, the one that came before; before the first of all stands an end-of-text token.
    """
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    stream = [tokenizer.eos_token_id]
    for text in TEXTS:
        stream += [*tokenizer(text).input_ids, tokenizer.eos_token_id]
    n_tokens = len(stream) - 1
    probabilities = []
    for position in range(n_tokens):
        windows_before = max(0, math.ceil((position + 1 - CONTEXT) / stride))
        start = min(windows_before * stride, n_tokens - CONTEXT)
        logits = model(torch.tensor([stream[start : position + 1]])).logits[0, -1]
        probabilities.append(logits.double().softmax(dim=-1).numpy())
    return np.stack(probabilities), np.array(stream[1:])
