import hashlib
import io

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from modelcore.errors import InputError
from modelcore.tokenizers import StreamDecoder, Tokenizer
from modelcore.tokenizers import tokenizer as tokenizer_module
from modelcore.tokenizers.words import LONGEST_WORD, split_segments, split_words

# Any Unicode text, and text of the parts at which tokenizers break.
HARD = [
    "a",
    "the",
    " ",
    "  ",
    "\n",
    "\n\n",
    "\t",
    "\r\n",
    "\0",
    "▁",
    "é",
    "e\u0301",
    "😀",
    "<",
    "<s>",
    "</s>",
    "<0x0A>",
    "<pad>",
]
KEEPS = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False, "byte_fallback": True}
texts = st.text() | st.lists(st.sampled_from(HARD), max_size=40).map("".join)


@settings(max_examples=300, deadline=None)
@given(text=texts)
def test_every_text_comes_back_as_it_was(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


@settings(max_examples=100, deadline=None)
@given(text=texts)
def test_no_text_yields_a_special_id(tokenizer, text):
    assert not {0, tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id} & set(tokenizer.encode(text))


def test_a_whole_novel_comes_back_as_it_was(tokenizer, unseen):
    assert tokenizer.decode(tokenizer.encode(unseen)) == unseen


def test_word_by_word_gives_the_ids_that_sentencepiece_gives_the_whole_text(tokenizer, unseen):
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer.model_file))
    for paragraph in unseen.split("\n\n")[:500]:
        assert tokenizer.encode(paragraph) == processor.encode(paragraph)


# Runs about as long as a word and a segment can be, and what they are cut at.
RUNS = [*HARD, " the", "x" * 300, " " * 300, "x" * LONGEST_WORD, " " * LONGEST_WORD, "語" * 600, "truth. " * 80]
runs = st.lists(st.sampled_from(RUNS), max_size=12).map("".join)


@settings(max_examples=200, deadline=None)
@given(text=runs)
def test_a_text_has_the_ids_of_its_words_one_by_one(tokenizer, text):
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer.model_file))
    mark = [processor.piece_to_id(f"<0x{byte:02X}>") for byte in "▁".encode()]
    expected = []
    for word in split_words(text):
        for number, part in enumerate(word.split("▁")):
            expected += (mark if number else []) + processor.encode(part)
    assert tokenizer.encode(text) == expected


@given(text=texts | runs)
def test_segments_are_whole_words_of_bounded_length_and_lose_nothing(text):
    segments = split_segments(text)
    assert "".join(segments) == text
    assert [word for segment in segments for word in split_words(segment)] == split_words(text)
    assert all(len(segment) <= LONGEST_WORD or split_words(segment) == [segment] for segment in segments)


@settings(max_examples=100, deadline=None)
@given(batch=st.lists(texts, max_size=5), bos=st.booleans(), eos=st.booleans())
def test_a_batch_holds_the_ids_of_each_text(tokenizer, batch, bos, eos):
    ids, lengths = tokenizer.encode_batch(batch, bos=bos, eos=eos)
    assert (ids.dtype, lengths.dtype) == (np.uint32, np.int64)
    each = [tokenizer.encode(text, bos=bos, eos=eos) for text in batch]
    assert lengths.tolist() == [len(of_text) for of_text in each]
    assert ids.tolist() == [i for of_text in each for i in of_text]


def test_few_words_are_remembered_and_long_ones_never(tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer_module, "_REMEMBERED_WORDS", 10)
    fresh = Tokenizer.load(tokenizer.model_file)
    text = " ".join(f"word{number} {'x' * 40}" for number in range(200))
    assert fresh.encode(text) == tokenizer.encode(text)
    assert len(fresh._remembered) <= 10
    assert all(len(word) < 40 for word in fresh._remembered)


def test_sentencepiece_itself_decodes_the_ids_to_the_text(tokenizer):
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer.model_file))
    text = '  "A ▁ mark,"\n\nsaid 😀.  '
    assert processor.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("text", ["\ud800", "ab\udfffcd", "😀\ud83d"])
def test_half_a_surrogate_pair_is_named_by_its_place(tokenizer, text):
    place = next(i for i, character in enumerate(text, 1) if "\ud800" <= character <= "\udfff")
    with pytest.raises(InputError, match=rf"^character {place} of the text is half a surrogate pair \(U\+D"):
        tokenizer.encode(text)


def test_encoding_a_text_again_gives_the_same_ids(tokenizer):
    text = "handsome, clever, and rich, with a comfortable home\n"
    assert tokenizer.encode(text) == tokenizer.encode(text)


def test_an_encoding_may_be_changed_without_changing_the_next(tokenizer):
    ids = tokenizer.encode("handsome")
    expected = list(ids)
    ids.append(0)
    assert tokenizer.encode("handsome") == expected


def test_begin_and_end_are_added_when_asked_for_and_have_no_text(tokenizer):
    plain = tokenizer.encode("Emma")
    marked = tokenizer.encode("Emma", bos=True, eos=True)
    assert marked == [tokenizer.bos_id, *plain, tokenizer.eos_id]
    assert tokenizer.decode([*marked, tokenizer.pad_id]) == "Emma"


def test_special_ids_are_llamas_and_a_padding_id(tokenizer):
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer.model_file))
    assert (processor.unk_id(), processor.bos_id(), processor.eos_id(), processor.pad_id()) == (0, 1, 2, 3)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (1, 2, 3)
    assert tokenizer.vocab_size == processor.get_piece_size() == 1000


def test_digest_is_that_of_the_model_file(tokenizer):
    assert tokenizer.digest == hashlib.sha256(tokenizer.model_file.read_bytes()).hexdigest()


def test_a_folder_and_the_file_in_it_load_the_same(tokenizer):
    assert Tokenizer.load(tokenizer.model_file).digest == Tokenizer.load(tokenizer.model_file.parent).digest


@pytest.mark.parametrize("character", ["x", " "])
def test_words_are_bounded_however_long_the_text_without_spaces(tokenizer, character):
    text = character * 100_000
    assert max(map(len, split_words(text))) <= 2 * LONGEST_WORD
    assert tokenizer.decode(tokenizer.encode(text)) == text


@given(text=texts)
def test_words_lose_nothing(text):
    assert "".join(split_words(text)) == text


@settings(max_examples=100, deadline=None)
@given(ids=st.lists(st.integers(0, 999)), sizes=st.lists(st.integers(0, 4)))
def test_streaming_gives_the_text_of_all_ids_whatever_the_portions(tokenizer, ids, sizes):
    stream, rest, text = StreamDecoder(tokenizer), ids, ""
    for size in sizes:
        text, rest = text + stream.feed(rest[:size]), rest[size:]
    text += stream.feed(rest) + stream.flush()
    assert text == tokenizer.decode(ids)


def test_streaming_never_shows_half_a_character(tokenizer):
    stream = StreamDecoder(tokenizer)
    shown = [stream.feed([i]) for i in tokenizer.encode("😀€")]
    assert [part for part in shown if part] == ["😀", "€"]
    assert stream.flush() == ""


def test_an_unfinished_character_is_shown_as_a_replacement_at_the_end(tokenizer):
    stream = StreamDecoder(tokenizer)
    assert stream.feed(tokenizer.encode("😀")[:2]) == ""
    assert stream.flush() == "\ufffd"


@pytest.mark.parametrize("wrong", [-1, 1000])
def test_an_id_outside_the_vocabulary_is_named(tokenizer, wrong):
    with pytest.raises(InputError, match=rf"token id {wrong} is outside the vocabulary of 1000 \(0 to 999\)"):
        tokenizer.decode([5, wrong])


def test_a_missing_tokenizer_is_named(tmp_path):
    with pytest.raises(InputError, match=r"holds no tokenizer: neither tokenizer\.model, nor tokenizer\.json, nor"):
        Tokenizer.load(tmp_path)
    with pytest.raises(InputError, match=r"cannot read the tokenizer .*nowhere: No such file"):
        Tokenizer.load(tmp_path / "nowhere")


@pytest.mark.parametrize("content", [b"", b"no model at all", b"\x0a\xff\xff"])
def test_a_file_that_is_no_model_is_named(tmp_path, content):
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(InputError, match=r"tokenizer\.model is no SentencePiece model, or a damaged one: "):
        Tokenizer.load(tmp_path)


def test_a_model_cut_short_anywhere_never_loads_as_a_whole_one(tokenizer, tmp_path):
    data = tokenizer.model_file.read_bytes()
    for end in range(1, len(data), 997):
        (tmp_path / "tokenizer.model").write_bytes(data[:end])
        with pytest.raises(InputError):
            Tokenizer.load(tmp_path)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({}, "it changes the text"),
        ({"remove_extra_whitespaces": False}, "it changes the text"),
        ({"normalization_rule_name": "identity"}, "it changes the text"),
        ({"normalization_rule_name": "identity", "remove_extra_whitespaces": False}, "it has no byte fallback"),
        ({**KEEPS, "eos_id": -1}, "it has no piece for the end of a text"),
        ({**KEEPS, "model_type": "char"}, "it is neither unigram nor bpe"),
    ],
)
def test_a_model_that_would_change_the_text_is_refused_with_the_reason(tmp_path, novel, settings, reason):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(novel.splitlines()[:500]),
        model_writer=model,
        **{"vocab_size": 400, "model_type": "bpe", "minloglevel": 2, "hard_vocab_limit": False, **settings},
    )
    (tmp_path / "tokenizer.model").write_bytes(model.getvalue())
    with pytest.raises(InputError, match=reason):
        Tokenizer.load(tmp_path)
