"""Generation with the cache says what the model would say without, for any batch, and ends where it must."""

import pytest
import torch

from modelcore.errors import InputError
from modelcore.gptx import GPT, GPTConfig
from modelcore.inference import Generation, SamplingConfig, generate, stream

VOCAB, CONTEXT = 61, 24
GREEDY = SamplingConfig(temperature=0.0)
PROMPTS = [[5], [7, 8, 9, 10, 11, 12, 13], [3, 4, 3], [40] * 12]


@pytest.fixture(params=["learned", "rope", "alibi"])
def model(request) -> GPT:
    return make_model(request.param)


def make_model(positions: str = "rope") -> GPT:
    torch.manual_seed(0)
    model = GPT(GPTConfig(VOCAB, CONTEXT, 2, 48, 6, 2, 64, positions=positions)).eval()
    for parameter in model.parameters():  # far from the small initial values, so that continuations vary
        torch.nn.init.normal_(parameter, std=0.25)
    return model


@torch.no_grad()
def uncached(model: GPT, prompt: list[int], count: int) -> list[int]:
    """Greedy continuation that reads the whole text again for every token."""
    tokens = list(prompt)
    while len(tokens) - len(prompt) < count:
        tokens.append(int(model(torch.tensor([tokens]))[0, -1].argmax()))
    return tokens[len(prompt) :]


def test_greedy_generation_equals_uncached_token_for_token_in_a_batch_of_unequal_prompts(model):
    generations = generate(model, PROMPTS, GREEDY, max_tokens=12)
    assert [generation.tokens for generation in generations] == [uncached(model, prompt, 12) for prompt in PROMPTS]
    assert {generation.finish_reason for generation in generations} == {"length"}


def test_every_text_may_fill_the_context(model):
    """A prompt of n tokens gets context - n + 1 more: the last position still predicts one."""
    generations = generate(model, PROMPTS, GREEDY, max_tokens=1000)
    for prompt, generation in zip(PROMPTS, generations, strict=True):
        assert generation == Generation(uncached(model, prompt, CONTEXT - len(prompt) + 1), "length")


def test_a_prompt_as_long_as_the_context_gets_one_token(model):
    prompt = [i % VOCAB for i in range(CONTEXT)]
    assert generate(model, [prompt], GREEDY, 5) == [Generation(uncached(model, prompt, 1), "length")]


def test_generation_equals_hugging_faces(tmp_path):
    """The same weights in Hugging Face's Llama, greedy and with the repetition penalty."""
    from transformers import LlamaConfig, LlamaForCausalLM

    ours = make_model("rope")
    theirs = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCAB,
            hidden_size=48,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=6,
            num_key_value_heads=2,
            max_position_embeddings=CONTEXT,
            rms_norm_eps=1e-5,
            tie_word_embeddings=False,
        )
    ).eval()
    state = {"model.embed_tokens.weight": ours.embedding.weight, "lm_head.weight": ours.head.weight}
    state["model.norm.weight"] = ours.norm.weight
    for layer, block in enumerate(ours.blocks):
        name = f"model.layers.{layer}."
        q, k, v = block.attention.qkv.weight.split(ours.config.qkv_sizes)
        gate, up = block.feedforward.up.weight.chunk(2)
        state |= {
            name + "self_attn.q_proj.weight": q,
            name + "self_attn.k_proj.weight": k,
            name + "self_attn.v_proj.weight": v,
            name + "self_attn.o_proj.weight": block.attention.out.weight,
            name + "mlp.gate_proj.weight": gate,
            name + "mlp.up_proj.weight": up,
            name + "mlp.down_proj.weight": block.feedforward.down.weight,
            name + "input_layernorm.weight": block.attention_norm.weight,
            name + "post_attention_layernorm.weight": block.feedforward_norm.weight,
        }
    theirs.load_state_dict(state)
    for prompt in PROMPTS:
        for penalty in (1.0, 1.5):
            expected = theirs.generate(
                torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt)),
                do_sample=False,
                repetition_penalty=penalty,
                max_new_tokens=12,
                eos_token_id=None,
                pad_token_id=0,
            )
            [found] = generate(ours, [prompt], SamplingConfig(temperature=0.0, repetition_penalty=penalty), 12)
            assert prompt + found.tokens == expected[0].tolist()


def test_a_text_ends_at_eos_and_does_not_hold_it(model):
    free = uncached(model, PROMPTS[1], 8)
    eos = free[4]
    generations = generate(model, PROMPTS, GREEDY, 8, eos_id=eos)
    for prompt, generation in zip(PROMPTS, generations, strict=True):
        expected = uncached(model, prompt, 8)
        if eos in expected:
            assert generation == Generation(expected[: expected.index(eos)], "eos")
        else:
            assert generation == Generation(expected, "length")
    assert generations[1].finish_reason == "eos"


def test_the_same_seed_gives_the_same_text_and_another_seed_another():
    model = make_model()
    sampling = SamplingConfig(temperature=1.5, top_k=20, seed=3)
    first, second = (generate(model, [[5, 6]], sampling, 20) for _ in range(2))
    assert first == second
    assert generate(model, [[5, 6]], SamplingConfig(temperature=1.5, top_k=20, seed=4), 20) != first


@pytest.mark.parametrize("penalty", [1.0, 1.7])
def test_a_sampled_text_does_not_depend_on_what_else_is_in_the_batch(model, penalty):
    sampling = SamplingConfig(temperature=1.2, top_p=0.95, repetition_penalty=penalty, seed=11)
    together = generate(model, PROMPTS, sampling, 40)
    assert together == [generate(model, [prompt], sampling, 40)[0] for prompt in PROMPTS]


def test_sampling_touches_no_global_generator():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    generate(make_model_without_seed(), PROMPTS, SamplingConfig(), 5)
    assert torch.equal(torch.get_rng_state(), before)


def make_model_without_seed() -> GPT:
    state = torch.get_rng_state()
    model = make_model()
    torch.set_rng_state(state)
    return model


def test_streaming_gives_the_same_tokens_one_by_one(model):
    sampling = SamplingConfig(temperature=1.2, seed=5)
    [expected] = generate(model, [PROMPTS[1]], sampling, 10)
    tokens = stream(model, PROMPTS[1], sampling, 10)
    found = [next(tokens) for _ in expected.tokens]
    with pytest.raises(StopIteration) as end:
        next(tokens)
    assert Generation(found, end.value.value) == expected


def test_dropout_is_off_while_generating_and_back_on_after():
    model = make_model()
    expected = generate(model, PROMPTS, GREEDY, 10)
    dropping = GPT(GPTConfig.from_dict(model.config.to_dict() | {"dropout": 0.5}))
    dropping.load_state_dict(model.state_dict())
    dropping.train()
    assert generate(dropping, PROMPTS, GREEDY, 10) == expected
    assert dropping.training


def test_no_prompts_give_no_texts():
    assert generate(make_model(), [], GREEDY) == []


@pytest.mark.parametrize(
    ("prompts", "max_tokens", "message"),
    [
        ([[]], 5, "the prompt is empty; give at least one token (the end-of-text token starts a new text)"),
        ([[1] * 25], 5, "the prompt has 25 tokens, the model reads at most 24; shorten it"),
        ([[1], [1] * 30], 5, "prompt 1 has 30 tokens, the model reads at most 24; shorten it"),
        (
            [[3, 61]],
            5,
            "the prompt holds id 61, the model knows 0 to 60; use the tokenizer it was trained with",
        ),
        ([[-1]], 5, "the prompt holds id -1, the model knows 0 to 60; use the tokenizer it was trained with"),
        ([[1]], 0, "max_tokens is 0; it must be 1 or more"),
    ],
)
def test_what_cannot_be_continued_is_named(prompts, max_tokens, message):
    with pytest.raises(InputError) as error:
        generate(make_model(), prompts, GREEDY, max_tokens)
    assert str(error.value) == message


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_broken_weights_are_said_to_be_broken(temperature):
    model = make_model()
    torch.nn.init.constant_(model.norm.weight, float("nan"))
    with pytest.raises(InputError, match="the model's logits are not numbers"):
        generate(model, [[1]], SamplingConfig(temperature=temperature), 3)
