import gzip
import hashlib
import json
import logging
from pathlib import Path

import numpy as np
import pytest

from modelcore.data.instructions import encode_example, load_instructions
from modelcore.errors import InputError
from modelcore.tokenizers import Tokenizer
from modelcore.tokenizers.chat import Message, format_prompt
from modelcore.tokenizers.training import train_sentencepiece

EXAMPLES = Path(__file__).parents[3] / "examples" / "austen"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    novel = (EXAMPLES / "train" / "emma.txt").read_text(encoding="utf-8")[:50_000]
    train_sentencepiece([novel], folder, vocab_size=600, algorithm="bpe", seed=0)
    return Tokenizer.load(folder)


@pytest.fixture
def write(tmp_path):
    def write(*lines: str | bytes) -> Path:
        path = tmp_path / "pairs.jsonl"
        path.write_bytes(b"".join((line if isinstance(line, bytes) else line.encode()) + b"\n" for line in lines))
        return path

    return write


def pair(prompt="Is he married or single?", response="Oh! single, my dear."):
    return json.dumps({"prompt": prompt, "response": response})


def conversation(*contents, system=None, **fields):
    messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]
    system = [] if system is None else [{"role": "system", "content": system}]
    return json.dumps({"messages": [*system, *messages], **fields})


def test_an_example_is_the_prompt_the_response_and_the_end(tokenizer):
    example = encode_example(tokenizer, [Message("user", "Are you well?"), Message("assistant", "Perfectly so.")])
    prompt, response = example.tokens[~example.loss], example.tokens[example.loss]
    assert prompt.tolist() == tokenizer.encode(format_prompt("Are you well?"))
    assert response.tolist() == tokenizer.encode(" Perfectly so.", eos=True)
    assert example.tokens.tolist() == [*prompt, *response]
    assert (example.tokens.dtype, example.loss.dtype) == (np.int64, np.bool_)


def test_a_conversation_is_learned_from_in_every_reply(tokenizer, write):
    path = write(conversation("One?", "Two.", "Three?", "Four.", system="Count."))
    (example,) = load_instructions(path, tokenizer, max_tokens=64).examples
    assert tokenizer.decode(example.tokens) == ' Count.\n\n "One?"\n\n" Two. "Three?"\n\n" Four.'
    assert tokenizer.decode(example.tokens[example.loss]) == " Two. Four."
    assert (example.tokens[example.loss] == tokenizer.eos_id).sum() == 2


def test_both_forms_of_a_line_give_the_same_example_and_messages_count_where_both_are_there(tokenizer, write):
    path = write(pair("One?", "Two."), conversation("One?", "Two."), conversation("One?", "Two.", prompt="x", id=7))
    examples = load_instructions(path, tokenizer, max_tokens=64).examples
    assert len({tuple(example.tokens.tolist()) for example in examples}) == 1
    assert len({tuple(example.loss.tolist()) for example in examples}) == 1


def test_every_line_becomes_an_example_in_the_order_of_the_file(tokenizer, write):
    path = write(
        pair("One?", "Two."), "", pair("Three?", "Four."), json.dumps({"prompt": "5", "response": "6", "n": 7})
    )
    loaded = load_instructions(path, tokenizer, max_tokens=64)
    responses = [tokenizer.decode(example.tokens[example.loss]) for example in loaded.examples]
    assert responses == [" Two.", " Four.", " 6"]
    assert loaded.dropped == 0
    assert loaded.digest == hashlib.sha256(path.read_bytes()).hexdigest()


def test_pairs_that_do_not_fit_are_left_out_and_counted(tokenizer, write, caplog):
    path = write(pair(), pair(response="so " * 200), pair())
    with caplog.at_level(logging.WARNING, "modelcore"):
        loaded = load_instructions(path, tokenizer, max_tokens=64)
    assert (len(loaded.examples), loaded.dropped) == (2, 1)
    assert "dropped=1 of=3" in caplog.text
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_a_few_of_very_many_left_out_are_no_warning(tokenizer, write, caplog):
    path = write(pair(response="so " * 200), *[pair()] * 100)
    with caplog.at_level(logging.INFO, "modelcore"):
        assert load_instructions(path, tokenizer, max_tokens=64).dropped == 1
    assert [record.levelname for record in caplog.records if "dropped=1 of=101" in record.message] == ["INFO"]


def test_an_example_of_exactly_the_length_fits(tokenizer, write):
    length = len(load_instructions(write(pair()), tokenizer, max_tokens=64).examples[0].tokens)
    assert len(load_instructions(write(pair()), tokenizer, max_tokens=length).examples) == 1
    with pytest.raises(
        InputError, match=rf"none of its 1 conversations fits into {length - 1} tokens \(the shortest has {length}\)"
    ):
        load_instructions(write(pair()), tokenizer, max_tokens=length - 1)


def test_the_committed_pairs_all_load(tokenizer):
    loaded = load_instructions(EXAMPLES / "instructions.jsonl", tokenizer, max_tokens=512)
    assert len(loaded.examples) > 1900
    assert loaded.dropped == 0


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{prompt: no}", r"pairs\.jsonl:2: the line is no JSON: "),
        ("[1, 2]", r'pairs\.jsonl:2: the line is no JSON object; it must be {"prompt"'),
        (b'{"prompt": "\xff"}', r"pairs\.jsonl:2: byte 13 of the line is not UTF-8"),
        ('{"prompt": "Well?"}', r"pairs\.jsonl:2: the field 'response' is missing"),
        ('{"prompt": 3, "response": "x"}', r"pairs\.jsonl:2: the field 'prompt' is 3; it must be a text"),
        ('{"prompt": "x", "response": null}', r"pairs\.jsonl:2: the field 'response' is null; it must be a text"),
        ('{"prompt": "x", "response": " "}', r"pairs\.jsonl:2: the field 'response' is \" \"; it must be a text"),
        (
            r'{"prompt": "a\ud800", "response": "x"}',
            r"pairs\.jsonl:2: character 2 of 'prompt' is half a surrogate pair",
        ),
        ('{"messages": "Well?"}', r"pairs\.jsonl:2: the field 'messages' is \"Well\?\"; it must be a list of objects"),
        ('{"messages": []}', r"pairs\.jsonl:2: the conversation has no message of a user"),
        ('{"messages": ["Well?"]}', r"pairs\.jsonl:2: message 1 is \"Well\?\"; it must be an object with role and"),
        ('{"messages": [{"role": "user"}]}', r"pairs\.jsonl:2: the field 'content' of message 1 is missing"),
        (conversation("Well?", ""), r"pairs\.jsonl:2: the field 'content' of message 2 is \"\"; it must be a text"),
        (conversation("One?", "Two.", "Three?"), r"pairs\.jsonl:2: the last message is the user's; a conversation to"),
        (
            '{"messages": [{"role": "tool", "content": "x"}]}',
            r"pairs\.jsonl:2: message 1 has the role 'tool'; it must be system, user or assistant",
        ),
        ("[" * 100_000, r"pairs\.jsonl:2: the line is no JSON: "),
        ('{"id": ' + "1" * 5000 + "}", r"pairs\.jsonl:2: the line is no JSON: Exceeds the limit"),
    ],
)
def test_a_line_that_is_no_pair_is_named_by_file_and_line(tokenizer, write, line, message):
    with pytest.raises(InputError, match=message) as error:
        load_instructions(write(pair(), line), tokenizer, max_tokens=64)
    assert "\n" not in str(error.value)


def test_a_byte_order_mark_at_the_start_of_the_file_is_none_of_the_text(tokenizer, write):
    path = write(pair())
    plain = load_instructions(path, tokenizer, max_tokens=64)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    marked = load_instructions(path, tokenizer, max_tokens=64)
    assert [example.tokens.tolist() for example in marked.examples] == [plain.examples[0].tokens.tolist()]


@pytest.mark.parametrize("lines", [[], ["", "  "]])
def test_an_empty_file_is_refused(tokenizer, write, lines):
    with pytest.raises(InputError, match=r"pairs\.jsonl is empty"):
        load_instructions(write(*lines), tokenizer, max_tokens=64)


def test_a_missing_file_is_named(tokenizer, tmp_path):
    with pytest.raises(InputError, match=r"instructions file .*nowhere\.jsonl does not exist"):
        load_instructions(tmp_path / "nowhere.jsonl", tokenizer, max_tokens=64)


def test_a_compressed_file_is_refused_with_what_would_be_right(tokenizer, tmp_path):
    path = tmp_path / "pairs.jsonl.gz"
    path.write_bytes(gzip.compress(pair().encode()))
    with pytest.raises(InputError, match=r"pairs\.jsonl\.gz is compressed; unpack it first"):
        load_instructions(path, tokenizer, max_tokens=64)
