"""Generation with the cache says what the model would say without, for any batch, and ends where it must."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelcore.errors import InputError
from modelcore.gptx import GPT, GPTConfig
from modelcore.inference import Generation, SamplingConfig, generate, stream

VOCAB, CONTEXT = 61, 24
GREEDY = SamplingConfig(temperature=0.0)
PROMPTS = [[5], [7, 8, 9, 10, 11, 12, 13], [3, 4, 3], [40] * 12]


@pytest.fixture(params=["learned", "rope", "alibi"])
def model(request, make_model) -> GPT:
    return make_model(request.param)


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


def test_generation_equals_hugging_faces(make_model):
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


def test_the_same_seed_gives_the_same_text_and_another_seed_another(make_model):
    model = make_model()
    sampling = SamplingConfig(temperature=1.5, top_k=20, seed=3)
    first, second = (generate(model, [[5, 6]], sampling, 20) for _ in range(2))
    assert first == second
    assert generate(model, [[5, 6]], SamplingConfig(temperature=1.5, top_k=20, seed=4), 20) != first


REQUESTS = [
    ([5], SamplingConfig(temperature=1.2, top_p=0.95, seed=11), 18),
    ([7, 8, 9, 10, 11, 12, 13], GREEDY, 9),
    ([3, 4, 3], SamplingConfig(top_k=20, repetition_penalty=1.7, seed=11), 40),
    ([40] * 12, SamplingConfig(typical_p=0.9, presence_penalty=0.8, frequency_penalty=0.3, seed=2), 12),
    ([9, 8], SamplingConfig(temperature=2.0, min_p=0.01, logit_bias={3: 2.0}, seed=11), 15),
    ([60] * 23, SamplingConfig(seed=3), 2),
    ([5], SamplingConfig(temperature=1.2, top_p=0.95, seed=12), 1),
]


@pytest.fixture(scope="module")
def alone(make_model):
    """What each request gets when nothing else is in the batch."""
    return [generate(make_model("rope"), [prompt], [sampling], [most])[0] for prompt, sampling, most in REQUESTS]


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(rows=st.lists(st.integers(0, len(REQUESTS) - 1), min_size=1, max_size=10))
def test_a_text_does_not_depend_on_what_else_is_in_the_batch_nor_on_its_place_in_it(make_model, alone, rows):
    """Requests of every kind of setting, in any number, order and repetition."""
    prompts, samplings, most = zip(*(REQUESTS[row] for row in rows), strict=True)
    assert generate(make_model("rope"), prompts, samplings, most) == [alone[row] for row in rows]


@pytest.mark.parametrize("penalty", [1.0, 1.7])
def test_for_every_position_scheme_a_sampled_text_is_the_same_alone_and_in_a_batch(model, penalty):
    sampling = SamplingConfig(temperature=1.2, top_p=0.95, repetition_penalty=penalty, seed=11)
    together = generate(model, PROMPTS, sampling, 40)
    assert together == [generate(model, [prompt], sampling, 40)[0] for prompt in PROMPTS]


@pytest.mark.slow
def test_over_many_tokens_a_text_is_the_same_alone_and_in_a_batch(make_model):
    """20,000 tokens over a vocabulary of 4,000 in batches of 50, and one by one."""
    model = make_model("rope", vocab=4000, context=128, std=0.15)
    prompts = [[(7 * i + j * j) % 4000 for j in range(1 + i % 9)] for i in range(200)]
    samplings = [SamplingConfig(seed=i) for i in range(200)]
    alone = [generate(model, [p], s, 100)[0] for p, s in zip(prompts, samplings, strict=True)]
    together = [g for i in range(0, 200, 50) for g in generate(model, prompts[i : i + 50], samplings[i : i + 50], 100)]
    assert together == alone


def test_sampling_touches_no_global_generator(make_model):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    generate(make_model(), PROMPTS, SamplingConfig(), 5)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_text_can_be_stopped_at_any_of_its_tokens_while_the_others_go_on(model):
    free = generate(model, PROMPTS, GREEDY, 8)
    seen: dict[int, list[int]] = {row: [] for row in range(len(PROMPTS))}

    def stopped(row: int, token: int) -> bool:
        seen[row].append(token)
        return (row, len(seen[row])) in {(1, 3), (2, 1), (3, 8)}

    found = generate(model, PROMPTS, GREEDY, 8, stopped=stopped)
    assert [len(generation.tokens) for generation in found] == [8, 3, 1, 8]
    assert [generation.finish_reason for generation in found] == ["length", "stop", "stop", "stop"]
    for row, generation in enumerate(found):
        assert generation.tokens == seen[row] == free[row].tokens[: len(generation.tokens)]


def test_streaming_gives_the_same_tokens_one_by_one(model):
    sampling = SamplingConfig(temperature=1.2, seed=5)
    [expected] = generate(model, [PROMPTS[1]], sampling, 10)
    tokens = stream(model, PROMPTS[1], sampling, 10)
    found = [next(tokens) for _ in expected.tokens]
    with pytest.raises(StopIteration) as end:
        next(tokens)
    assert Generation(found, end.value.value) == expected


def test_dropout_is_off_while_generating_and_back_on_after(make_model):
    model = make_model()
    expected = generate(model, PROMPTS, GREEDY, 10)
    dropping = GPT(GPTConfig.from_dict(model.config.to_dict() | {"dropout": 0.5}))
    dropping.load_state_dict(model.state_dict())
    dropping.train()
    assert generate(dropping, PROMPTS, GREEDY, 10) == expected
    assert dropping.training


def test_no_prompts_give_no_texts(make_model):
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
        ([[1], [2]], [5, 0], "max_tokens is 0; it must be 1 or more"),
        ([[1], [2]], [5], "1 values of max_tokens for 2 prompts; give one for all, or one a prompt"),
    ],
)
def test_what_cannot_be_continued_is_named(make_model, prompts, max_tokens, message):
    with pytest.raises(InputError) as error:
        generate(make_model(), prompts, GREEDY, max_tokens)
    assert str(error.value) == message


def test_settings_that_do_not_match_the_prompts_are_named(make_model):
    with pytest.raises(InputError, match="3 sampling settings for 2 prompts; give one for all, or one a prompt"):
        generate(make_model(), [[1], [2]], [GREEDY] * 3)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_broken_weights_are_said_to_be_broken(make_model, temperature):
    model = make_model()
    torch.nn.init.constant_(model.norm.weight, float("nan"))
    with pytest.raises(InputError, match="the model's logits are not finite numbers; its weights are broken"):
        generate(model, [[1]], SamplingConfig(temperature=temperature), 3)
