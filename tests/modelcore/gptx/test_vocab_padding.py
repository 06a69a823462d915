"""A padded vocabulary computes, trains, samples and saves what the plain one does, and nothing shows its rows."""

import copy
from dataclasses import replace

import pytest
import torch

from modelcore.adapters import LoRAConfig, add_lora, lora_parameters, merge
from modelcore.convert.huggingface import write_huggingface
from modelcore.data.loader import IGNORED
from modelcore.errors import InputError
from modelcore.gptx import GPT, GPTConfig, pad_vocabulary
from modelcore.inference.generate import generate
from modelcore.inference.samplers import SamplingConfig
from modelcore.models import load_model, save_model
from modelcore.training.loss import summed_loss

CONFIG = GPTConfig(vocab_size=61, context_length=24, n_layers=2, d_model=32, n_heads=4, n_kv_heads=2, d_ff=48)
TOKENS = torch.randint(61, (3, 20), generator=torch.Generator().manual_seed(1))


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def plain(request) -> GPT:
    torch.manual_seed(0)
    model = GPT(replace(CONFIG, tie_embeddings=request.param))
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval()


@pytest.fixture
def padded(plain) -> GPT:
    return pad_vocabulary(copy.deepcopy(plain), 64)


def loss_of(model):
    targets = TOKENS[:, 1:].clone()
    targets[0, :5] = IGNORED
    return summed_loss(model.hidden(TOKENS[:, :-1]), model.head, targets)


def test_rows_are_added_up_to_the_multiple_and_none_where_it_fits_already(plain, padded):
    assert padded.embedding.weight.shape == padded.head.weight.shape == (64, 32)
    assert (padded.head.weight is padded.embedding.weight) == plain.config.tie_embeddings
    before = plain.embedding
    assert pad_vocabulary(plain, 1).embedding is before
    assert pad_vocabulary(plain, 61).embedding is before


def test_padding_draws_no_random_number(plain):
    before = torch.get_rng_state()
    pad_vocabulary(plain, 64)
    assert torch.equal(torch.get_rng_state(), before)


def test_logits_end_at_the_vocabulary_and_are_the_same(plain, padded):
    with torch.no_grad():
        assert padded(TOKENS).shape == (3, 20, 61)
        torch.testing.assert_close(padded(TOKENS), plain(TOKENS), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loss_and_gradients_are_the_same_and_padding_gets_none(plain, padded, dtype):
    plain, padded = plain.to(dtype), padded.to(dtype)
    ours, theirs = loss_of(padded), loss_of(plain)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)
    (ours / 55).backward()
    (theirs / 55).backward()
    tolerance = 1e-6 if dtype == torch.float32 else 1e-3
    expected = dict(plain.named_parameters())
    for name, parameter in padded.named_parameters():
        rows = expected[name].shape[0]
        torch.testing.assert_close(parameter.grad[:rows], expected[name].grad, rtol=0, atol=tolerance)
        assert not parameter.grad[rows:].any()


def test_without_a_gradient_the_loss_is_the_same_too(plain, padded):
    with torch.no_grad():
        torch.testing.assert_close(loss_of(padded), loss_of(plain), rtol=1e-6, atol=0)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_samples_are_the_same_tokens(plain, padded, temperature):
    sampling = SamplingConfig(temperature=temperature, seed=3)
    prompts = [[1, 2, 3], [4]]
    ours, theirs = (generate(model, prompts, sampling, max_tokens=15) for model in (padded, plain))
    assert ours == theirs


def test_files_hold_the_vocabulary_alone_and_are_the_same_bytes(plain, padded, tmp_path):
    for name, model in (("plain", plain), ("padded", padded)):
        for kind in ("native", "huggingface"):
            (tmp_path / name / kind).mkdir(parents=True)
        save_model(tmp_path / name / "native", model, None)
        write_huggingface(tmp_path / name / "huggingface", model, None)
    for path in (tmp_path / "plain").rglob("*.*"):
        assert path.read_bytes() == (tmp_path / "padded" / path.relative_to(tmp_path / "plain")).read_bytes()
    assert torch.equal(load_model(tmp_path / "padded" / "native")(TOKENS), plain(TOKENS))


def test_the_state_dict_has_no_padding_and_fills_a_padded_model(plain, padded):
    state = padded.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in plain.state_dict().items())
    torch.manual_seed(5)
    other = pad_vocabulary(GPT(plain.config), 16)
    other.load_state_dict(state)
    torch.testing.assert_close(other.eval()(TOKENS), plain(TOKENS), rtol=0, atol=1e-6)


def test_the_padding_stays_zero_while_everything_else_is_trained(padded):
    optimizer = torch.optim.AdamW(padded.parameters(), lr=0.01, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        loss_of(padded).backward()
        optimizer.step()
    assert not padded.embedding.weight[61:].any()
    assert not padded.head.weight[61:].any()


def test_an_adapter_of_a_padded_head_sees_the_vocabulary_alone(padded):
    targets = ("q_proj",) if padded.config.tie_embeddings else ("q_proj", "lm_head")
    add_lora(padded, LoRAConfig(rank=2, targets=targets))
    for parameter in lora_parameters(padded):
        parameter.data.normal_(std=0.05)
    with torch.no_grad():
        adapted = padded(TOKENS)
        assert adapted.shape == (3, 20, 61)
        torch.testing.assert_close(merge(padded)(TOKENS), adapted, rtol=0, atol=1e-4)


def test_a_multiple_below_one_is_refused(plain):
    with pytest.raises(InputError, match="cannot be padded to a multiple of 0; give 1 or more"):
        pad_vocabulary(plain, 0)


def test_a_model_is_padded_once(padded):
    with pytest.raises(ValueError, match="once, and before adapters are added"):
        pad_vocabulary(padded, 128)
