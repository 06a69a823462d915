"""A whole step equals the model's own forward pass, for every shape that the kernels know."""

import pytest
import torch

from modelcore.gptx import GPT, GPTConfig, KVCache
from modelcore.inference import SamplingConfig
from modelcore.inference.prefill import read_prompts
from modelcore.kernels.decode_step import DecodeStep
from modelcore.kernels.weights import read_weights
from modelcore.quantization import quantize_model

VOCAB, CONTEXT = 61, 40


def make_model(positions, norm, feedforward, biases, kv_heads, int8, dtype, device):
    config = GPTConfig(
        VOCAB, CONTEXT, 2, 64, 4, kv_heads, 48, positions, norm, 1e-5, feedforward,
        attention_bias=biases, feedforward_bias=biases, norm_bias=biases and norm == "layernorm",
        tie_embeddings=positions == "learned",
    )  # fmt: skip
    model = GPT(config).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2, generator=generator)
    return quantize_model(model, "int8" if int8 else "none").to(device, dtype)


@pytest.mark.parametrize(
    ("shape", "rows", "dtype", "tolerance"),
    [
        (("rope", "rmsnorm", "swiglu", False, 2, False), 1, torch.float32, 5e-6),  # Llama
        (("rope", "rmsnorm", "swiglu", False, 2, False), 3, torch.float32, 5e-6),
        (("rope", "rmsnorm", "swiglu", False, 1, True), 1, torch.float32, 5e-6),
        (("rope", "rmsnorm", "swiglu", True, 1, True), 3, torch.float32, 5e-6),
        (("learned", "layernorm", "gelu_tanh", True, 4, False), 1, torch.float32, 5e-6),  # GPT-2
        (("learned", "layernorm", "gelu", False, 4, False), 17, torch.float32, 5e-6),
        (("rope", "rmsnorm", "swiglu", False, 2, False), 1, torch.bfloat16, 0.05),
        (("rope", "rmsnorm", "swiglu", False, 2, True), 3, torch.bfloat16, 0.05),
    ],
    ids=str,
)
@torch.inference_mode()
def test_logits_equal_the_models_for_rows_of_unequal_length(shape, rows, dtype, tolerance, device):
    """Two steps: the second reads what the first wrote. The tolerance is of the logits' spread."""
    model = make_model(*shape, dtype, device)
    prompts = [[(7 * row + 3 * i) % VOCAB for i in range(1 + 5 * row % 23)] for row in range(rows)]
    weights = read_weights(model, CONTEXT)
    step = DecodeStep(model.config, rows, CONTEXT, weights)
    step.set_rules([SamplingConfig(temperature=0.0)] * rows)
    reference = KVCache(model.config, rows, CONTEXT, dtype=dtype, device=device)
    read_prompts(model, prompts, step.cache)
    tokens = model.head(read_prompts(model, prompts, reference)).argmax(dim=-1)
    step.tokens.copy_(tokens)
    step.lengths.copy_(step.cache.lengths)
    for _ in range(2):
        step.launch(weights)
        logits = model.head(model.hidden(tokens[:, None], reference)[:, 0])
        reference.advance(1)
        assert (step.logits - logits).float().abs().max() < tolerance * logits.float().std()
        assert torch.equal(step.tokens, step.logits.argmax(dim=-1))
        assert step.lengths.tolist() == reference.lengths.tolist()
        tokens = step.tokens.clone()


def plain(**fields):
    return GPT(GPTConfig(**{"vocab_size": VOCAB, "context_length": CONTEXT, "n_layers": 1, "d_model": 64, "n_heads": 4,
                            "n_kv_heads": 2, "d_ff": 48, **fields}))  # fmt: skip


def test_models_that_the_kernels_do_not_know_are_left_to_the_ordinary_way():
    from modelcore.adapters import LoRAConfig, add_lora
    from modelcore.gptx import RopeScaling, pad_vocabulary

    assert read_weights(plain(), CONTEXT) is not None
    assert read_weights(pad_vocabulary(plain(), 64), CONTEXT) is not None
    dynamic = RopeScaling("dynamic", 2.0, original_context=CONTEXT // 2)
    assert read_weights(plain(rope_scaling=dynamic), CONTEXT // 2) is not None
    assert read_weights(plain(rope_scaling=dynamic), CONTEXT) is None
    for fields in ({"positions": "alibi"}, {"sliding_window": 8}, {"embedding_norm": True}, {"d_ff": 50}):
        assert read_weights(plain(**fields), CONTEXT) is None
    hooked = plain()
    hooked.blocks[0].feedforward.register_forward_hook(lambda *_: None)
    assert read_weights(hooked, CONTEXT) is None
    mixed = plain()
    mixed.head.to(torch.bfloat16)
    assert read_weights(mixed, CONTEXT) is None
    assert read_weights(quantize_model(plain(), "nf4"), CONTEXT) is None
    adapted = plain()
    add_lora(adapted, LoRAConfig())
    assert read_weights(adapted, CONTEXT) is None
