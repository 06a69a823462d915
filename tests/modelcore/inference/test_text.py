"""From text to text: streaming, stop strings, what is held back, model and tokenizer folders of either format."""

import subprocess
import sys

import pytest
import torch

from modelcore.convert.huggingface import write_huggingface
from modelcore.errors import InputError
from modelcore.gptx import GPT, GPTConfig
from modelcore.inference import SamplingConfig, TextGenerator
from modelcore.inference.text import StopScanner
from modelcore.models import save_model
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
    expected = TextGenerator(merge(tuned).eval(), generator.tokenizer).complete("the ", SAMPLING, 20)
    assert TextGenerator.load(folder, adapter).complete("the ", SAMPLING, 20) == expected
    assert expected != generator.complete("the ", SAMPLING, 20)


def test_the_first_token_comes_within_three_seconds_of_the_process_start(folder):
    """Processor time, imports included: unlike the clock's it does not grow when other tests run beside."""
    script = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from modelcore.inference.text import TextGenerator\n"
        "next(TextGenerator.load(Path(sys.argv[1])).stream('the '))\n"
        "print(time.process_time(), *sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(folder)], capture_output=True, text=True, check=True)
    seconds, *modules = done.stdout.split()
    assert float(seconds) < 3
    assert not {"transformers", "mlflow", "matplotlib", "pandas", "pyarrow", "peft"} & set(modules)
