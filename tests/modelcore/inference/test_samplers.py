"""Each sampling rule equals Hugging Face's of the same name, alone and in the order of its own ``generate``."""

import dataclasses

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from modelcore.errors import InputError
from modelcore.inference.samplers import (
    History,
    SamplingConfig,
    adjust,
    apply_temperature,
    bias_vector,
    draw,
    greedy,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    keep_typical,
    penalize_frequency,
    penalize_presence,
    penalize_repetition,
)

VOCAB, PROMPT = 97, 9
CPU = torch.device("cpu")


def random_logits(seed: int, ties: bool = False) -> torch.Tensor:
    logits = 3 * torch.randn(16, VOCAB, generator=torch.Generator().manual_seed(seed))
    return logits.round() if ties else logits


@pytest.fixture(params=[False, True], ids=["distinct", "ties"])
def logits(request) -> torch.Tensor:
    return random_logits(0, request.param)


@pytest.fixture
def ids() -> torch.Tensor:
    """16 texts of 20 tokens, of which the first 9 are the prompt."""
    return torch.randint(VOCAB, (16, 20), generator=torch.Generator().manual_seed(1))


def history_of(ids: torch.Tensor) -> History:
    history = History.of(ids[:, :PROMPT].tolist(), VOCAB, CPU)
    for tokens in ids[:, PROMPT:].T:
        history = history.extended(tokens)
    return history


class OpenAIPenalties(LogitsProcessor):
    """The formula of OpenAI's API reference, token by token.

    mu[j] -> mu[j] - c[j] * alpha_frequency - float(c[j] > 0) * alpha_presence, where c[j] is how often token j was
    sampled before, so the prompt does not count.
    """

    def __init__(self, frequency: float, presence: float) -> None:
        self.frequency, self.presence = frequency, presence

    def __call__(self, input_ids, scores):
        scores = scores.clone()
        for row, ids in enumerate(input_ids[:, PROMPT:].tolist()):
            for j in set(ids):
                c = ids.count(j)
                scores[row, j] = scores[row, j] - c * self.frequency - float(c > 0) * self.presence
        return scores


def assert_same(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("temperature", [0.1, 0.7, 1.0, 1.9])
def test_temperature_equals_hugging_face(logits, ids, temperature):
    assert_same(apply_temperature(logits, temperature), TemperatureLogitsWarper(temperature)(ids, logits))


@pytest.mark.parametrize("k", [1, 2, 40, VOCAB, VOCAB + 50])
def test_top_k_equals_hugging_face(logits, ids, k):
    assert_same(keep_top_k(logits, k), TopKLogitsWarper(k)(ids, logits))


@pytest.mark.parametrize("p", [1e-9, 0.01, 0.3, 0.9, 0.99, 0.999999])
def test_top_p_equals_hugging_face(logits, ids, p):
    assert_same(keep_top_p(logits, p), TopPLogitsWarper(p)(ids, logits))


@pytest.mark.parametrize("p", [0.01, 0.1, 0.5, 1.0])
def test_min_p_equals_hugging_face(logits, ids, p):
    """Of several likeliest tokens with min_p = 1, all stay."""
    assert_same(keep_min_p(logits, p), MinPLogitsWarper(p)(ids, logits))


@pytest.mark.parametrize("mass", [1e-9, 0.01, 0.3, 0.9, 0.99, 0.999999])
def test_typical_equals_hugging_face(logits, ids, mass):
    assert_same(keep_typical(logits, mass), TypicalLogitsWarper(mass)(ids, logits))


@pytest.mark.parametrize("penalty", [0.5, 1.0, 1.3, 4.0])
def test_repetition_penalty_equals_hugging_face(logits, ids, penalty):
    expected = RepetitionPenaltyLogitsProcessor(penalty)(ids, logits.clone())
    assert_same(penalize_repetition(logits, history_of(ids), penalty), expected)


@pytest.mark.parametrize("penalty", [-1.0, 0.0, 0.4, 2.0])
def test_presence_penalty_is_openais_and_leaves_the_prompt_alone(logits, ids, penalty):
    expected = OpenAIPenalties(0.0, penalty)(ids, logits)
    torch.testing.assert_close(penalize_presence(logits, history_of(ids), penalty), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("penalty", [-1.0, 0.0, 0.4, 2.0])
def test_frequency_penalty_is_openais_and_leaves_the_prompt_alone(logits, ids, penalty):
    ids[:, -3:] = 7  # a token said at least three times
    expected = OpenAIPenalties(penalty, 0.0)(ids, logits)
    torch.testing.assert_close(penalize_frequency(logits, history_of(ids), penalty), expected, rtol=0, atol=1e-6)


def test_logit_bias_equals_hugging_faces_sequence_bias_of_single_tokens(logits, ids):
    bias = {3: 2.5, 0: -100.0, VOCAB - 1: 0.3}
    expected = SequenceBiasLogitsProcessor([[[token], value] for token, value in bias.items()])(ids, logits)
    sampling = SamplingConfig(logit_bias=bias)
    assert_same(adjust(logits, sampling, bias=bias_vector(bias, VOCAB, CPU)), expected)


@pytest.fixture(scope="module")
def llama() -> LlamaForCausalLM:
    """Only for its ``_get_logits_processor``: Hugging Face's own order of the rules."""
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    return LlamaForCausalLM(LlamaConfig(vocab_size=VOCAB, **sizes))


def often_off(values, off):
    return st.one_of(st.just(off), values)


configurations = st.builds(
    SamplingConfig,
    temperature=st.sampled_from([0.0, 0.5, 1.0, 1.7]),
    top_k=often_off(st.integers(1, VOCAB + 5), 0),
    top_p=often_off(st.floats(0.01, 0.999), 1.0),
    min_p=often_off(st.floats(0.001, 1.0), 0.0),
    typical_p=often_off(st.floats(0.01, 0.999), 1.0),
    repetition_penalty=often_off(st.floats(0.5, 3.0), 1.0),
    presence_penalty=often_off(st.floats(-2, 2), 0.0),
    frequency_penalty=often_off(st.floats(-2, 2), 0.0),
    logit_bias=st.dictionaries(st.integers(0, VOCAB - 1), st.floats(-100, 100), max_size=5),
)


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(sampling=configurations, seed=st.integers(0, 1000), ties=st.booleans())
def test_all_rules_together_are_hugging_faces_pipeline(llama, sampling, seed, ties):
    """Its processors in its order; the penalties that it lacks are given to it as a caller's own."""
    logits = random_logits(seed, ties)
    ids = torch.randint(VOCAB, (16, 20), generator=torch.Generator().manual_seed(seed))
    theirs = GenerationConfig(
        do_sample=sampling.temperature > 0,
        temperature=sampling.temperature or None,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        min_p=sampling.min_p,
        typical_p=sampling.typical_p,
        repetition_penalty=sampling.repetition_penalty,
        sequence_bias=[[[token], bias] for token, bias in sampling.logit_bias.items()] or None,
    )
    penalties = LogitsProcessorList([OpenAIPenalties(sampling.frequency_penalty, sampling.presence_penalty)])
    expected = llama._get_logits_processor(theirs, PROMPT, logits_processor=penalties)(ids, logits.clone())
    found = adjust(logits, sampling, history_of(ids), bias_vector(sampling.logit_bias, VOCAB, CPU))
    if sampling.frequency_penalty:  # count times penalty is rounded once here and not at all there
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    else:
        assert_same(found, expected)


def test_rules_that_are_off_leave_the_logits_alone(logits):
    assert adjust(logits, SamplingConfig()) is logits


def test_rules_leave_their_input_alone(logits, ids):
    before, history = logits.clone(), history_of(ids)
    counts = history.counts.clone()
    everything = SamplingConfig(0.8, 5, 0.9, 0.1, 0.9, 2.0, 0.5, 0.5, {1: 3.0})
    adjust(logits, everything, history, bias_vector(everything.logit_bias, VOCAB, CPU))
    history.extended(torch.zeros(16, dtype=torch.long))
    assert torch.equal(logits, before)
    assert torch.equal(history.counts, counts)


def test_a_penalty_without_the_text_it_looks_at_is_a_mistake(logits):
    with pytest.raises(ValueError, match="penalties need the history"):
        adjust(logits, SamplingConfig(presence_penalty=1.0))


def test_greedy_is_what_every_rule_keeps():
    logits = random_logits(0)
    for rule in (lambda x: keep_top_k(x, 1), lambda x: keep_top_p(x, 1e-6), lambda x: keep_min_p(x, 1.0)):
        kept = rule(logits)
        assert (kept > float("-inf")).sum(-1).tolist() == [1] * len(logits)
        assert torch.equal(greedy(kept), greedy(logits))


def test_greedy_obeys_bias_and_penalties():
    logits = torch.tensor([[3.0, 2.0, -1.0]])
    said_0 = History.of([[0]], 3, CPU)
    greedily = SamplingConfig(temperature=0.0)
    for change, token in (
        ({}, 0),
        ({"repetition_penalty": 2.0}, 1),
        ({"presence_penalty": 2.0}, 0),  # it looks at the continuation alone
        ({"logit_bias": {2: 10.0}}, 2),
    ):
        sampling = dataclasses.replace(greedily, **change)
        scores = adjust(logits, sampling, said_0, bias_vector(sampling.logit_bias, 3, CPU))
        assert greedy(scores).tolist() == [token]
    for penalty in ("presence_penalty", "frequency_penalty"):
        history = said_0.extended(torch.tensor([0]))
        assert greedy(adjust(logits, dataclasses.replace(greedily, **{penalty: 2.0}), history)).tolist() == [1]


def test_a_draw_at_either_end_of_the_unit_interval_is_never_a_forbidden_token():
    logits = torch.full((4, 1000), float("-inf"))
    logits[:, 400:403] = torch.tensor([0.1, 0.2, 0.3])
    for end in (0.0, 2.0**-53, 0.5, 1.0 - 2.0**-53):
        chosen = draw(logits, torch.full((4, 1000), end, dtype=torch.float64))
        assert chosen.tolist() == [402] * 4


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("temperature", -0.5, "temperature is -0.5; it must be 0 (greedy) or at least 0.001"),
        ("temperature", 1e-9, "temperature is 1e-09; it must be 0 (greedy) or at least 0.001"),
        ("temperature", float("nan"), "temperature is nan; it must be 0 (greedy) or at least 0.001"),
        ("top_k", -1, "top_k is -1; it must be a whole number, 0 for off"),
        ("top_k", 2.0, "top_k is 2.0; it must be a whole number, 0 for off"),
        ("top_p", 0.0, "top_p is 0.0; it must be above 0 and at most 1 (off)"),
        ("top_p", 1.5, "top_p is 1.5; it must be above 0 and at most 1 (off)"),
        ("min_p", -0.1, "min_p is -0.1; it must be at least 0 (off) and at most 1"),
        ("typical_p", 0.0, "typical_p is 0.0; it must be above 0 and at most 1 (off)"),
        ("repetition_penalty", 0.0, "repetition_penalty is 0.0; it must be above 0, 1 for off"),
        ("presence_penalty", float("inf"), "presence_penalty is inf; it must be a finite number, 0 for off"),
        ("frequency_penalty", float("nan"), "frequency_penalty is nan; it must be a finite number, 0 for off"),
        ("logit_bias", {-1: 1.0}, "logit_bias holds -1: 1.0; it must map token ids to finite numbers"),
        ("logit_bias", {"5": 1.0}, "logit_bias holds '5': 1.0; it must map token ids to finite numbers"),
        ("logit_bias", {5: float("inf")}, "logit_bias holds 5: inf; it must map token ids to finite numbers"),
        ("seed", -1, "seed is -1; it must be a whole number from 0 to 2^63 - 1"),
        ("seed", 2**63, f"seed is {2**63}; it must be a whole number from 0 to 2^63 - 1"),
    ],
)
def test_a_value_out_of_range_is_named(field, value, message):
    with pytest.raises(InputError) as error:
        dataclasses.replace(SamplingConfig(), **{field: value})
    assert str(error.value) == message


def test_a_bias_on_an_id_outside_the_vocabulary_is_named():
    with pytest.raises(InputError, match="logit_bias names id 97, the model knows 0 to 96"):
        bias_vector({3: 1.0, VOCAB: 1.0}, VOCAB, CPU)
