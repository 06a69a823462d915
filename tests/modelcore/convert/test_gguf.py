"""A GGUF file, read by the gguf package: llama.cpp's names, layouts and fields, and the source's weights."""

import math
from dataclasses import replace

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from modelcore.convert import ConversionError, convert
from modelcore.convert.gguf import default_dtype, read_gguf, write_gguf
from modelcore.convert.huggingface import write_huggingface
from modelcore.convert.verification import difference_after_rounding
from modelcore.errors import InputError
from modelcore.gptx import GPT, RopeScaling
from modelcore.gptx.positions import apply_rope, rope_tables
from modelcore.models import save_model

from .conftest import GPT2, LLAMA

BLOOM = replace(GPT2, positions="alibi", embedding_norm=True, d_ff=256, n_heads=8, n_kv_heads=8)
CONFIGS = {
    "llama": LLAMA,
    "llama, tied": replace(LLAMA, tie_embeddings=True, rope_theta=5e5, norm_eps=1e-6),
    "llama, multi-head, biases": replace(LLAMA, n_kv_heads=4, attention_bias=True, feedforward_bias=True),
    "gpt2": GPT2,
    "llama, RoPE interpolated": replace(LLAMA, rope_scaling=RopeScaling("linear", 2.0)),
    "llama, RoPE of Llama 3.1": replace(LLAMA, rope_scaling=RopeScaling("llama3", 4.0, original_context=10)),
    "llama, YaRN": replace(LLAMA, rope_scaling=RopeScaling("yarn", 4.0, original_context=10, truncate=False)),
    "mistral, a window as long as the context": replace(LLAMA, sliding_window=40),
    "gpt2, untied": replace(GPT2, tie_embeddings=False),
    "bloom": BLOOM,
}
MPT = replace(
    LLAMA, positions="alibi", norm="layernorm", feedforward="gelu", n_kv_heads=4, d_ff=256, tie_embeddings=True
)
TOKENS = torch.randint(320, (2, 40), generator=torch.Generator().manual_seed(1))


@pytest.fixture(params=CONFIGS.values(), ids=CONFIGS)
def model(request, randomized) -> GPT:
    return randomized(request.param)


def architecture_of(config):
    return "llama" if config.norm == "rmsnorm" else "gpt2" if config.positions == "learned" else "bloom"


def their_tensors(path):
    return {
        tensor.name: torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type).copy())
        for tensor in gguf.GGUFReader(path).tensors
    }


def fields(path):
    return {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items()}


def test_every_tensor_has_the_name_that_the_gguf_package_gives_its_hugging_face_name(model, tmp_path):
    write_huggingface(tmp_path, model, None)
    write_gguf(tmp_path / "m.gguf", model, None, name="m", dtype="f32")
    found = their_tensors(tmp_path / "m.gguf")
    kind = architecture_of(model.config)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[kind.upper()], 2)
    expected = {}
    for name, tensor in load_file(tmp_path / "model.safetensors").items():
        is_turned = kind == "gpt2" and name.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight"))
        name = name.removeprefix("transformer.") if kind == "bloom" else name  # as llama.cpp's converter does
        expected[names.get_name(name, try_suffixes=(".weight", ".bias"))] = tensor.t() if is_turned else tensor
    assert found.keys() - {"rope_freqs.weight"} == expected.keys()
    for name, tensor in expected.items():
        if "attn_q." in name or "attn_k." in name or (kind == "bloom" and "attn_qkv." in name):
            assert torch.equal(found[name].sort(dim=0).values, tensor.sort(dim=0).values), name
        else:
            assert torch.equal(found[name], tensor), name


def test_stretched_rope_is_written_as_the_divisors_of_its_angles(randomized, tmp_path):
    """As llama.cpp reads them: the angle of a pair is position · theta^(-2i/D) / divisor."""
    model = randomized(CONFIGS["llama, YaRN"])
    write_gguf(tmp_path / "m.gguf", model, None, name="m", dtype="f32")
    divisors = their_tensors(tmp_path / "m.gguf")["rope_freqs.weight"]
    plain = 10_000.0 ** (-torch.arange(8) / 8)
    magnitude = fields(tmp_path / "m.gguf")["llama.rope.scaling.attn_factor"]
    torch.testing.assert_close((39 * plain / divisors).cos() * magnitude, model.cos[39], rtol=0, atol=1e-5)
    assert magnitude == pytest.approx(0.1 * math.log(4.0) + 1.0)


def test_queries_and_keys_score_the_same_under_llama_cpps_rotation(randomized, tmp_path):
    """In llama.cpp's ``llama``, neighbouring channels are turned; ours are half a head apart."""
    model = randomized(LLAMA)
    write_gguf(tmp_path / "m.gguf", model, None, name="m", dtype="f32")
    found = their_tensors(tmp_path / "m.gguf")
    x = torch.randn(9, 64, generator=torch.Generator().manual_seed(2))
    cos, sin = rope_tables(16, 9, LLAMA.rope_theta)

    def neighbours(y):  # (heads, time, 16)
        even, odd = y[..., 0::2], y[..., 1::2]
        return torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1).flatten(-2)

    def heads(y, n):
        return y.unflatten(-1, (n, 16)).transpose(0, 1)

    theirs = [heads(x @ found[f"blk.1.attn_{part}.weight"].T, n) for part, n in (("q", 4), ("k", 2))]
    ours = [heads(y, n) for y, n in zip(model.blocks[1].attention.qkv(x).split((64, 32, 32), -1), (4, 2), strict=False)]
    q, k = (neighbours(y) for y in theirs)
    expected_q, expected_k = (apply_rope(y[None], cos, sin)[0] for y in ours)
    scores, expected = (q @ k.repeat_interleave(2, 0).mT), expected_q @ expected_k.repeat_interleave(2, 0).mT
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-4)


def test_the_sizes_are_in_the_fields_that_llama_cpp_reads(model, tmp_path):
    write_gguf(tmp_path / "m.gguf", model, None, name="my model", dtype="f32")
    found, config = fields(tmp_path / "m.gguf"), model.config
    architecture = architecture_of(config)
    assert found["general.architecture"] == architecture
    assert found["general.name"] == "my model"
    assert found["tokenizer.ggml.model"] == "none"
    expected = {
        "vocab_size": 320, "context_length": 40, "embedding_length": 64, "block_count": 2,
        "feed_forward_length": config.d_ff, "attention.head_count": config.n_heads,
        "attention.head_count_kv": config.n_kv_heads,
    }  # fmt: skip
    if architecture == "llama":
        expected |= {"rope.freq_base": config.rope_theta, "rope.dimension_count": 16}
        expected |= {"attention.layer_norm_rms_epsilon": pytest.approx(config.norm_eps)}
    else:
        expected |= {"attention.layer_norm_epsilon": pytest.approx(config.norm_eps)}
    assert {name: found[f"{architecture}.{name}"] for name in expected} == expected


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16", "q8_0"])
def test_matrices_are_rounded_to_the_nearest_value_of_the_type_and_vectors_kept(model, tmp_path, dtype):
    write_gguf(tmp_path / "exact.gguf", model, None, name="m", dtype="f32")
    write_gguf(tmp_path / "m.gguf", model, None, name="m", dtype=dtype)
    exact = their_tensors(tmp_path / "exact.gguf")
    kinds = {tensor.name: tensor.tensor_type.name.lower() for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    for name, tensor in their_tensors(tmp_path / "m.gguf").items():
        expected = exact[name]
        if tensor.dim() == 1 or name == "position_embd.weight":
            assert kinds[name] == "f32"
            assert torch.equal(tensor, expected)
            continue
        assert kinds[name] == dtype
        if dtype == "q8_0":  # the step is a 127th of the largest of 32, itself kept as fp16
            largest = expected.unflatten(1, (-1, 32)).abs().amax(-1, keepdim=True).expand(-1, -1, 32).flatten(1)
            bound = largest / 127 * 0.5 + largest * 2.0**-11
        else:
            bound = expected.abs() * {"f32": 0.0, "f16": 2.0**-11, "bf16": 2.0**-8}[dtype] + 2.0**-25
        assert ((tensor - expected).abs() <= bound).all(), name


def test_rows_that_q8_0_cannot_hold_are_fp16(randomized, tmp_path):
    write_gguf(tmp_path / "m.gguf", randomized(replace(LLAMA, d_ff=72)), None, name="m", dtype="q8_0")
    kinds = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    assert kinds["blk.0.ffn_down.weight"] == "F16"
    assert kinds["blk.0.ffn_up.weight"] == "Q8_0"


def test_a_file_reads_back_as_the_same_model(model, tmp_path):
    write_gguf(tmp_path / "m.gguf", model, None, name="m", dtype="f32")
    back = read_gguf(tmp_path / "m.gguf")
    not_there = {"norm_eps": 0.1, "rope_theta": 1.0, "rope_scaling": None, "sliding_window": None}
    assert replace(back.config, **not_there) == replace(model.config, **not_there)
    with torch.no_grad():
        assert (back(TOKENS) - model(TOKENS)).abs().max() <= 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_unasked_weights_are_stored_as_they_are(randomized, tmp_path, dtype):
    (tmp_path / "native").mkdir()
    model = randomized(LLAMA).to(dtype)
    save_model(tmp_path / "native", model, None)
    done = convert(tmp_path / "native", tmp_path / "m.gguf", "gguf")
    assert done.verified_by == "gguf"
    assert done.max_logit_difference <= 1e-5
    assert done.files == ("m.gguf",)
    assert done.size == (tmp_path / "m.gguf").stat().st_size
    assert default_dtype(model) == {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}[str(dtype)[6:]]


@pytest.mark.parametrize("dtype", ["f16", "bf16", "q8_0"])
def test_what_rounding_does_to_logits_stays_within_the_stated_bound(model, tmp_path, dtype):
    (tmp_path / "native").mkdir()
    save_model(tmp_path / "native", model, None)
    done = convert(tmp_path / "native", tmp_path / "m.gguf", "gguf", dtype=dtype)
    assert done.max_logit_difference > 0


def test_converting_twice_gives_the_same_bytes(randomized, tokenizer, tmp_path):
    for name in ("a", "b"):
        write_gguf(tmp_path / name, randomized(LLAMA), tokenizer, name="m", dtype="q8_0")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("fault", ["unpaired", "epsilon", "heads"])
def test_a_file_that_would_compute_something_else_is_an_error_and_is_not_kept(randomized, tmp_path, monkeypatch, fault):
    (tmp_path / "native").mkdir()
    save_model(tmp_path / "native", randomized(LLAMA), None)
    if fault == "unpaired":
        pair = "modelcore.convert.gguf._paired"
        monkeypatch.setattr(pair, lambda name, tensor, config, back=False: tensor.flip(0) if back else tensor)
    elif fault == "epsilon":
        monkeypatch.setattr(gguf.GGUFWriter, "add_layer_norm_rms_eps", lambda self, value: self.add_float32(
            "llama.attention.layer_norm_rms_epsilon", 0.1))  # fmt: skip
    else:
        monkeypatch.setattr(gguf.GGUFWriter, "add_rope_freq_base", lambda self, value: self.add_float32(
            "llama.rope.freq_base", 500.0))  # fmt: skip
    for dtype in ("f32", "q8_0"):
        with pytest.raises(ConversionError, match=r"logits of .*m\.gguf differ from its source's"):
            convert(tmp_path / "native", tmp_path / "m.gguf", "gguf", dtype=dtype)
    assert [path.name for path in tmp_path.iterdir()] == ["native"]


def test_weights_that_are_no_numbers_pass_no_check(randomized, tmp_path):
    model, broken = randomized(LLAMA), randomized(LLAMA)
    broken.norm.weight.data[0] = float("nan")
    with pytest.raises(ConversionError, match="by nan of their spread"):
        difference_after_rounding(model, broken, tmp_path, 0.1)


@pytest.mark.parametrize("kept", [0, 3, 200, 5000, -1])
def test_a_truncated_file_is_refused_by_name(randomized, tmp_path, kept):
    path = tmp_path / "m.gguf"
    write_gguf(path, randomized(LLAMA), None, name="m", dtype="f32")
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(InputError, match=r"m\.gguf is truncated or no GGUF file"):
        read_gguf(path)


@pytest.mark.parametrize(
    ("architecture", "left_out", "message"),
    [
        ("llama", "", r"m\.gguf lacks 10 of the tensors needed"),
        ("llama", "block_count", r"m\.gguf lacks the field 'llama\.block_count'"),
        ("mamba", "", r"m\.gguf: the architecture 'mamba' cannot be read; llama, gpt2, bloom can"),
    ],
)
def test_a_file_of_other_content_is_refused_by_name(tmp_path, architecture, left_out, message):
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", architecture)
    for name in ("vocab_size", "context_length", "embedding_length", "block_count", "feed_forward_length"):
        if name != left_out:
            writer.add_uint32(f"{architecture}.{name}", 1 if name == "block_count" else 2)
    writer.add_head_count(1)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(1e4)
    writer.add_tensor("token_embd.weight", np.zeros((2, 2), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(InputError, match=message):
        read_gguf(tmp_path / "m.gguf")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (replace(LLAMA, positions="alibi"), "with alibi positions, rmsnorm and swiglu cannot be written as GGUF"),
        (
            replace(GPT2, feedforward="gelu"),
            "has gpt2 with the tanh form of GELU alone, and this model has the exact one",
        ),
        (MPT, "has mpt with the tanh form of GELU alone, and this model has the exact one"),
        (
            replace(LLAMA, sliding_window=39),
            "a sliding window of 39 tokens cannot be written .* all of the context, 40",
        ),
        (
            replace(LLAMA, rope_scaling=RopeScaling("dynamic", 2.0, original_context=20)),
            "RoPE scaling 'dynamic' depends on the length of the text, which GGUF cannot say",
        ),
    ],
)
def test_a_model_that_llama_cpp_has_not_is_refused_in_one_line(tmp_path, config, message):
    with pytest.raises(InputError, match=message):
        write_gguf(tmp_path / "m.gguf", GPT(config), None, name="m", dtype="f32")
    assert not (tmp_path / "m.gguf").exists()


def test_an_unknown_type_is_refused_with_the_known_ones(tmp_path):
    with pytest.raises(InputError, match="dtype is 'q4_k'; GGUF is written as one of: f32, f16, bf16, q8_0"):
        write_gguf(tmp_path / "m.gguf", GPT(LLAMA), None, name="m", dtype="q4_k")


def test_the_tokenizer_of_another_model_is_refused(tmp_path, tokenizer):
    with pytest.raises(InputError, match="has 320 tokens, the model 319; use the tokenizer that"):
        write_gguf(tmp_path / "m.gguf", GPT(replace(LLAMA, vocab_size=319)), tokenizer, name="m", dtype="f32")
