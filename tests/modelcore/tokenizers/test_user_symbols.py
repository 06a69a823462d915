"""User symbols: one token each wherever they stand, here, in SentencePiece, and in transformers."""

import json
import re

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from modelcore.errors import InputError
from modelcore.stages.train_tokenizer import train_tokenizer
from modelcore.tokenizers import Tokenizer
from modelcore.tokenizers.chat import Message, encode_conversation
from modelcore.tokenizers.huggingface import export_huggingface
from modelcore.tokenizers.training import train_sentencepiece

SYMBOLS = ["<|user|>", "<|user", "Emma's", "the", "\t", "\n\n", "éé", "a,b", "<s>!"]
PARTS = [*SYMBOLS, "a", "b", " ", "  ", "\n", "▁", "é", "😀", "<", "|>", "<0x0A>", "other", "Emma"]
SPECIAL = re.compile("<(unk|s|/s|pad)>")
texts = st.text() | st.lists(st.sampled_from(PARTS), max_size=30).map("".join)


@pytest.fixture(scope="module", params=["unigram", "bpe"])
def tokenizer(request, novel, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    train_sentencepiece([novel], folder, vocab_size=700, algorithm=request.param, seed=0, user_symbols=SYMBOLS)
    return Tokenizer.load(folder)


@pytest.fixture(scope="module")
def theirs(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    export_huggingface(tokenizer, folder, context_length=128)
    return AutoTokenizer.from_pretrained(folder)


def pieces(tokenizer, text):
    return [tokenizer.name(i) for i in tokenizer.encode(text)]


def test_each_symbol_is_one_token_after_the_special_ones(tokenizer):
    assert [tokenizer.encode(symbol) for symbol in SYMBOLS] == [[4 + i] for i in range(len(SYMBOLS))]
    assert tokenizer.user_symbols == tuple(SYMBOLS)
    assert tokenizer.vocab_size == 700


def test_a_symbol_is_kept_whole_within_a_word_and_the_longest_counts(tokenizer):
    assert pieces(tokenizer, "a<|user|>b") == ["a", "<|user|>", "b"]
    assert pieces(tokenizer, "<|userb") == ["<|user", "b"]
    assert "the" in pieces(tokenizer, "mother")
    assert pieces(tokenizer, "ééé")[0] == "éé"


@settings(max_examples=200, deadline=None)
@given(text=texts)
def test_every_text_comes_back_and_no_other_tokens_spell_a_symbol(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    found = re.findall("|".join(map(re.escape, sorted(SYMBOLS, key=len, reverse=True))), text)
    assert [tokenizer.name(i) for i in ids if 4 <= i < 4 + len(SYMBOLS)] == found


@settings(max_examples=200, deadline=None)
@given(text=texts.filter(lambda text: not SPECIAL.search(text)) | st.lists(st.sampled_from(SYMBOLS)).map("".join))
def test_transformers_gives_the_same_ids_and_the_text_back(tokenizer, theirs, text):
    ids = theirs.encode(text)
    assert ids == tokenizer.encode(text)
    assert theirs.decode(ids) == text


def test_sentencepiece_gives_the_same_ids_on_a_novel_full_of_symbols(tokenizer, unseen):
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer.model_file))
    for paragraph in unseen.replace(", ", "<|user|>").split("\n\n")[:300]:
        text = f"{paragraph}\n\n"
        assert tokenizer.encode(text) == processor.encode(text)


def test_symbols_in_a_chat_are_the_same_ids_in_transformers(tokenizer, theirs):
    said = [Message("user", "the <|user|>\tx"), Message("assistant", "Emma's\n\nthe")]
    messages = [{"role": message.role, "content": message.content} for message in said]
    assert (
        theirs.apply_chat_template(messages, return_dict=True)["input_ids"] == encode_conversation(tokenizer, said).ids
    )


def test_the_stage_takes_symbols_with_spaces_between_and_reports_them(novel, tmp_path):
    (tmp_path / "corpus.txt").write_text(novel[:60_000], encoding="utf-8")
    train_tokenizer(
        corpus=tmp_path / "corpus.txt", out=tmp_path / "out", vocab_size=400, algorithm="bpe", user_symbols=" <a>  <b> "
    )
    assert Tokenizer.load(tmp_path / "out").encode("<a><b>") == [4, 5]
    assert json.loads((tmp_path / "out" / "report.json").read_text())["user_symbols"] == ["<a>", "<b>"]


@pytest.mark.parametrize(
    ("symbols", "message"),
    [
        ([""], "'' cannot be a user symbol: it must hold a character"),
        (["a b"], "'a b' cannot be a user symbol: it must hold a character, and no space"),
        (["a▁"], r"'a\\u2581' cannot be a user symbol: it must hold a character, and no space, NUL, U\+2581"),
        (["\0"], "cannot be a user symbol: it must hold a character"),
        (["\ud800"], "cannot be a user symbol: it must hold a character"),
        (["<s>"], "'<s>' cannot be a user symbol: a special or byte piece has this name"),
        (["<0x41>"], "'<0x41>' cannot be a user symbol: a special or byte piece has this name"),
        (["x", "y", "x"], "'x' cannot be a user symbol: it is given twice"),
    ],
)
def test_what_cannot_be_a_symbol_is_named_with_the_reason(tmp_path, symbols, message):
    with pytest.raises(InputError, match=message):
        train_sentencepiece(["some text"], tmp_path, vocab_size=300, algorithm="bpe", seed=0, user_symbols=symbols)
