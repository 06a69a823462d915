"""LoRA on fused projections: what it starts as, what it trains, and that merging changes nothing."""

import pytest
import torch
import torch.nn.functional as F

from modelcore.adapters import LoRAConfig, add_lora, lora_parameters, merge
from modelcore.adapters.layers import LoRALinear
from modelcore.adapters.lora import lora_layers
from modelcore.errors import InputError
from modelcore.gptx import GPT, GPTConfig

SIZES = {"vocab_size": 41, "context_length": 16, "n_layers": 2, "d_model": 24, "n_heads": 4, "d_ff": 40}
LLAMA = GPTConfig(n_kv_heads=2, **SIZES)
LLAMA_TIED = GPTConfig(n_kv_heads=2, tie_embeddings=True, **SIZES)
GPT2 = GPTConfig(
    n_kv_heads=4, positions="learned", norm="layernorm", feedforward="gelu_tanh", attention_bias=True,
    feedforward_bias=True, norm_bias=True, tie_embeddings=True, **SIZES,
)  # fmt: skip
KINDS = pytest.mark.parametrize("dora", [False, True], ids=["LoRA", "DoRA"])
MODELS = pytest.mark.parametrize("config", [LLAMA, LLAMA_TIED, GPT2], ids=["llama", "llama, tied", "gpt2"])
TOKENS = torch.randint(41, (3, 16), generator=torch.Generator().manual_seed(5))


def trained(model, lora):
    """The model with an adapter as training leaves it: nothing is zero."""
    add_lora(model, lora)
    generator = torch.Generator().manual_seed(1)
    for parameter in lora_parameters(model):
        parameter.data.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def seeded(config):
    torch.manual_seed(0)
    return GPT(config).eval()


@KINDS
@MODELS
def test_a_fresh_adapter_changes_no_logit(config, dora):
    model = seeded(config)
    before = model(TOKENS)
    assert torch.equal(add_lora(model, LoRAConfig(rank=4, dora=dora))(TOKENS), before)


@KINDS
@MODELS
def test_merged_equals_unmerged(config, dora):
    model = trained(seeded(config), LoRAConfig(rank=4, alpha=8, dora=dora))
    unmerged = model(TOKENS)
    assert (unmerged - seeded(config)(TOKENS)).abs().max() > 0.01
    assert (merge(model)(TOKENS) - unmerged).abs().max() <= 1e-4
    assert not any(isinstance(module, LoRALinear) for module in model.modules())
    assert model.state_dict().keys() == GPT(config).state_dict().keys()


def test_merging_does_not_write_to_tensors_that_others_share():
    model = seeded(LLAMA)
    shared = model.blocks[0].attention.qkv.weight
    before = shared.clone()
    merge(trained(model, LoRAConfig(rank=4)))
    assert torch.equal(shared, before)


def exactly_merged(layer):
    """The corrected weight of a layer of one part, in fp64."""
    weight = layer.base.weight.double() + layer.config.scale * layer.b[0].double() @ layer.a.double()
    if layer.config.dora:
        weight *= (layer.magnitude[0].double() / weight.norm(dim=1))[:, None]
    return weight.detach()


@KINDS
def test_merging_a_bf16_base_rounds_once(dora):
    """Half a unit in the last place of bf16 and no more: at most 2^-8 of the value."""
    model = trained(seeded(LLAMA).bfloat16(), LoRAConfig(rank=4, targets=("o_proj",), dora=dora))
    exact = exactly_merged(model.blocks[0].attention.out)
    merged = merge(model).blocks[0].attention.out.weight
    assert merged.dtype == torch.bfloat16
    assert ((merged.double() - exact).abs() <= 2**-8 * exact.abs() + 1e-6).all()


@KINDS
@MODELS
def test_merging_into_bf16_costs_no_more_than_bf16_costs_anyway(config, dora):
    """Merged and unmerged bf16 models against the same weights in fp64: errors within 3 % and a factor of 2."""
    lora = LoRAConfig(rank=4, alpha=4, dora=dora)
    exact = trained(seeded(config).bfloat16(), lora).double()
    unmerged = trained(seeded(config).bfloat16(), lora)
    with torch.no_grad():
        truth = exact(TOKENS)
        error = (unmerged(TOKENS) - truth).norm() / truth.norm()
        drift = (merge(unmerged)(TOKENS) - truth).norm() / truth.norm()
    assert error < 0.03
    assert drift < 2 * error


@MODELS
def test_only_the_adapter_is_trained(config):
    model = trained(seeded(config), LoRAConfig(rank=4))
    F.cross_entropy(model(TOKENS).flatten(0, 1), TOKENS.flatten()).backward()
    trainable = {id(p) for p in lora_parameters(model)}
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad == (id(parameter) in trainable), name


def test_each_part_of_a_fused_projection_has_its_own_matrices():
    model = add_lora(seeded(LLAMA), LoRAConfig(rank=3))
    qkv, up = model.blocks[0].attention.qkv, model.blocks[0].feedforward.up
    assert [part.name.rsplit(".", 1)[1] for part in qkv.parts] == ["q_proj", "k_proj", "v_proj"]
    assert [tuple(b.shape) for b in qkv.b] == [(24, 3), (12, 3), (12, 3)]
    assert tuple(qkv.a.shape) == (9, 24)
    assert [tuple(b.shape) for b in up.b] == [(40, 3), (40, 3)]


@pytest.mark.parametrize(
    ("targets", "changed"),
    [
        (("q_proj",), slice(0, 24)),
        (("k_proj",), slice(24, 36)),
        (("v_proj",), slice(36, 48)),
        (("self_attn.q_proj", "k_proj"), slice(0, 36)),
    ],
)
def test_a_part_changes_its_own_rows_and_no_other(targets, changed):
    layer = trained(seeded(LLAMA), LoRAConfig(rank=3, targets=targets)).blocks[0].attention.qkv
    x = torch.randn(2, 5, 24)
    difference = layer(x) - layer.base(x)
    rows = torch.zeros(48, dtype=torch.bool)
    rows[changed] = True
    assert difference[..., rows].abs().min() > 0
    assert not difference[..., ~rows].any()


def test_targets_choose_layers_as_in_peft():
    named = add_lora(seeded(LLAMA), LoRAConfig(rank=2, targets=("model.layers.1.mlp.down_proj", "o_proj")))
    assert [name for name, _ in lora_layers(named)] == [
        "blocks.0.attention.out",
        "blocks.1.attention.out",
        "blocks.1.feedforward.down",
    ]
    both = add_lora(seeded(GPT2), LoRAConfig(rank=2, targets=("c_proj",)))
    assert {name.split(".", 2)[2] for name, _ in lora_layers(both)} == {"attention.out", "feedforward.down"}


def test_by_default_every_linear_layer_of_every_block_is_adapted_and_an_untied_head():
    assert len(list(lora_layers(add_lora(seeded(GPT2), LoRAConfig(rank=2))))) == 2 * 4
    untied = [name for name, _ in lora_layers(add_lora(seeded(LLAMA), LoRAConfig(rank=2)))]
    assert len(untied) == 2 * 4 + 1
    assert "head" in untied


@KINDS
def test_dora_has_a_magnitude_for_each_row_of_each_part(dora):
    layer = add_lora(seeded(LLAMA), LoRAConfig(rank=3, dora=dora)).blocks[0].attention.qkv
    assert [tuple(m.shape) for m in layer.magnitude] == ([(24,), (12,), (12,)] if dora else [])


def test_dora_starts_at_the_norms_of_the_rows_and_keeps_them_while_the_direction_turns():
    model = add_lora(seeded(LLAMA), LoRAConfig(rank=3, dora=True, targets=("o_proj",)))
    layer = model.blocks[0].attention.out
    before = layer.base.weight.clone()
    assert torch.allclose(layer.magnitude[0], before.norm(dim=1))
    layer.b[0].data.normal_(std=0.2)
    merged = merge(model).blocks[0].attention.out.weight
    assert (merged - before).abs().max() > 0.01
    assert torch.allclose(merged.norm(dim=1), before.norm(dim=1), atol=1e-6)


def test_dora_leaves_a_row_of_zeros_at_zero():
    model = seeded(LLAMA)
    model.head.weight.data[7] = 0
    add_lora(model, LoRAConfig(rank=3, dora=True, targets=("lm_head",)))
    assert not model(TOKENS)[..., 7].any()
    assert model(TOKENS).isfinite().all()


def test_the_scale_is_alpha_over_rank_or_over_its_root():
    assert LoRAConfig(rank=16, alpha=32).scale == 2
    assert LoRAConfig(rank=16, alpha=32, rslora=True).scale == 8


def test_dropout_acts_on_the_correction_only_and_only_in_training():
    layer = trained(seeded(LLAMA), LoRAConfig(rank=4, dropout=0.5, targets=("o_proj",))).blocks[0].attention.out
    x = torch.randn(4, 24)
    assert torch.equal(layer(x), layer(x))
    assert not torch.equal(layer.train()(x), layer(x))
    for b in layer.b:
        b.data.zero_()
    assert torch.equal(layer(x), layer.base(x))


def test_an_adapter_takes_the_mode_of_its_model():
    assert not any(layer.training for _, layer in lora_layers(add_lora(seeded(LLAMA).eval(), LoRAConfig())))
    assert all(layer.training for _, layer in lora_layers(add_lora(seeded(LLAMA).train(), LoRAConfig())))


def test_the_start_is_pefts_uniform_and_zero():
    torch.manual_seed(0)
    layer = add_lora(GPT(LLAMA), LoRAConfig(rank=8)).blocks[0].attention.qkv
    bound = 24**-0.5  # Kaiming's uniform bound for a = sqrt(5): 1 / sqrt(inputs)
    assert layer.a.abs().max() <= bound
    assert layer.a.std().item() == pytest.approx(bound / 3**0.5, rel=0.1)
    assert not any(b.any() for b in layer.b)


def test_a_target_that_names_nothing_is_refused_with_the_known_ones():
    with pytest.raises(
        InputError, match="'c_attn' names no layer of this model; known: down_proj, embed_tokens, gate_proj"
    ):
        add_lora(seeded(LLAMA), LoRAConfig(targets=("q_proj", "c_attn")))


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"rank": 0}, "rank is 0"), ({"alpha": 0.0}, "alpha is 0"), ({"dropout": 1.0}, "dropout is 1")],
)
def test_numbers_out_of_range_are_refused(fields, message):
    with pytest.raises(InputError, match=message):
        LoRAConfig(**fields)


def test_a_model_without_a_hugging_face_counterpart_is_refused():
    with pytest.raises(InputError, match=r"alibi positions.*no Hugging Face counterpart"):
        add_lora(GPT(GPTConfig(n_kv_heads=4, positions="alibi", **SIZES)), LoRAConfig())
