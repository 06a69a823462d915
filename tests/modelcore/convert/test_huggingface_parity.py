"""The parity matrix: the same weights give the same logits and the same greedy text here and in transformers.

A row is a configuration, as transformers describes it and as we do, named by what it proves. Each is tried in both
directions: a model that transformers saved is read here, and a model written here is loaded by AutoModelForCausalLM.
Weights are random, in fp32 on the CPU, and far from their small initial values, so that biases, norms and positions
weigh.
"""

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BloomConfig,
    DynamicCache,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    MptConfig,
)

from modelcore.convert import convert
from modelcore.convert.huggingface import read_huggingface, write_huggingface
from modelcore.gptx import GPT, GPTConfig, KVCache, RopeScaling
from modelcore.models import get_config
from modelcore.models.architectures import architecture_of
from modelcore.models.weights import empty_model, fill_model

TOLERANCE = 1e-4
CONTEXT = 40

ALL_BIASES = {"attention_bias": True, "feedforward_bias": True, "norm_bias": True}
GPT2 = {"positions": "learned", "norm": "layernorm", "feedforward": "gelu_tanh", **ALL_BIASES}
BLOOM = {"positions": "alibi", "norm": "layernorm", "feedforward": "gelu_tanh", "embedding_norm": True, **ALL_BIASES}
MPT = {"positions": "alibi", "norm": "layernorm", "feedforward": "gelu"}
SPECIAL = {"bos_token_id": 1, "eos_token_id": None}


def gpt2(theirs=None, ours=None, **sizes):
    """A row: GPT-2 of two layers, three heads of 12, as transformers describes it and as we do."""
    sizes = {"vocab_size": 97, "d_model": 36, "n_heads": 3, "d_ff": 144} | sizes
    their_sizes = {
        "vocab_size": sizes["vocab_size"],
        "n_positions": CONTEXT,
        "n_layer": 2,
        "n_embd": sizes["d_model"],
        "n_head": sizes["n_heads"],
    }
    fields = GPT2 | {"tie_embeddings": True, "dropout": 0.1, "n_kv_heads": sizes["n_heads"]} | sizes | (ours or {})
    return GPT2Config(**their_sizes | SPECIAL | (theirs or {})), GPTConfig(context_length=CONTEXT, n_layers=2, **fields)


def llama(theirs=None, ours=None, config=LlamaConfig, n_heads=4, n_kv_heads=2):
    """A row: Llama (or its like) of two layers, heads of 12."""
    their_sizes = {
        "vocab_size": 101,
        "max_position_embeddings": CONTEXT,
        "num_hidden_layers": 2,
        "hidden_size": 12 * n_heads,
        "intermediate_size": 56,
        "num_attention_heads": n_heads,
        "num_key_value_heads": n_kv_heads,
    }
    sizes = {"vocab_size": 101, "n_layers": 2, "d_model": 12 * n_heads, "d_ff": 56}
    fields = {"context_length": CONTEXT, "norm_eps": 1e-6, "n_heads": n_heads, "n_kv_heads": n_kv_heads}
    return config(**their_sizes | SPECIAL | (theirs or {})), GPTConfig(**sizes | fields | (ours or {}))


def scaled(theirs, ours, context=CONTEXT):
    """A row: Llama whose RoPE, of base 100 so that all of its wavelengths matter in 40 tokens, is stretched."""
    return llama(
        {"rope_parameters": theirs | {"rope_theta": 100.0}, "max_position_embeddings": context},
        {"rope_theta": 100.0, "rope_scaling": ours},
    )


def mistral(window):
    return llama({"sliding_window": window}, {"sliding_window": window}, MistralConfig)


def bloom(theirs=None, ours=None, n_heads=4):
    sizes = {"vocab_size": 101, "d_model": 12 * n_heads, "d_ff": 48 * n_heads, "n_heads": n_heads}
    their_sizes = {"vocab_size": 101, "n_layer": 2, "hidden_size": 12 * n_heads, "n_head": n_heads}
    fields = BLOOM | {"n_kv_heads": n_heads, "tie_embeddings": True} | sizes | (ours or {})
    return (
        BloomConfig(**their_sizes | {"seq_length": CONTEXT} | SPECIAL | (theirs or {})),
        GPTConfig(context_length=CONTEXT, n_layers=2, **fields),
    )


def mpt(theirs=None, ours=None, n_heads=4):
    sizes = {"vocab_size": 101, "d_model": 12 * n_heads, "d_ff": 48 * n_heads, "n_heads": n_heads}
    their_sizes = {"vocab_size": 101, "n_layers": 2, "d_model": 12 * n_heads, "n_heads": n_heads}
    fields = MPT | {"n_kv_heads": n_heads, "tie_embeddings": True} | sizes | (ours or {})
    return (
        MptConfig(**their_sizes | {"max_seq_len": CONTEXT} | SPECIAL | (theirs or {})),
        GPTConfig(context_length=CONTEXT, n_layers=2, **fields),
    )


ROWS = {
    "gpt2": gpt2(),
    "gpt2, untied": gpt2({"tie_word_embeddings": False}, {"tie_embeddings": False}),
    "gpt2, odd vocabulary of 50,257's kind": gpt2(vocab_size=129),
    "gpt2, odd width and heads": gpt2(d_model=35, n_heads=7, d_ff=140),
    "gpt2, one head of odd size": gpt2(d_model=33, n_heads=1, d_ff=132),
    "gpt2, narrow feed-forward": gpt2({"n_inner": 51}, d_ff=51),
    "gpt2, exact gelu": gpt2({"activation_function": "gelu"}, {"feedforward": "gelu"}),
    "gpt2, other epsilon": gpt2({"layer_norm_epsilon": 1e-3}, {"norm_eps": 1e-3}),
    "llama, a key head for each query head": llama(n_kv_heads=4),
    "llama, 2 query heads a key head": llama(n_kv_heads=2),
    "llama, 4 query heads a key head": llama(n_heads=8, n_kv_heads=2),
    "llama, 8 query heads a key head": llama(n_heads=8, n_kv_heads=1),
    "llama, 8 query heads for each of 2 key heads": llama(n_heads=16, n_kv_heads=2),
    "llama, tied": llama({"tie_word_embeddings": True}, {"tie_embeddings": True}),
    "llama, attention bias": llama({"attention_bias": True}, {"attention_bias": True}),
    "llama, feed-forward bias": llama({"mlp_bias": True}, {"feedforward_bias": True}),
    "llama, other epsilon": llama({"rms_norm_eps": 1e-3}, {"norm_eps": 1e-3}),
    "rope, other base": llama(
        {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
        {"rope_theta": 5e5},
    ),
    "rope, linear": scaled({"rope_type": "linear", "factor": 2.5}, RopeScaling("linear", 2.5)),
    "rope, dynamic: plain up to the original context, and past it": scaled(
        {"rope_type": "dynamic", "factor": 2.0}, RopeScaling("dynamic", 2.0, CONTEXT // 2), context=CONTEXT // 2
    ),
    "rope, llama3": scaled(
        {
            "rope_type": "llama3",
            "factor": 2.0,
            "original_max_position_embeddings": 20,
            "low_freq_factor": 0.5,
            "high_freq_factor": 2.0,
        },
        RopeScaling("llama3", 2.0, 20, low_freq_factor=0.5, high_freq_factor=2.0),
    ),
    "rope, yarn": scaled(
        {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 20, "beta_fast": 4.0},
        RopeScaling("yarn", 2.0, 20, beta_fast=4.0),
    ),
    "rope, yarn with a factor for attention and bounds not rounded": scaled(
        {
            "rope_type": "yarn",
            "factor": 2.0,
            "original_max_position_embeddings": 20,
            "attention_factor": 1.3,
            "beta_fast": 3.0,
            "beta_slow": 0.5,
            "truncate": False,
        },
        RopeScaling("yarn", 2.0, 20, attention_factor=1.3, beta_fast=3.0, beta_slow=0.5, truncate=False),
    ),
    "sliding window of 2": mistral(2),
    "sliding window of 7": mistral(7),
    "sliding window as long as the context": mistral(CONTEXT),
    "alibi, bloom": bloom(),
    "alibi, bloom, heads no power of two": bloom(n_heads=6),
    "alibi, bloom, untied": bloom({"tie_word_embeddings": False}, {"tie_embeddings": False}),
    "alibi, mpt": mpt(),
    "alibi, mpt, heads no power of two": mpt(n_heads=5),
    "alibi, mpt, untied, other epsilon": mpt(
        {"tie_word_embeddings": False, "layer_norm_epsilon": 1e-3}, {"tie_embeddings": False, "norm_eps": 1e-3}
    ),
}

every_row = pytest.mark.parametrize(("theirs", "ours"), ROWS.values(), ids=ROWS)


@torch.no_grad()
def randomized(model):
    """The model with every parameter drawn anew."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator) + (parameter.dim() == 1))
    return model.eval()


def some_tokens(config, time=CONTEXT):
    return torch.randint(config.vocab_size, (2, time), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def continued(model, prompt, count):
    """Our greedy text, with the cache."""
    cache = KVCache(model.config, len(prompt), dtype=model.embedding.weight.dtype)
    text, new = prompt, prompt
    for _ in range(count):
        logits = model(new, cache)
        cache.advance(new.shape[1])
        new = logits[:, -1:].argmax(-1)
        text = torch.cat((text, new), dim=1)
    return text


def continued_there(theirs, prompt, count):
    return theirs.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=count, do_sample=False, pad_token_id=0
    )


@torch.no_grad()
def assert_equal(ours, theirs):
    """Logits at every length that counts, and 35 tokens of greedy text, up to the last of the context."""
    tokens = some_tokens(ours.config)
    for time in (CONTEXT, 1, CONTEXT // 2):  # a short one between: transformers' dynamic RoPE remembers a long one
        difference = (ours(tokens[:, :time]) - theirs(tokens[:, :time]).logits).abs().max()
        assert difference <= TOLERANCE
    assert torch.equal(continued(ours, tokens[:, :5], 35), continued_there(theirs, tokens[:, :5], 35))


@every_row
def test_a_model_that_transformers_saved_computes_the_same_here(theirs, ours, tmp_path):
    saved = randomized(AutoModelForCausalLM.from_config(theirs))
    saved.save_pretrained(tmp_path)
    read = read_huggingface(tmp_path)
    assert read.config == ours
    assert_equal(read, saved)


@every_row
def test_a_model_written_here_computes_the_same_in_transformers(theirs, ours, tmp_path):
    model = randomized(GPT(ours))
    write_huggingface(tmp_path, model, None)
    loaded, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded.config) is type(theirs)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert_equal(model, loaded.eval())


@every_row
def test_there_and_back_again_changes_no_bit(theirs, ours, tmp_path):
    model = randomized(GPT(ours))
    write_huggingface(tmp_path, model, None)
    back = read_huggingface(tmp_path)
    assert back.config == ours
    assert all(torch.equal(tensor, back.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_what_transformers_saved_goes_native_and_back_to_the_same_weights(tmp_path):
    theirs = randomized(AutoModelForCausalLM.from_config(ROWS["alibi, bloom, heads no power of two"][0]))
    theirs.save_pretrained(tmp_path / "theirs")
    to_native = convert(tmp_path / "theirs", tmp_path / "native", "native")
    back = convert(tmp_path / "native", tmp_path / "back", "huggingface")
    assert max(to_native.max_logit_difference, back.max_logit_difference) <= TOLERANCE
    assert to_native.verified_by == back.verified_by == "transformers"
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "back").state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in theirs.state_dict().items())


@torch.no_grad()
@pytest.mark.parametrize("chunks", [[CONTEXT], [15, 25], [7, 12, 1, 9, 11], [1] * CONTEXT], ids=str)
def test_dynamic_rope_with_a_cache_is_transformers_at_every_cut(chunks):
    """A pass takes the angles of the length it reaches; keys in the cache keep those of the pass that wrote them."""
    config, ours = ROWS["rope, dynamic: plain up to the original context, and past it"]
    theirs = randomized(AutoModelForCausalLM.from_config(config))
    model = shared(theirs, ours)
    cache, their_cache = KVCache(ours, 2), DynamicCache(config=config)
    for chunk in some_tokens(ours).split(chunks, dim=1):
        expected = theirs(chunk, past_key_values=their_cache, use_cache=True).logits
        assert (model(chunk, cache) - expected).abs().max() <= TOLERANCE
        cache.advance(chunk.shape[1])


BF16 = ("gpt2", "llama, 2 query heads a key head", "rope, yarn", "sliding window of 7", "alibi, bloom", "alibi, mpt")


@torch.no_grad()
@pytest.mark.parametrize("row", BF16)
def test_in_bf16_logits_differ_by_a_twentieth_of_their_spread_and_err_as_much_as_transformers_do(row):
    """Root mean squares, of the logits' standard deviation: measured 0.5 to 3.3 % apart, 0.7 to 4 % from fp32 each."""
    config, ours = ROWS[row]
    theirs = randomized(AutoModelForCausalLM.from_config(config))
    tokens = some_tokens(ours)
    exact = theirs(tokens).logits
    model = shared(theirs.bfloat16(), ours)
    assert model.embedding.weight.dtype == torch.bfloat16
    logits, expected = model(tokens).float(), theirs(tokens).logits.float()
    assert rms(logits - expected) <= 0.05 * exact.std()
    assert rms(logits - exact) <= 1.5 * rms(expected - exact)


@torch.no_grad()
@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt2-small", "tinyllama-1.1b"])
def test_the_published_sizes_compute_the_same(name):
    """At random weights of the size that training starts from, in full context and in greedy text."""
    torch.manual_seed(0)
    model = GPT(get_config(name)).eval()
    theirs = there(model)
    tokens = some_tokens(model.config, 64)
    assert (model(tokens) - theirs(tokens).logits).abs().max() <= TOLERANCE
    assert torch.equal(continued(model, tokens[:1, :32], 12), continued_there(theirs, tokens[:1, :32], 12))


def rms(x):
    return x.square().mean().sqrt()


def shared(theirs, config):
    """Our model with the weights of theirs."""
    state = theirs.state_dict()
    maps = architecture_of(config).tensor_maps(config)
    return fill_model(
        empty_model(config), {entry.ours: entry.join([state[name] for name in entry.theirs]) for entry in maps}
    )


def there(model):
    """A model of transformers that holds our weights themselves, not copies, wherever their layout is ours."""
    architecture = architecture_of(model.config)
    config = AutoConfig.for_model(**architecture.to_huggingface(model.config) | SPECIAL)
    with torch.device("meta"):
        theirs = AutoModelForCausalLM.from_config(config)
    state, tensors = model.state_dict(), {}
    for entry in architecture.tensor_maps(model.config):
        tensors |= entry.split(state[entry.ours])
    theirs.load_state_dict(tensors, strict=False, assign=True)
    theirs.tie_weights()
    if hasattr(theirs.base_model, "rotary_emb"):  # its table is no weight
        theirs.base_model.rotary_emb = type(theirs.base_model.rotary_emb)(config)
    assert not any(parameter.is_meta for parameter in (*theirs.parameters(), *theirs.buffers()))
    return theirs.eval()
