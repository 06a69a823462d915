"""The chat's one form: the same ids in training, when asking, and through transformers, for every kind of tokenizer."""

import re
from pathlib import Path

import jinja2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from modelcore.errors import InputError
from modelcore.tokenizers import StreamDecoder, Tokenizer
from modelcore.tokenizers.chat import Message, encode_conversation, format_prompt, reply_text
from modelcore.tokenizers.huggingface import export_huggingface
from modelcore.tokenizers.training import train_sentencepiece

ORIGINALS = Path(__file__).parents[2] / "data" / "tokenizers"

# Ends and beginnings that might grow together with what the form puts between messages.
HARD = [
    '"',
    " ",
    "  ",
    "\n",
    "\n\n",
    "\t",
    "\0",
    "▁",
    "Oh!",
    "'s",
    "--",
    "é",
    "e\u0301",
    "😀",
    "<",
    "said ",
    "1",
    "\u3000",
]
# transformers takes the names of special tokens for the tokens; here, as in every text, they are text.
SPECIAL = re.compile(r"<(unk|s|/s|pad|\|endoftext\|)>")
contents = (st.text() | st.lists(st.sampled_from(HARD), max_size=12).map("".join)).filter(
    lambda t: not SPECIAL.search(t)
)
conversations = st.tuples(st.none() | contents, st.lists(contents, min_size=1, max_size=5))


def messages_of(conversation):
    system, turns = conversation
    said = [Message(("user", "assistant")[i % 2], text) for i, text in enumerate(turns)]
    return said if system is None else [Message("system", system), *said]


def as_dicts(messages):
    return [{"role": message.role, "content": message.content} for message in messages]


@pytest.fixture(scope="module", params=["unigram", "bpe", "llama", "llama_json", "gpt2"])
def tokenizer(request, novel, tmp_path_factory):
    if request.param in ("llama", "gpt2"):
        return Tokenizer.load(ORIGINALS / request.param)
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "llama_json":  # puts a space before the first of several parts only
        request.getfixturevalue("transformers_llama").save_pretrained(folder)
        return Tokenizer.load(folder)
    train_sentencepiece([novel], folder, vocab_size=1000, algorithm=request.param, seed=0)
    return Tokenizer.load(folder)


@pytest.fixture(scope="module")
def theirs(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    export_huggingface(tokenizer, folder, context_length=128)
    return AutoTokenizer.from_pretrained(folder)


def test_the_form_is_a_scene_of_dialogue():
    assert format_prompt("Are you well?") == ' "Are you well?"\n\n"'
    assert format_prompt("Are you well?", "It rained.") == ' It rained.\n\n "Are you well?"\n\n"'


@settings(max_examples=100, deadline=None)
@given(conversation=conversations)
def test_transformers_gives_the_same_ids_and_marks_the_same_tokens_as_the_assistants(tokenizer, theirs, conversation):
    messages = messages_of(conversation)
    ours = encode_conversation(tokenizer, messages)
    asked = messages[-1].role == "user"
    encoded = theirs.apply_chat_template(
        as_dicts(messages), add_generation_prompt=asked, return_dict=True, return_assistant_tokens_mask=True
    )
    assert encoded["input_ids"] == ours.ids
    assert encoded["assistant_masks"] == [int(replied) for replied in ours.replied]


@settings(max_examples=100, deadline=None)
@given(conversation=conversations)
def test_what_is_asked_begins_what_was_learned(tokenizer, conversation):
    messages = messages_of(conversation)
    learned = encode_conversation(tokenizer, messages)
    for end, message in enumerate(messages):
        if message.role == "assistant":
            asked = encode_conversation(tokenizer, messages[:end]).ids
            assert learned.ids[: len(asked)] == asked
            assert learned.replied[len(asked)]
            assert not learned.replied[len(asked) - 1]


@settings(max_examples=50, deadline=None)
@given(prompt=contents, system=contents.filter(bool))
def test_the_prompt_as_text_has_the_ids_of_the_conversation(tokenizer, prompt, system):
    for messages, text in (
        ([Message("user", prompt)], format_prompt(prompt)),
        ([Message("system", system), Message("user", prompt)], format_prompt(prompt, system)),
    ):
        assert tokenizer.encode(text, bos=tokenizer.adds_bos) == encode_conversation(tokenizer, messages).ids


@settings(max_examples=50, deadline=None)
@given(reply=contents.filter(lambda text: "▁" not in text))
def test_a_reply_comes_back_as_it_was_learned(tokenizer, reply):
    conversation = encode_conversation(tokenizer, [Message("user", "Well?"), Message("assistant", reply)])
    *ids, end = (i for i, replied in zip(conversation.ids, conversation.replied, strict=True) if replied)
    stream = StreamDecoder(tokenizer, continues=True)
    assert reply_text(stream.feed(ids) + stream.flush()) == reply
    assert end == tokenizer.eos_id


def test_a_conversation_without_messages_is_refused(tokenizer):
    with pytest.raises(InputError, match="the conversation has no message of a user"):
        encode_conversation(tokenizer, [])


def test_only_replies_and_their_ends_are_marked(tokenizer):
    messages = messages_of(("It rained.", ["Well?", "Very well.", "Indeed?", "Indeed."]))
    conversation = encode_conversation(tokenizer, messages)
    marked = [i for i, replied in zip(conversation.ids, conversation.replied, strict=True) if replied]
    assert tokenizer.decode_bytes(marked) == b" Very well. Indeed."
    assert marked.count(tokenizer.eos_id) == conversation.ids.count(tokenizer.eos_id) == 2


@pytest.mark.parametrize(
    ("roles", "message"),
    [
        (["system"], "the conversation has no message of a user"),
        (["tool"], "message 1 has the role 'tool'; it must be system, user or assistant"),
        (["assistant", "user"], "message 1 has the role 'assistant'; user and assistant must take turns"),
        (["user", "user"], "message 2 has the role 'user'; user and assistant must take turns"),
        (["system", "user", "assistant", "assistant"], "message 4 has the role 'assistant'; user and assistant must"),
        (["user", "system"], "message 2 has the role 'system', which only the first message may have"),
        (["system", "system"], "message 2 has the role 'system', which only the first message may have"),
    ],
)
def test_another_order_is_refused_here_and_by_the_template_in_the_same_words(tokenizer, theirs, roles, message):
    messages = [Message(role, "x") for role in roles]
    with pytest.raises(InputError, match=message):
        encode_conversation(tokenizer, messages)
    with pytest.raises(jinja2.TemplateError, match=message):
        theirs.apply_chat_template(as_dicts(messages), tokenize=False)
