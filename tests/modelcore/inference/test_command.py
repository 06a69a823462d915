"""``modelcore generate``: what the flags do, what goes where, and one line for what is wrong."""

import io
import subprocess
import sys

import pytest
import torch

from modelcore.cli import main
from modelcore.gptx import GPT, GPTConfig
from modelcore.inference import SamplingConfig, TextGenerator
from modelcore.models import save_model
from modelcore.tokenizers.training import train_sentencepiece

WORDS = ("the", "a", "sister", "walked", "talked", "with", "and", "letter", "garden", "é", "–")
TEXT = [" ".join(WORDS[(i * i + j) % len(WORDS)] for j in range(12)) + ".\n" for i in range(300)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model that says something, with its tokenizer."""
    tokenizer, folder = tmp_path_factory.mktemp("tokenizer"), tmp_path_factory.mktemp("model")
    train_sentencepiece(TEXT, tokenizer, vocab_size=300, algorithm="bpe", seed=0)
    model = GPT(GPTConfig(300, 64, 2, 32, 4, 2, 48))
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    save_model(folder, model, tokenizer / "tokenizer.model")
    return folder


@pytest.fixture
def generate(folder, capsys):
    """Runs the command; gives the exit status, and what was written to standard output and standard error."""

    def run(*arguments: str) -> tuple[int, str, str]:
        status = main(["generate", "--model", str(folder), "--max-tokens", "20", *arguments])
        return status, *capsys.readouterr()

    return run


@pytest.mark.parametrize(
    ("flags", "sampling"),
    [
        ("", {}),
        ("--temperature 0", {"temperature": 0.0}),
        ("--top-k 3", {"top_k": 3}),
        ("--top-p 0.5", {"top_p": 0.5}),
        ("--min-p 0.2", {"min_p": 0.2}),
        ("--typical-p 0.3", {"typical_p": 0.3}),
        ("--repetition-penalty 0.3", {"repetition_penalty": 0.3}),
        ("--presence-penalty 1.5", {"presence_penalty": 1.5}),
        ("--frequency-penalty 1.5", {"frequency_penalty": 1.5}),
        ("--seed 5", {"seed": 5}),
    ],
)
def test_each_flag_is_the_setting_of_its_name(generate, folder, flags, sampling):
    defaults = {"temperature": 0.8, "top_p": 0.95, "seed": 0}
    expected = TextGenerator.load(folder).complete("the ", SamplingConfig(**defaults | sampling), 20).text
    assert generate("--prompt", "the ", *flags.split()) == (0, f"the {expected}\n", "")
    if sampling:
        assert expected != TextGenerator.load(folder).complete("the ", SamplingConfig(**defaults), 20).text


def test_the_weights_can_be_held_in_eight_bits(generate, folder):
    expected = TextGenerator.load(folder, quantize="int8").complete("the ", SamplingConfig(temperature=0), 20).text
    assert generate("--prompt", "the ", "--temperature", "0", "--quantize", "int8") == (0, f"the {expected}\n", "")


def test_a_text_that_ends_at_the_models_context_says_so(generate, folder):
    """Not where it is exactly as long as was asked for, and not where it was stopped before."""
    prompt = ("--prompt", "the ", "--temperature", "0")
    generator = TextGenerator.load(folder)
    room = generator.room("the ")
    status, full, nothing = generate(*prompt, "--max-tokens", str(room))
    assert (status, nothing) == (0, "")
    context = generator.model.config.context_length
    note = f"the model's context of {context} tokens is full; --max-tokens {room + 1} is more than the {room} "
    status, text, told = generate(*prompt, "--max-tokens", str(room + 1))
    assert (status, text) == (0, full)
    assert note in told
    assert generate(*prompt, "--max-tokens", str(room + 1), "--stop", full[5:8])[2] == ""


def test_stop_may_be_given_several_times(generate):
    text = generate("--prompt", "the ")[1].removeprefix("the ").removesuffix("\n")
    for stop in (text[5:8], text[9:12]):
        found = generate("--prompt", "the ", "--stop", "never said", "--stop", stop)
        assert found == (0, f"the {text[: text.index(stop)]}\n", "")


def test_a_draft_changes_no_greedy_text_and_is_reported_beside_it(generate, folder):
    greedily = ("--prompt", "the ", "--temperature", "0")
    _, text, _ = generate(*greedily)
    status, found, report = generate(*greedily, "--draft", str(folder))
    assert (status, found) == (0, text)
    assert report == "draft: 16 of 16 proposed tokens accepted (100%)\n"


def test_the_prompt_is_read_from_standard_input(generate, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("é – the\n".encode())))
    status, text, _ = generate("--prompt", "-")
    assert status == 0
    assert text.startswith("é – the\n")


def test_an_empty_prompt_begins_a_new_text(generate, folder):
    expected = TextGenerator.load(folder).complete("", SamplingConfig(temperature=0.8, top_p=0.95), 20).text
    assert generate() == generate("--prompt", "") == (0, f"{expected}\n", "")


def test_a_prompt_on_the_command_line_that_is_no_utf_8_is_one_line(generate):
    """As the shell hands it on: bytes that are no UTF-8 arrive as surrogates."""
    assert generate("--prompt", "caf\udce9") == (
        1,
        "",
        "modelcore: error: the prompt is no valid UTF-8: byte 0xE9 stands at character 4\n",
    )


def test_a_prompt_on_standard_input_that_is_no_utf_8_is_one_line(generate, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9"), encoding="utf-8", errors="strict"))
    assert generate("--prompt", "-") == (
        1,
        "",
        "modelcore: error: the prompt is no valid UTF-8: byte 0xE9 stands at character 4\n",
    )


def test_a_terminal_that_cannot_show_a_character_gets_a_question_mark(folder, monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    assert main(["generate", "--model", str(folder), "--prompt", "é the ", "--max-tokens", "5"]) == 0
    sys.stdout.flush()
    assert written.getvalue().startswith(b"? the ")


def test_a_huge_prompt_is_one_line_and_nothing_is_written(generate):
    status, text, error = generate("--prompt", "the sister " * 20_000)
    assert (status, text) == (1, "")
    assert error == "modelcore: error: the prompt has 100000 tokens, the model reads at most 64; shorten it\n"


@pytest.mark.parametrize("draft", [False, True])
def test_weights_that_are_no_numbers_are_one_line(generate, folder, tmp_path, draft):
    model = GPT(GPTConfig(300, 64, 2, 32, 4, 2, 48))
    torch.nn.init.constant_(model.blocks[0].feedforward.up.weight, float("nan"))
    save_model(tmp_path, model, folder / "tokenizer.model")
    status, text, error = generate("--draft" if draft else "--model", str(tmp_path))
    assert (status, text) == (1, "")
    name = "the draft model" if draft else "the model"
    assert error == f"modelcore: error: {name}'s logits are not finite numbers; its weights are broken\n"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--typical-p 0", "typical_p is 0.0; it must be above 0 and at most 1 (off)"),
        ("--repetition-penalty -1", "repetition_penalty is -1.0; it must be above 0, 1 for off"),
        ("--presence-penalty nan", "presence_penalty is nan; it must be a finite number, 0 for off"),
        ("--max-tokens 0", "max_tokens is 0; it must be 1 or more"),
        ("--draft /no/such", "/no/such"),
        ("--stop=", "a stop string is empty; leave it out, or name the text to stop at"),
    ],
)
def test_a_setting_that_cannot_be_is_one_line(generate, flags, message):
    status, text, error = generate("--prompt", "the ", *flags.split())
    assert (status, text) == (1, "")
    assert message in error
    assert error.count("\n") == 1


def test_the_first_token_comes_within_three_seconds_of_the_process_start(folder):
    """Processor time, imports included: unlike the clock's it does not grow when other tests run beside."""
    script = (
        "import sys, time\n"
        "from modelcore.cli import main\n"
        "main(['generate', '--model', sys.argv[1], '--prompt', 'the ', '--max-tokens', '1'])\n"
        "print('', time.process_time(), *sys.modules, file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(folder)], capture_output=True, text=True, check=True)
    seconds, *modules = done.stderr.split()
    assert float(seconds) < 3
    assert not {"transformers", "mlflow", "matplotlib", "pandas", "pyarrow", "peft", "scipy"} & set(modules)
