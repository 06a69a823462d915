"""Several adapters on one base: a mixed batch computes for each row what its adapter alone would."""

import itertools

import pytest
import torch

from modelcore.adapters import AdapterSwitch, LoRAConfig, add_lora, load_adapter, lora_parameters, save_adapter
from modelcore.errors import InputError
from modelcore.gptx import GPT, GPTConfig
from modelcore.inference import SamplingConfig, generate, stream
from modelcore.quantization import quantize_model

SIZES = {"vocab_size": 41, "context_length": 16, "n_layers": 2, "d_model": 24, "n_heads": 4, "d_ff": 40}
CONFIGS = {
    "llama": GPTConfig(n_kv_heads=2, **SIZES),
    "gpt2": GPTConfig(
        n_kv_heads=4, positions="learned", norm="layernorm", feedforward="gelu_tanh", attention_bias=True,
        feedforward_bias=True, norm_bias=True, tie_embeddings=True, **SIZES,
    ),
}  # fmt: skip
ARCHITECTURES = pytest.mark.parametrize("name", CONFIGS)
TOKENS = torch.randint(41, (4, 16), generator=torch.Generator().manual_seed(5))


def adapters_of(name):
    """Adapters that differ in everything: rank, kind, layers."""
    embedding = "embed_tokens" if name == "llama" else "wte"
    return {
        "plain": LoRAConfig(rank=3),
        "v2.1 (DoRA)": LoRAConfig(rank=2, alpha=5, dora=True),
        "ends": LoRAConfig(rank=4, alpha=4, rslora=True, targets=("lm_head", embedding)),
    }


def base_of(name, quantization="none"):
    torch.manual_seed(0)
    return quantize_model(GPT(CONFIGS[name]).eval(), quantization)


@pytest.fixture
def folders(request, tmp_path):
    """The adapters of an architecture, each in a folder."""
    name = request.node.callspec.params["name"]
    found = {}
    for number, (key, config) in enumerate(adapters_of(name).items()):
        model = add_lora(base_of(name), config)
        generator = torch.Generator().manual_seed(number)
        for parameter in lora_parameters(model):
            parameter.data.add_(0.2 * torch.randn(parameter.shape, generator=generator))
        found[key] = tmp_path / str(number)
        found[key].mkdir()
        save_adapter(found[key], model)
    return found


@pytest.fixture
def switch(request, folders):
    params = request.node.callspec.params
    switch = AdapterSwitch(base_of(params["name"], params.get("quantization", "none")))
    for key, folder in folders.items():
        switch.add(key, folder)
    return switch


def alone(name, folder, quantization="none"):
    model = base_of(name, quantization)
    return load_adapter(folder, model) if folder is not None else model


@pytest.mark.parametrize("quantization", ["none", "int8", "nf4"])
@ARCHITECTURES
def test_every_mixture_of_rows_equals_each_adapter_alone(name, quantization, switch, folders):
    with torch.no_grad():
        wanted = {key: alone(name, folders.get(key), quantization)(TOKENS) for key in [None, *folders]}
        differences = [(a - b).abs().max() for a, b in itertools.combinations(wanted.values(), 2)]
        assert min(differences) > 0.1
        for names in itertools.product(wanted, repeat=3):
            chosen = [*names, names[0]]
            with switch.choose(chosen):
                logits = switch.model(TOKENS)
            for row, key in enumerate(chosen):
                assert (logits[row] - wanted[key][row]).abs().max() <= 1e-5, names


@ARCHITECTURES
def test_where_nothing_is_chosen_the_model_is_its_base(name, switch):
    with torch.no_grad():
        before = base_of(name)(TOKENS)
        assert torch.equal(switch.model(TOKENS), before)
        with switch.choose(["plain"] * 4):
            pass
        assert torch.equal(switch.model(TOKENS), before)


@ARCHITECTURES
def test_the_base_is_held_once(name, folders):
    model = base_of(name)
    before = {id(parameter) for parameter in model.parameters()}
    switch = AdapterSwitch(model)
    for key, folder in folders.items():
        switch.add(key, folder)
    assert {id(parameter) for parameter in model.parameters()} == before


@ARCHITECTURES
def test_a_choice_inside_another_ends_with_itself(name, switch):
    with torch.no_grad(), switch.choose(["plain"] * 4):
        outer = switch.model(TOKENS)
        with switch.choose(["ends", None, None, "ends"]):
            assert not torch.equal(switch.model(TOKENS), outer)
        assert torch.equal(switch.model(TOKENS), outer)


@ARCHITECTURES
def test_rows_that_leave_take_their_adapters_with_them(name, switch, folders):
    choice = switch.choose(["plain", None, "ends", "v2.1 (DoRA)"])
    with torch.no_grad(), choice.kept([3, 0]):
        logits = switch.model(TOKENS[[3, 0]])
    with torch.no_grad():
        assert (logits[0] - alone(name, folders["v2.1 (DoRA)"])(TOKENS)[3]).abs().max() <= 1e-5
        assert (logits[1] - alone(name, folders["plain"])(TOKENS)[0]).abs().max() <= 1e-5


@ARCHITECTURES
def test_generation_takes_a_name_a_prompt_and_rows_that_end_early_mix_nothing_up(name, switch, folders):
    """Prompts of other lengths, other adapters, other ends: each text is what its adapter alone would write."""
    names = ["ends", "plain", None, "v2.1 (DoRA)", "plain", "ends"]
    prompts = [TOKENS[row % 4, : 2 + row].tolist() for row in range(6)]
    most = [3, 9, 1, 6, 8, 5]
    greedy = SamplingConfig(temperature=0.0)
    together = generate(switch.model, prompts, greedy, most, adapters=switch.choose(names))
    one_by_one = [
        generate(alone(name, folders.get(key)), [prompt], greedy, limit)[0]
        for key, prompt, limit in zip(names, prompts, most, strict=True)
    ]
    assert together == one_by_one
    assert generate(switch.model, prompts, greedy, most) != together
    streamed = list(stream(switch.model, prompts[1], greedy, most[1], adapters=switch.choose(["plain"])))
    assert streamed == together[1].tokens


@pytest.mark.parametrize("name", ["llama"])
def test_texts_streamed_side_by_side_keep_their_adapters(name, switch):
    prompt, greedy = TOKENS[0, :3].tolist(), SamplingConfig(temperature=0.0)
    alone = {key: list(stream(switch.model, prompt, greedy, 8, adapters=switch.choose([key]))) for key in switch.names}
    streams = {key: stream(switch.model, prompt, greedy, 8, adapters=switch.choose([key])) for key in switch.names}
    steps = list(zip(*streams.values(), strict=True))  # a token of each in turn
    assert {key: list(tokens) for key, tokens in zip(streams, zip(*steps, strict=True), strict=True)} == alone
    assert len({tuple(tokens) for tokens in alone.values()}) == 3


@pytest.mark.parametrize("name", ["llama"])
def test_generation_with_another_number_of_names_is_refused(name, switch):
    with pytest.raises(InputError, match="chosen for 1 rows, the batch has 2"):
        generate(switch.model, [[1], [2]], adapters=switch.choose(["plain"]))


@pytest.mark.parametrize("name", ["llama"])
def test_a_name_that_nothing_has_is_refused_with_the_known_ones(name, switch):
    with pytest.raises(InputError, match=r"no adapter is called 'Plain'; known: plain, v2\.1 \(DoRA\), ends"):
        switch.choose(["plain", "Plain"])


@pytest.mark.parametrize("name", ["llama"])
def test_a_batch_of_another_size_is_refused(name, switch):
    with switch.choose(["plain"] * 3), pytest.raises(InputError, match="chosen for 3 rows, the batch has 4"):
        switch.model(TOKENS)


@pytest.mark.parametrize("name", ["llama"])
def test_an_adapter_that_does_not_fit_leaves_the_others_as_they_were(name, switch, folders, tmp_path):
    other = add_lora(GPT(GPTConfig(n_kv_heads=2, **SIZES | {"d_model": 48})), LoRAConfig(rank=3))
    (tmp_path / "other").mkdir()
    save_adapter(tmp_path / "other", other)
    with pytest.raises(InputError, match=r"has shape .* is needed"):
        switch.add("other", tmp_path / "other")
    with pytest.raises(InputError, match="an adapter is called 'plain' already"):
        switch.add("plain", folders["plain"])
    assert switch.names == list(folders)
    with torch.no_grad(), switch.choose(["plain"] * 4):
        assert (switch.model(TOKENS) - alone(name, folders["plain"])(TOKENS)).abs().max() <= 1e-5


def test_a_model_that_has_an_adapter_is_refused():
    with pytest.raises(ValueError, match="has an adapter already"):
        AdapterSwitch(add_lora(base_of("llama"), LoRAConfig(rank=3)))
