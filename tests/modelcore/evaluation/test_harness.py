"""lm-eval gets from our model what it gets from its own model for transformers with the exported folder."""

import json
from dataclasses import dataclass
from pathlib import Path

import datasets
import lm_eval
import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import CachingLM
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from modelcore.convert.huggingface import write_huggingface
from modelcore.errors import InputError
from modelcore.evaluation.harness import HarnessModel
from modelcore.evaluation.tasks import run_tasks, write_tasks
from modelcore.gptx import GPT, GPTConfig
from modelcore.inference import TextGenerator
from modelcore.tokenizers import Tokenizer
from modelcore.tokenizers.training import train_sentencepiece

CONTEXT = 48
NOVEL = Path(__file__).parents[3] / "examples" / "austen" / "heldout" / "sense_and_sensibility.txt"


@dataclass(frozen=True)
class Pair:
    """One model, as ours and as transformers', in lm-eval."""

    ours: HarnessModel
    theirs: HFLM
    generator: TextGenerator


@pytest.fixture(scope="module")
def text() -> str:
    return NOVEL.read_text(encoding="utf-8")[1000:40_000]


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def pair(request, text, tmp_path_factory) -> Pair:
    folder = tmp_path_factory.mktemp(request.param)
    train_sentencepiece([text], folder, vocab_size=400, algorithm="unigram", seed=0)
    tokenizer = Tokenizer.load(folder)
    torch.manual_seed(0)
    gpt2 = {
        "positions": "learned", "norm": "layernorm", "feedforward": "gelu_tanh",
        "attention_bias": True, "feedforward_bias": True, "norm_bias": True, "tie_embeddings": True,
    }  # fmt: skip
    model = GPT(GPTConfig(400, CONTEXT, 2, 32, 4, 4, 48, **(gpt2 if request.param == "gpt2" else {})))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    # Never the likeliest: special ids and bytes. The two decoders write bytes that form no character differently.
    model.head.weight.data[: 4 + 256] = 0
    (folder / "export").mkdir()
    write_huggingface(folder / "export", model, tokenizer)
    generator = TextGenerator.load(folder / "export")
    theirs = HFLM(
        str(folder / "export"), backend="causal", device="cpu", batch_size=4, prefix_token_id=tokenizer.eos_id
    )
    return Pair(HarnessModel(generator), theirs, generator)


def requests(kind: str, *arguments: tuple) -> list[Instance]:
    return [Instance(kind, {}, argument, number) for number, argument in enumerate(arguments)]


def questions(text: str, model: HarnessModel) -> list[Instance]:
    """Pairs of context and continuation of every kind: some of which the model would continue so, some it would not."""
    pairs = [
        ("The family of Dashwood", " had long been settled"),
        ("The family of Dashwood ", "had"),  # the space belongs to the continuation
        ("", "She was"),
        ("", "a"),
        ("Elinor", "’s “mother” – £5 \U0001f600"),
        (text[:30], text[30:90]),
        (text[:3000], text[3000:3010]),  # longer than the model's context
        (text[:3000], text[3000:3060]),
        *((text[100:180], choice) for choice in (" the", " garden", " and so on", ".", " a")),
    ]
    contexts = [text[:end] for end in range(200, 800, 30)]
    said = model.generate_until(requests("generate_until", *((context, {"max_gen_toks": 1}) for context in contexts)))
    pairs += [(context, token) for context, token in zip(contexts, said, strict=True) if token]
    return requests("loglikelihood", *pairs)


def test_log_likelihoods_and_greedy_answers_are_the_same(pair, text):
    asked = questions(text, pair.ours)
    ours, theirs = pair.ours.loglikelihood(asked), pair.theirs.loglikelihood(asked, disable_tqdm=True)
    assert [nats for nats, _ in ours] == pytest.approx([nats for nats, _ in theirs], abs=1e-3)
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]
    assert {greedy for _, greedy in ours} == {True, False}


def test_rolling_log_likelihoods_are_the_same_at_every_length(pair, text):
    asked = requests("loglikelihood_rolling", *((text[:n],) for n in (1, 40, 100, 150, 400, 2000)))
    ours, theirs = pair.ours.loglikelihood_rolling(asked), pair.theirs.loglikelihood_rolling(asked, disable_tqdm=True)
    assert ours == pytest.approx(theirs, abs=1e-3, rel=1e-6)


def test_greedy_texts_are_the_same_up_to_the_first_stop_string(pair, text):
    contexts = ["She was", "It", text[:300], text[:3000]]
    plain = pair.ours.generate_until(requests("generate_until", *((c, {"max_gen_toks": 12}) for c in contexts)))
    stops = [said[4:6] for said in plain]  # certain to be met
    for options in ({"until": [], "max_gen_toks": 12}, *({"until": [stop], "max_gen_toks": 12} for stop in stops)):
        asked = requests("generate_until", *((context, options) for context in contexts))
        ours = pair.ours.generate_until(asked)
        assert ours == pair.theirs.generate_until(asked, disable_tqdm=True)
    assert any(len(said) < len(whole) for said, whole in zip(ours, plain, strict=True))


def test_sampled_texts_depend_on_the_seed_and_not_on_the_batch(pair):
    options = {"do_sample": True, "temperature": 1.0, "top_p": 0.9, "max_gen_toks": 12}
    asked = requests("generate_until", ("She was", options), ("It", options))
    said = HarnessModel(pair.generator, seed=1).generate_until(asked)
    assert HarnessModel(pair.generator, seed=1).generate_until(asked[1:]) == said[1:]
    assert HarnessModel(pair.generator, seed=2).generate_until(asked) != said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_gen_toks": CONTEXT}, f"a task asks for {CONTEXT} new tokens, the model's context is {CONTEXT}"),
        ({"num_beams": 4}, "generation_kwargs hold an option that is not known: .*num_beams"),
    ],
)
def test_options_that_cannot_be_followed_are_refused(pair, options, message):
    with pytest.raises(InputError, match=message):
        pair.ours.generate_until(requests("generate_until", ("She", options)))


def test_answers_are_kept_in_lm_evals_cache(pair, text, tmp_path):
    asked = {
        "loglikelihood": requests("loglikelihood", ("She was", " happy"), ("She was", " not")),
        "loglikelihood_rolling": requests("loglikelihood_rolling", (text[:300],)),
        "generate_until": requests("generate_until", ("She was", {"until": ["\n"], "max_gen_toks": 5})),
    }
    first = CachingLM(HarnessModel(pair.generator), str(tmp_path / "cache.db"))
    answers = {kind: getattr(first, kind)(some) for kind, some in asked.items()}
    nothing = HarnessModel(pair.generator)
    nothing._generator = None  # a model that cannot be asked
    again = CachingLM(nothing, str(tmp_path / "cache.db"))
    for kind, some in asked.items():
        assert [tuple(a) if isinstance(a, list) else a for a in getattr(again, kind)(some)] == answers[kind]


def test_the_tasks_have_the_same_results_whoever_puts_them(pair, text, tmp_path, monkeypatch):
    """Our own way, and lm-eval's front door with our model and with transformers', told the files."""
    names = write_tasks(tmp_path / "tasks", [text], items=20)
    scores = run_tasks(pair.generator, tmp_path / "tasks", names)
    assert {name: score.items for name, score in scores.items()} == names
    monkeypatch.chdir(tmp_path / "tasks")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)  # lists the machine's packages: 4 s
    for model in (pair.ours, pair.theirs):
        found = lm_eval.simple_evaluate(
            model=model,
            tasks=[f"{name}.yaml" for name in names],
            task_manager=TaskManager(include_defaults=False),
        )
        for name, metric in (("last_word", "acc"), ("multiple_choice", "acc_norm")):
            assert found["results"][name][f"{metric},none"] == scores[name].accuracy
            assert found["results"][name][f"{metric}_stderr,none"] == scores[name].standard_error
            rows = [json.loads(line) for line in (tmp_path / "tasks" / f"{name}.jsonl").read_text().splitlines()]
            assert [sample["doc"] for sample in found["samples"][name]] == rows
    assert 0 < scores["multiple_choice"].accuracy < 1
