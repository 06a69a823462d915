"""Generation by kernels says what generation by the model's modules says, and is taken only where it can be.

Without a GPU the step is not captured: the same launches run in Triton's interpreter.
"""

import copy
import gc
import subprocess
import sys
import weakref

import pytest
import torch

from modelcore.errors import InputError
from modelcore.gptx import GPT, GPTConfig
from modelcore.inference import SamplingConfig, captured, generate, stream

PROMPTS = [[5], [7, 8, 9, 10, 11], [3, 4, 3]]
GREEDY = SamplingConfig(temperature=0.0)


@pytest.fixture
def model(device) -> GPT:
    model = GPT(GPTConfig(31, 24, 1, 32, 2, 1, 48)).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    return model.to(device)


@pytest.fixture
def both_ways(monkeypatch):
    """Runs a function by the modules, then by the kernels."""

    def run(function):
        monkeypatch.setattr(captured, "runs_kernels", lambda _: False)
        ordinary = function()
        monkeypatch.setattr(captured, "runs_kernels", lambda _: True)
        monkeypatch.setattr(captured, "WORTH_CAPTURING", 1)
        return ordinary, function()

    return run


def test_texts_that_end_at_different_places_by_rules_of_their_own(model, both_ways):
    """One text ends itself, one is stopped, one gets all it asked for, while the others go on."""
    rules = [
        SamplingConfig(temperature=0.9, top_k=9, seed=1),
        SamplingConfig(temperature=1.2, top_p=0.8, seed=2),
        GREEDY,
    ]
    asked: list[tuple[int, int]] = []

    def run():
        asked.clear()

        def stopped(row, token):
            asked.append((row, token))
            return row == 1 and sum(place == 1 for place, _ in asked) == 4

        texts = generate(model, PROMPTS, rules, max_tokens=[30, 9, 6], eos_id=ends, stopped=stopped)
        return texts, list(asked)

    ends = generate(model, PROMPTS[:1], rules[0], max_tokens=9)[0].tokens[7]
    ordinary, ours = both_ways(run)
    assert ours == ordinary
    assert [text.finish_reason for text in ours[0]] == ["eos", "stop", "length"]


@pytest.mark.parametrize(
    "rule",
    [
        SamplingConfig(repetition_penalty=1.5, frequency_penalty=0.4, seed=4),
        SamplingConfig(typical_p=0.6, logit_bias={3: 2.0}, seed=5),
    ],
    ids=["penalties", "typical, bias"],
)
def test_rules_without_a_kernel_of_their_own(rule, model, both_ways):
    ordinary, ours = both_ways(lambda: generate(model, PROMPTS[:2], rule, max_tokens=6))
    assert ours == ordinary


def test_a_captured_step_serves_one_text_at_a_time_and_is_used_again(model, both_ways):
    rule = SamplingConfig(seed=6)

    def two_at_once():
        one, other = (stream(model, [9], rule, 5) for _ in range(2))
        pairs = list(zip(one, other, strict=True))
        return [first for first, _ in pairs], [second for _, second in pairs]

    ordinary, ours = both_ways(two_at_once)
    assert ours == ordinary
    step = captured._idle[model]
    assert generate(model, [[9]], rule, 5)[0].tokens == ours[0]
    assert captured._idle[model] is step
    for parameter in model.parameters():
        parameter.data = parameter.data * 1.5  # elsewhere
    ordinary, ours = both_ways(lambda: generate(model, [[9]], rule, 3))
    assert ours == ordinary
    assert captured._idle[model] is not step


def test_an_abandoned_stream_gives_its_step_back_and_a_model_takes_it_along(model, both_ways):
    models = [copy.deepcopy(model)]
    both_ways(lambda: next(stream(models[0], [9], GREEDY, 6)))
    gc.collect()
    kept = weakref.ref(captured._idle[models[0]])
    models.clear()
    gc.collect()
    assert kept() is None


def test_broken_weights_are_one_clear_line(model, both_ways):
    """The first token is finite, so the step's own choice has to see it."""
    both_ways(lambda: None)
    texts = stream(model, [9], GREEDY, 6)
    next(texts)
    with torch.no_grad():
        model.norm.weight[0] = float("nan")
    with pytest.raises(InputError, match="not finite"):
        list(texts)


def test_adapters_autocast_and_few_tokens_go_the_ordinary_way(model, monkeypatch):
    monkeypatch.setattr(captured, "runs_kernels", lambda _: True)
    lend = captured.CapturedStep.lend
    assert lend(model, 1, 20, captured.WORTH_CAPTURING - 1) is None
    assert lend(model, 65, 20, 100) is None
    with torch.autocast(model.device.type, torch.bfloat16):
        assert lend(model, 1, 20, 100) is None
    assert lend(model, 1, 20, 100) is not None


def test_without_a_gpu_triton_is_not_imported():
    code = (
        "import sys, torch\n"
        "from modelcore.gptx import GPT, GPTConfig\n"
        "from modelcore.inference import generate\n"
        "generate(GPT(GPTConfig(31, 64, 1, 32, 2, 1, 48)), [[1]], max_tokens=50)\n"
        "sys.exit('triton' in sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, env={"CUDA_VISIBLE_DEVICES": ""}).returncode == 0
