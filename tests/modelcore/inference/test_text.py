"""From text to text: streaming, stop strings, what is held back, model and tokenizer folders of either format."""

import pytest
import torch

from modelcore.convert import read_model
from modelcore.convert.huggingface import write_huggingface
from modelcore.errors import InputError
from modelcore.gptx import GPT, GPTConfig
from modelcore.inference import SamplingConfig, TextGenerator
from modelcore.inference.text import StopScanner
from modelcore.models import save_model
from modelcore.quantization import Int8Linear, quantize_model
from modelcore.tokenizers import Tokenizer
from modelcore.tokenizers.training import train_sentencepiece

WORDS = ("the", "a", "sister", "walked", "talked", "with", "and", "letter", "garden", "é", "–")
TEXT = [" ".join(WORDS[(i * i + j) % len(WORDS)] for j in range(12)) + ".\n" for i in range(300)]
SAMPLING = SamplingConfig(temperature=1.0, seed=1)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_sentencepiece(TEXT, folder, vocab_size=300, algorithm="bpe", seed=0)
    return Tokenizer.load(folder)


@pytest.fixture(scope="module")
def generator(tokenizer) -> TextGenerator:
    torch.manual_seed(0)
    model = GPT(GPTConfig(tokenizer.vocab_size, 64, 2, 32, 4, 2, 48)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return TextGenerator(model, tokenizer)


def test_the_pieces_of_a_stream_are_the_completion(generator):
    whole = generator.complete("the sister ", SAMPLING, 40)
    pieces = list(generator.stream("the sister ", SAMPLING, 40))
    assert "".join(pieces) == whole.text
    assert len(pieces) > 10
    assert all(pieces)


def test_a_character_of_several_tokens_is_never_shown_in_part(generator, tokenizer):
    """A model of random weights says many stray bytes; what is streamed is still what the whole decodes to."""
    from modelcore.inference import generate

    for seed in range(5):
        sampling = SamplingConfig(temperature=2.0, seed=seed)
        [generation] = generate(generator.model, [tokenizer.encode("the ")], sampling, 50, tokenizer.eos_id)
        assert "".join(generator.stream("the ", sampling, 50)) == tokenizer.decode(generation.tokens)


def test_an_empty_prompt_begins_a_new_text(generator, tokenizer):
    from modelcore.inference import generate

    [generation] = generate(generator.model, [[tokenizer.eos_id]], SAMPLING, 20, tokenizer.eos_id)
    assert generator.complete("", SAMPLING, 20).text == tokenizer.decode(generation.tokens)


def test_a_stop_string_ends_the_text_before_it(generator):
    free = generator.complete("the ", SAMPLING, 50).text
    for stop in (free[7:9], free[10:16], free[0], free[-2:]):
        stopped = generator.complete("the ", SAMPLING, 50, stop=["never said at all", stop])
        assert stopped.text == free[: free.index(stop)]
        assert stopped.finish_reason == "stop"


def test_a_stop_string_that_never_comes_changes_nothing(generator):
    free = generator.complete("the ", SAMPLING, 50)
    assert generator.complete("the ", SAMPLING, 50, stop=[free.text[-3:] + "x", "§§§"]) == free


@pytest.mark.parametrize(
    ("pieces", "stop", "shown"),
    [
        (["abc", "def"], [], ["abc", "def"]),
        (["ab", "cd", "ef"], ["cde"], ["ab", "", ""]),
        (["ab", "cd", "xf"], ["cde"], ["ab", "", "cdxf"]),
        (["aab"], ["ab"], ["a"]),
        (["a", "a", "b", "c"], ["ab"], ["", "a", "", ""]),
        (["one two three"], ["three", "two"], ["one "]),
        (["x<", "/", "s", ">y"], ["</s>"], ["x", "", "", ""]),
    ],
)
def test_what_may_become_a_stop_string_is_held_back(pieces, stop, shown):
    scanner = StopScanner(stop)
    assert [scanner.add(piece) for piece in pieces] == shown


def test_what_was_held_back_in_vain_comes_at_the_end():
    scanner = StopScanner(["abcd"])
    assert scanner.add("xabc") == "x"
    assert scanner.flush() == "abc"
    assert not scanner.found


def test_the_reason_for_the_end_is_told(generator, tokenizer):
    assert generator.complete("the ", SAMPLING, 3).finish_reason == "length"
    assert generator.complete("the ", SAMPLING, 1000).finish_reason in ("length", "eos")
    silent = GPT(generator.model.config).eval()
    silent.load_state_dict(generator.model.state_dict())
    silent.norm.weight.data.zero_()
    silent.head.weight.data.zero_()
    # All logits are 0, so of equal ones the first wins: the tokenizer's id 0, which has no text.
    assert TextGenerator(silent, tokenizer).complete("the ", SamplingConfig(temperature=0.0), 4).text == ""


def test_a_prompt_too_long_for_the_context_is_named(generator):
    with pytest.raises(InputError, match=r"the prompt has \d+ tokens, the model reads at most 64; shorten it"):
        generator.complete("§" * 100, SAMPLING)


def test_whether_a_prompt_fits_can_be_asked_before(generator):
    assert generator.fits("the sister walked")
    assert not generator.fits("§" * 100)


@pytest.mark.parametrize(
    ("prompt", "what"),
    [
        ("a \udcff", "byte 0xFF stands at character 3"),  # how Python hands on a byte that is no UTF-8
        ("\udc80", "byte 0x80 stands at character 1"),
        ("é \ud800 \udcff", "the surrogate U+D800 stands at character 3"),
    ],
)
def test_a_prompt_that_is_no_utf_8_is_refused(generator, prompt, what):
    for ask in (generator.complete, lambda prompt: generator.complete_all(["a", prompt])):
        with pytest.raises(InputError) as error:
            ask(prompt)
        assert str(error.value) == f"the prompt is no valid UTF-8: {what}"


def test_texts_continued_together_are_what_each_would_be_alone(generator):
    prompts = ["the ", "", "a sister walked with", "é – "]
    samplings = [SamplingConfig(temperature=1.0, seed=seed) for seed in range(4)]
    free = generator.complete_all(prompts, samplings, 30)
    assert free == [generator.complete(*pair, 30) for pair in zip(prompts, samplings, strict=True)]
    # One string that the second text holds in its middle, one that no text holds.
    stop = [free[1].text[4:7], "never said at all"]
    stopped = generator.complete_all(prompts, samplings, [30, 30, 5, 30], stop)
    requests = zip(prompts, samplings, [30, 30, 5, 30], strict=True)
    assert stopped == [generator.complete(*request, stop) for request in requests]
    assert stopped[1].text == free[1].text[: free[1].text.index(stop[0])]
    assert stopped[1].finish_reason == "stop"
    assert "length" in {completion.finish_reason for completion in stopped}


@pytest.fixture(scope="module")
def with_draft(generator) -> TextGenerator:
    """The same model with a draft that agrees now and then."""
    draft = GPT(generator.model.config).eval()
    noise = torch.Generator().manual_seed(1)
    for ours, theirs in zip(draft.parameters(), generator.model.parameters(), strict=True):
        ours.data = theirs.data + 0.05 * torch.randn(theirs.shape, generator=noise)
    return TextGenerator(generator.model, generator.tokenizer, draft)


def test_with_a_draft_greedy_texts_pieces_and_stop_strings_are_the_same(generator, with_draft):
    greedy = SamplingConfig(temperature=0.0)
    free = generator.complete("the ", greedy, 50)
    assert with_draft.complete("the ", greedy, 50) == free
    assert list(with_draft.stream("the ", greedy, 50)) == list(generator.stream("the ", greedy, 50))
    for stop in (free.text[2:4], free.text[9:15], free.text[-3:]):
        expected = generator.complete("the ", greedy, 50, [stop])
        assert expected.finish_reason == "stop"
        assert with_draft.complete("the ", greedy, 50, [stop]) == expected
    prompts = ["the ", "a garden", ""]
    assert with_draft.complete_all(prompts, greedy, 20) == generator.complete_all(prompts, greedy, 20)
    assert 0 < with_draft.speculative.accepted < with_draft.speculative.proposed


def test_an_empty_stop_string_is_refused(generator):
    with pytest.raises(InputError, match="a stop string is empty"):
        generator.complete("the ", SAMPLING, stop=[""])


def test_a_tokenizer_of_another_model_is_refused(tokenizer):
    with pytest.raises(InputError, match=r"tokenizer.model has 300 tokens, the model 299; use the tokenizer that"):
        TextGenerator(GPT(GPTConfig(299, 8, 1, 8, 2, 2, 8)), tokenizer)


@pytest.fixture(scope="module")
def folder(generator, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("native")
    save_model(folder, generator.model, tokenizer.model_file)
    return folder


def test_a_native_and_a_hugging_face_folder_say_the_same(generator, folder, tmp_path):
    write_huggingface(tmp_path, generator.model, generator.tokenizer)
    for path in (folder, tmp_path):
        assert TextGenerator.load(path).complete("the ", SAMPLING, 30) == generator.complete("the ", SAMPLING, 30)


def test_a_model_read_in_eight_bits_is_the_one_quantized_in_memory(generator, folder, tmp_path):
    """Its draft too, from a folder of either format."""
    write_huggingface(tmp_path, generator.model, generator.tokenizer)
    greedy = SamplingConfig(temperature=0)
    model = quantize_model(read_model(folder), "int8", head=True)
    expected = TextGenerator(model, generator.tokenizer).complete("the ", greedy, 30)
    for path in (folder, tmp_path):
        loaded = TextGenerator.load(path, draft=path, quantize="int8")
        assert loaded.speculative is not None
        for part in (loaded.model, loaded.speculative.draft):
            assert {name for name, module in part.named_modules() if isinstance(module, Int8Linear)} >= {"head"}
            assert not any(isinstance(module, torch.nn.Linear) for module in part.modules())
        assert loaded.complete("the ", greedy, 30) == expected
    with pytest.raises(InputError, match="quantization is 'int3'"):
        TextGenerator.load(folder, quantize="int3")


def test_a_draft_must_have_the_same_tokenizer_not_only_as_many_tokens(generator, folder, tmp_path):
    assert TextGenerator.load(folder, draft=folder).speculative is not None
    trained, other = tmp_path / "trained", tmp_path / "other"
    trained.mkdir()
    other.mkdir()
    train_sentencepiece([line.upper() for line in TEXT], trained, vocab_size=300, algorithm="bpe", seed=0)
    save_model(other, generator.model, trained / "tokenizer.model")
    with pytest.raises(InputError) as error:
        TextGenerator.load(folder, draft=other)
    message = f"the draft {other} has another tokenizer than {folder}; a draft must share the target's"
    assert str(error.value) == message


def test_an_adapter_is_merged_into_the_model_it_was_trained_on(generator, folder, tmp_path):
    from modelcore.adapters import LoRAConfig, add_lora, merge, save_adapter
    from modelcore.models import load_model

    tuned = add_lora(load_model(folder), LoRAConfig(rank=2))
    for name, parameter in tuned.named_parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(len(name)))
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    save_adapter(adapter, tuned, folder)
    merged = merge(tuned).eval()
    expected = TextGenerator(merged, generator.tokenizer).complete("the ", SAMPLING, 20)
    assert TextGenerator.load(folder, adapter).complete("the ", SAMPLING, 20) == expected
    assert expected != generator.complete("the ", SAMPLING, 20)
    rounded = TextGenerator(quantize_model(merged, "int8", head=True), generator.tokenizer)
    expected = rounded.complete("the ", SAMPLING, 20)
    assert TextGenerator.load(folder, adapter, quantize="int8").complete("the ", SAMPLING, 20) == expected
