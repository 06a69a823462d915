"""A draft changes how fast a text comes and nothing else: no token dropped, none twice, the target's distribution."""

import itertools

import pytest
import torch

from modelcore.errors import InputError
from modelcore.inference import Generation, SamplingConfig, SpeculativeDecoder, generate
from modelcore.inference.samplers import History, adjust, bias_vector

GREEDY = SamplingConfig(temperature=0.0)
PENALIZED = SamplingConfig(
    temperature=0.0, repetition_penalty=1.3, presence_penalty=0.7, frequency_penalty=0.4, logit_bias={5: 2.0}
)
PROMPTS = [[5], [7, 8, 9, 10, 11, 12, 13], [i * 5 % 61 for i in range(24)]]


def spoken(decoder: SpeculativeDecoder, *arguments) -> Generation:
    tokens, source = [], decoder.stream(*arguments)
    while True:
        try:
            tokens.append(next(source))
        except StopIteration as end:
            return Generation(tokens, end.value)


def nudged(make_model, model, amount: float):
    """A draft that mostly agrees with the model: its weights, and some noise."""
    draft = make_model(model.config.positions)
    for parameter, noise in zip(
        draft.parameters(), make_model(model.config.positions, seed=9).parameters(), strict=True
    ):
        parameter.data += amount * noise.data
    return draft


@pytest.fixture(scope="module")
def drafts(make_model):
    """Drafts that agree with the target always, mostly and hardly ever, and one that reads only half as far."""

    def build(model):
        short = make_model("rope", seed=5, context=12, layers=1)
        return {
            "itself": model,
            "like it": nudged(make_model, model, 0.03),
            "other": make_model("rope", seed=5),
            "short": short,
        }

    return build


@pytest.mark.parametrize("positions", ["learned", "rope", "alibi"])
@pytest.mark.parametrize("kind", ["itself", "like it", "other", "short"])
@pytest.mark.parametrize("sampling", [GREEDY, PENALIZED], ids=["plain", "penalized"])
def test_greedy_output_equals_the_targets_own_token_for_token(make_model, drafts, positions, kind, sampling):
    model = make_model(positions)
    draft = drafts(model)[kind]
    expected = generate(model, PROMPTS, sampling, 1000)
    for k in (1, 4, 50):
        decoder = SpeculativeDecoder(model, draft, k)
        assert [spoken(decoder, prompt, sampling, 1000) for prompt in PROMPTS] == expected


@pytest.mark.parametrize("k", [1, 3, 50])
def test_sliding_windows_of_either_model_change_nothing(make_model, k):
    """The caches are rings then, and what the target has not taken must not have pushed out what it needs."""
    target, draft = make_model(window=5), nudged(make_model, make_model(), 0.03)
    for model, ahead in ((target, draft), (draft, target), (target, target)):
        decoder = SpeculativeDecoder(model, ahead, k)
        assert [spoken(decoder, prompt, GREEDY, 1000) for prompt in PROMPTS] == generate(model, PROMPTS, GREEDY, 1000)


def test_every_number_of_tokens_asked_for_is_given_whatever_the_draft_proposes(make_model, drafts):
    model = make_model()
    free = generate(model, [PROMPTS[1]], GREEDY, 12)[0].tokens
    for kind, k in itertools.product(("like it", "short"), (1, 4, 7)):
        decoder = SpeculativeDecoder(model, drafts(model)[kind], k)
        for most in range(1, 13):
            assert spoken(decoder, PROMPTS[1], GREEDY, most) == Generation(free[:most], "length")


def test_a_text_ends_at_the_first_end_of_text_wherever_in_a_draft_it_comes(make_model, drafts):
    model = make_model()
    free = generate(model, [PROMPTS[1]], GREEDY, 14)[0].tokens
    for kind, k, eos in itertools.product(("itself", "like it"), (2, 5), set(free)):
        expected = Generation(free[: free.index(eos)], "eos")
        assert spoken(SpeculativeDecoder(model, drafts(model)[kind], k), PROMPTS[1], GREEDY, 14, eos) == expected


def test_a_draft_equal_to_the_target_is_taken_whole(make_model):
    model = make_model()
    decoder = SpeculativeDecoder(model, model, 4)
    spoken(decoder, [5], GREEDY, 21)
    assert (decoder.accepted, decoder.proposed, decoder.acceptance_rate) == (16, 16, 1.0)
    sampled = SpeculativeDecoder(model, model, 4)
    spoken(sampled, [5], SamplingConfig(top_p=0.9, repetition_penalty=1.2), 21)
    assert sampled.acceptance_rate == 1.0


def test_what_is_taken_of_a_draft_is_counted(make_model, drafts):
    model = make_model()
    decoder = SpeculativeDecoder(model, drafts(model)["like it"], 3)
    assert decoder.acceptance_rate == 0.0
    given = [len(spoken(decoder, prompt, GREEDY, 12).tokens) for prompt in PROMPTS]
    assert 0.3 < decoder.acceptance_rate < 1.0
    assert decoder.acceptance_rate == decoder.accepted / decoder.proposed
    assert decoder.accepted < sum(given)


def test_fewer_passes_of_the_target_are_needed_than_tokens_come(make_model):
    model, draft = make_model(), make_model()  # equal weights, two models
    passes = []
    model.embedding.register_forward_hook(lambda *_: passes.append(1))
    spoken(SpeculativeDecoder(model, draft, 4), PROMPTS[1], GREEDY, 15)
    assert len(passes) == 1 + 3  # the prompt, and 15 tokens in rounds of 5


def test_the_same_seed_gives_the_same_text_and_another_seed_another(make_model, drafts):
    model = make_model()
    decoder = SpeculativeDecoder(model, drafts(model)["like it"], 3)
    texts = [spoken(decoder, [5, 6], SamplingConfig(temperature=1.5, seed=seed), 20) for seed in (3, 3, 4)]
    assert texts[0] == texts[1] != texts[2]


RULES = {
    "plain": SamplingConfig(),
    "rules": SamplingConfig(
        temperature=0.9,
        top_k=5,
        min_p=0.02,
        repetition_penalty=1.2,
        presence_penalty=0.5,
        frequency_penalty=0.3,
        logit_bias={2: 0.5},
    ),
}


@torch.no_grad()
def distribution_of_texts(model, prompt, sampling, length):
    """The exact probability of every continuation of ``length`` tokens, from uncached passes of the target alone."""
    vocab, cpu = model.config.vocab_size, torch.device("cpu")
    texts = torch.cartesian_prod(*[torch.arange(vocab)] * length)  # every text, a row
    history = History.of([prompt] * len(texts), vocab, cpu)
    bias = bias_vector(sampling.logit_bias, vocab, cpu)
    chances = torch.ones(len(texts), dtype=torch.float64)
    for place, tokens in enumerate(texts.T):
        logits = model(torch.cat((torch.tensor([prompt] * len(texts)), texts[:, :place]), dim=1))[:, -1]
        p = adjust(logits, sampling, history, bias).double().softmax(-1)
        chances *= p.gather(1, tokens[:, None])[:, 0]
        history = history.extended(tokens)
    return chances.view([vocab] * length)


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("runs", [500, pytest.param(3_000, marks=pytest.mark.slow)])
def test_sampled_texts_have_the_targets_distribution(make_model, assert_distributed, rules, runs):
    """Continuations of three tokens, two of them proposed: taken, refused, and with the target's own on top."""
    target, draft = (make_model(seed=seed, vocab=6, layers=1, width=12, std=0.6) for seed in (1, 2))
    decoder = SpeculativeDecoder(target, draft, 2)
    counts = torch.zeros(6, 6, 6)
    for seed in range(runs):
        sampling = SamplingConfig(**{**vars(RULES[rules]), "seed": seed})
        counts[tuple(spoken(decoder, [1, 4], sampling, 3).tokens)] += 1
    assert_distributed(counts, distribution_of_texts(target, [1, 4], RULES[rules], 3))
    assert 0.2 < decoder.acceptance_rate < 0.8


def test_a_draft_of_another_vocabulary_is_refused(make_model):
    with pytest.raises(InputError) as error:
        SpeculativeDecoder(make_model(), make_model(vocab=60))
    assert str(error.value) == "the draft model has 60 tokens, the target 61; a draft must share the target's tokenizer"


def test_a_draft_that_proposes_nothing_is_refused(make_model):
    with pytest.raises(InputError, match="draft_tokens is 0; it must be 1 or more"):
        SpeculativeDecoder(make_model(), make_model(), 0)


@pytest.mark.parametrize(
    ("prompt", "most", "message"),
    [
        ([], 5, "the prompt is empty"),
        ([1] * 25, 5, "the prompt has 25 tokens, the model reads at most 24"),
        ([61], 5, "the prompt holds id 61"),
        ([1], 0, "max_tokens is 0"),
    ],
)
def test_what_cannot_be_continued_is_named(make_model, prompt, most, message):
    with pytest.raises(InputError, match=message):
        spoken(SpeculativeDecoder(make_model(), make_model()), prompt, GREEDY, most)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_model_whose_weights_are_broken_is_named(make_model, temperature):
    broken = make_model()
    torch.nn.init.constant_(broken.norm.weight, float("nan"))
    sampling = SamplingConfig(temperature=temperature)
    with pytest.raises(InputError, match=r"^the model's logits are not finite numbers; its weights are broken"):
        spoken(SpeculativeDecoder(broken, make_model()), [1], sampling)
    with pytest.raises(InputError, match=r"^the draft model's logits are not finite numbers; its weights are broken"):
        spoken(SpeculativeDecoder(make_model(), broken), [1], sampling)


def test_dropout_is_off_in_both_models_while_they_speak_and_back_on_after(make_model):
    model, draft = make_model(), make_model(seed=3)
    expected = spoken(SpeculativeDecoder(model, draft), [5], GREEDY, 10)
    for each in (model, draft):
        each.train()
        each.dropout.p = 0.5
    assert spoken(SpeculativeDecoder(model, draft), [5], GREEDY, 10) == expected
    assert model.training
    assert draft.training
