import json
import shutil

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from modelcore.tokenizers.huggingface import export_huggingface

HARD = [
    "a",
    "aa",
    "the",
    "e",
    " ",
    "  ",
    "\n",
    "\n\n",
    "\t",
    "\r",
    "\0",
    "▁",
    "é",
    "e\u0301",
    "😀",
    "<",
    ">",
    "0x",
    "<0x0A>",
    "--",
]
SPECIAL = ["<unk>", "<s>", "</s>", "<pad>"]
texts = st.text() | st.lists(st.sampled_from(HARD), max_size=60).map("".join)
plain_texts = texts.filter(lambda text: not any(name in text for name in SPECIAL))


@pytest.fixture(scope="session")
def exported(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    export_huggingface(tokenizer, folder, context_length=128)
    return folder


@pytest.fixture(scope="session")
def theirs(exported):
    return AutoTokenizer.from_pretrained(exported)


@settings(max_examples=500, deadline=None)
@given(text=plain_texts)
def test_every_text_gets_the_same_ids_and_comes_back(tokenizer, theirs, text):
    ids = theirs.encode(text)
    assert ids == tokenizer.encode(text)
    assert theirs.decode(ids) == text


def test_a_whole_novel_gets_the_same_ids_and_comes_back(tokenizer, exported, novel, unseen):
    theirs = tokenizers.Tokenizer.from_file(str(exported / "tokenizer.json"))
    for text in (novel, unseen):
        ids = theirs.encode(text).ids
        assert ids == tokenizer.encode(text)
        assert theirs.decode(ids) == text


@settings(max_examples=200, deadline=None)
@given(text=st.text(alphabet="ae \n-", max_size=400))
def test_repetitions_where_many_segmentations_tie_get_the_same_ids(tokenizer, theirs, text):
    assert theirs.encode(text) == tokenizer.encode(text)


def test_a_long_text_without_spaces_gets_the_same_ids(tokenizer, theirs, novel):
    text = novel.replace(" ", "")[:50_000]
    assert theirs.encode(text) == tokenizer.encode(text)


@settings(max_examples=100, deadline=None)
@given(text=st.lists(st.sampled_from(HARD + SPECIAL), max_size=20).map("".join))
def test_names_of_special_pieces_are_text_when_special_tokens_are_split(tokenizer, theirs, text):
    assert theirs.encode(text, split_special_tokens=True) == tokenizer.encode(text)


def test_names_of_special_pieces_are_special_by_default(tokenizer, theirs):
    assert theirs.encode("a</s>") == [*tokenizer.encode("a"), tokenizer.eos_id]


def test_special_ids_and_the_context_length_are_the_models(tokenizer, theirs):
    assert len(theirs) == tokenizer.vocab_size
    assert (theirs.unk_token_id, theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (0, 1, 2, 3)
    assert theirs.model_max_length == 128


def test_decoders_get_exactly_the_arguments_they_take(theirs):
    assert set(theirs("Emma")) == {"input_ids", "attention_mask"}


def test_batches_are_padded(theirs):
    batch = theirs(["Emma", "Emma Woodhouse, handsome"], padding=True)
    assert batch["input_ids"][0][-1] == theirs.pad_token_id
    assert batch["attention_mask"][0][-1] == 0


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_a_model_and_the_sentencepiece_file_beside_it_change_nothing(tokenizer, exported, tmp_path, model_type):
    folder = tmp_path / "model"
    shutil.copytree(exported, folder)
    shutil.copy(tokenizer.model_file, folder)
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    text = "handsome,  clever\n\n▁ é"
    assert AutoTokenizer.from_pretrained(folder).encode(text) == tokenizer.encode(text)


def test_saving_and_loading_it_again_changes_nothing(tokenizer, theirs, tmp_path):
    theirs.save_pretrained(tmp_path)
    text = "handsome,  clever\n\n▁ é <0x0A>"
    assert AutoTokenizer.from_pretrained(tmp_path).encode(text) == tokenizer.encode(text)


def test_exporting_twice_gives_the_same_bytes(tokenizer, exported, tmp_path):
    export_huggingface(tokenizer, tmp_path, context_length=128)
    for file in exported.iterdir():
        assert (tmp_path / file.name).read_bytes() == file.read_bytes()
