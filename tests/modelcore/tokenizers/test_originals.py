"""Tokenizers that others made: the same ids as with the library that owns them, and the text back."""

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, GPT2Tokenizer

from modelcore.data.encoding import encode_documents
from modelcore.errors import InputError
from modelcore.tokenizers import StreamDecoder, Tokenizer, copy_tokenizer, find_tokenizer
from modelcore.tokenizers.huggingface import export_huggingface

ORIGINALS = Path(__file__).parents[2] / "data" / "tokenizers"

# What tokenizers disagree on: kinds of space, contractions, marks, names of special and of byte tokens.
HARD = [
    *(
        "a",
        "the",
        "THE",
        " ",
        "  ",
        "\n",
        "\n\n",
        "\t",
        "\r\n",
        "\0",
        "\x1c",
        "\x85",
        "\xa0",
        "\u2028",
        "\u3000",
        "\u200b",
    ),
    *("▁", "é", "e\u0301", "😀", "東京", "'s", "'ll", "12", "!", "!!", "<", "<s>", "</s>", "<unk>", "<0x0A>", "Ġ"),
    "<|endoftext|>",
]
texts = st.text() | st.lists(st.sampled_from(HARD), max_size=40).map("".join)
examples = settings(max_examples=150, deadline=None)


@pytest.fixture(scope="module")
def llama():
    return Tokenizer.load(ORIGINALS / "llama")


@pytest.fixture(scope="module")
def gpt2():
    return Tokenizer.load(ORIGINALS / "gpt2")


@pytest.fixture(scope="module")
def transformers_gpt2():
    return GPT2Tokenizer.from_pretrained(ORIGINALS / "gpt2")


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def original(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def exported(original, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    export_huggingface(original, folder, context_length=128)
    return folder


@pytest.fixture(scope="module")
def theirs(exported):
    return AutoTokenizer.from_pretrained(exported)


@pytest.fixture(scope="module")
def read(exported):
    return Tokenizer.load(exported)


@examples
@given(text=texts)
def test_llamas_ids_and_text_are_those_of_sentencepiece(llama, sentencepiece_llama, text):
    ids = llama.encode(text)
    assert ids == sentencepiece_llama.encode(text)
    assert llama.decode(ids) == sentencepiece_llama.decode(ids)


@examples
@given(text=texts)
def test_llama_gives_every_text_back_but_for_u2581_which_becomes_a_space(llama, text):
    assert llama.decode(llama.encode(text)) == text.replace("▁", " ")


@examples
@given(text=texts.filter(lambda text: not text.startswith((" ", "▁"))))
def test_llamas_ids_are_those_of_transformers_unless_the_text_begins_with_a_space(llama, transformers_llama, text):
    # transformers 5 puts no space before a text that has one; SentencePiece does.
    ids = transformers_llama.encode(text, add_special_tokens=False, split_special_tokens=True)
    assert llama.encode(text) == ids


@examples
@given(text=texts)
def test_gpt2s_ids_are_those_of_transformers_and_the_text_comes_back(gpt2, transformers_gpt2, text):
    ids = gpt2.encode(text)
    assert ids == transformers_gpt2.encode(text, split_special_tokens=True)
    assert gpt2.decode(ids) == text


def test_a_long_text_gets_the_originals_ids(llama, gpt2, sentencepiece_llama, transformers_gpt2, unseen):
    unseen = unseen[:200_000]
    assert llama.encode(unseen) == sentencepiece_llama.encode(unseen)
    assert gpt2.encode(unseen) == transformers_gpt2.encode(unseen)
    assert llama.decode(llama.encode(unseen)) == gpt2.decode(gpt2.encode(unseen)) == unseen


def test_the_special_ids_are_the_originals(llama, gpt2):
    assert (llama.vocab_size, llama.unk_id, llama.bos_id, llama.eos_id) == (32_000, 0, 1, 2)
    assert (gpt2.vocab_size, gpt2.unk_id, gpt2.bos_id, gpt2.eos_id) == (50_257, None, 50_256, 50_256)
    assert (llama.pad_id, gpt2.pad_id) == (llama.eos_id, gpt2.eos_id)  # neither has one of its own


@examples
@given(text=texts)
def test_no_text_yields_a_special_id(original, text):
    assert not {original.bos_id, original.eos_id, original.pad_id} & set(original.encode(text))


def test_only_llamas_models_are_used_to_a_beginning(llama, gpt2):
    assert (llama.adds_bos, gpt2.adds_bos) == (True, False)
    (batch,) = encode_documents(["Emma", "Jane"], llama)
    assert batch.ids.tolist() == [1, *llama.encode("Emma"), 2, 1, *llama.encode("Jane"), 2]
    (batch,) = encode_documents(["Emma", "Jane"], gpt2)
    assert batch.ids.tolist() == [*gpt2.encode("Emma"), 50256, *gpt2.encode("Jane"), 50256]


@settings(max_examples=100, deadline=None)
@given(data=st.data(), text=texts, sizes=st.lists(st.integers(0, 4)))
def test_streaming_gives_the_text_of_all_ids_whatever_the_portions(original, data, text, sizes):
    ids = original.encode(text) + data.draw(st.lists(st.integers(0, original.vocab_size - 1)))
    stream, rest, shown = StreamDecoder(original), ids, ""
    for size in sizes:
        shown, rest = shown + stream.feed(rest[:size]), rest[size:]
    assert shown + stream.feed(rest) + stream.flush() == original.decode(ids)


def test_a_stream_that_continues_a_text_keeps_its_first_space(original):
    ids = original.encode("She was")
    stream = StreamDecoder(original, continues=True)
    assert original.decode(ids[:1]) + stream.feed(ids[1:]) + stream.flush() == "She was"


@pytest.mark.parametrize("text", ["\ud800", "ab\udfffcd"])
def test_half_a_surrogate_pair_is_named_by_its_place(original, text):
    with pytest.raises(InputError, match=r"^character [13] of the text is half a surrogate pair \(U\+D"):
        original.encode(text)


@examples
@given(text=texts)
def test_the_export_gives_the_same_ids_and_text(original, theirs, text):
    ids = theirs.encode(text, add_special_tokens=False, split_special_tokens=True)
    assert ids == original.encode(text)
    assert theirs.decode(ids) == original.decode(ids)


def test_the_export_begins_a_text_as_the_original_does(original, theirs):
    assert theirs.encode("Emma") == original.encode("Emma", bos=original.adds_bos)
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (
        original.bos_id,
        original.eos_id,
        original.pad_id,
    )


@examples
@given(text=texts)
def test_the_export_read_back_gives_the_same_ids_and_text(original, read, text):
    assert read.encode(text) == original.encode(text)
    assert read.decode(read.encode(text)) == original.decode(original.encode(text))


def test_what_is_read_back_has_the_same_special_ids(original, read):
    assert read.digest == original.digest or original.model_file.suffix == ".model"
    for name in ("vocab_size", "bos_id", "eos_id", "pad_id", "adds_bos", "adds_space"):
        assert getattr(read, name) == getattr(original, name)


def test_a_saved_tokenizer_loads_as_the_same_one(original, tmp_path):
    original.save(tmp_path)
    assert Tokenizer.load(tmp_path).digest == original.digest
    (tmp_path / "copy").mkdir()
    copy_tokenizer(find_tokenizer(tmp_path), tmp_path / "copy")
    copied = Tokenizer.load(tmp_path / "copy")
    assert copied.digest == original.digest
    assert copied.encode("Emma's") == original.encode("Emma's")


def test_gpt2s_two_files_are_copied_together(gpt2, tmp_path):
    copy_tokenizer(gpt2.model_file, tmp_path)
    assert Tokenizer.load(tmp_path).digest == gpt2.digest
    assert Tokenizer.load(tmp_path / "merges.txt").digest == gpt2.digest


def test_what_transformers_saves_is_read_with_its_special_tokens(transformers_gpt2, transformers_llama, tmp_path):
    for theirs in (transformers_gpt2, transformers_llama):
        theirs.save_pretrained(tmp_path)
        ours = Tokenizer.load(tmp_path)
        assert ours.encode("Emma  said é😀\n") == theirs.encode("Emma  said é😀\n", add_special_tokens=False)
        assert (ours.bos_id, ours.eos_id) == (theirs.bos_token_id, theirs.eos_token_id)


def test_the_tokens_named_beside_it_begin_and_end_a_text(gpt2, tmp_path):
    gpt2.save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "!"}, "pad_token": "#"}))
    tokenizer = Tokenizer.load(tmp_path)
    assert (tokenizer.eos_id, tokenizer.pad_id) == (0, 2)
    assert tokenizer.decode([0, 2]) == ""


def _write_gpt2(folder, **files):
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(ORIGINALS / "gpt2" / name, folder)
    for name, content in files.items():
        (folder / name.replace("_json", ".json").replace("_txt", ".txt")).write_text(content)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"vocab_json": "{"}, r"vocab\.json is no JSON: "),
        ({"vocab_json": "[]"}, r"vocab\.json holds a JSON list; an object is needed"),
        ({"vocab_json": '{"a": 0}'}, r"vocab\.json and merges\.txt are no byte-level BPE: "),
        ({"tokenizer_json": "{}"}, r"tokenizer\.json is no tokenizer of the tokenizers library, or a damaged one: "),
        ({"tokenizer_config_json": '{"eos_token": "<end>"}'}, r"eos_token is '<end>', which vocab\.json does not hold"),
    ],
)
def test_a_damaged_file_is_named_in_one_line(tmp_path, files, message):
    _write_gpt2(tmp_path, **files)
    with pytest.raises(InputError, match=message) as error:
        Tokenizer.load(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt"])
def test_half_of_gpt2s_files_is_refused_by_what_is_missing(tmp_path, name):
    _write_gpt2(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(InputError, match=f"{name}"):
        Tokenizer.load(tmp_path)


def test_a_tokenizer_that_loses_characters_is_refused(tmp_path):
    import tokenizers

    tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "</s>": 1}, "a")).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(InputError, match="neither byte-level pieces, as GPT-2, nor byte fallback"):
        Tokenizer.load(tmp_path)


def test_a_tokenizer_without_an_end_of_text_is_refused(tmp_path):
    import tokenizers

    backend = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0}, []))
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(InputError, match=r"names no end of a text; name its eos_token in tokenizer_config\.json"):
        Tokenizer.load(tmp_path)
