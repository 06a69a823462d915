"""The vocabulary in a GGUF file, read by the gguf package and encoded by llama.cpp's rules, gives the tokenizer's ids.

llama.cpp itself is asked by hand (docs/conversion.md); its two algorithms are written down here in a few lines.
"""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import gguf
import pytest
import sentencepiece
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelcore.convert import ConversionError
from modelcore.convert.gguf import read_fields, write_gguf
from modelcore.convert.gguf_vocabulary import token_bytes, vocabulary_of
from modelcore.convert.verification import PROBE_TEXTS, check_vocabulary
from modelcore.errors import InputError
from modelcore.gptx import GPT
from modelcore.tokenizers import Tokenizer
from modelcore.tokenizers.chat import chat_template
from modelcore.tokenizers.huggingface import export_huggingface

from .conftest import LLAMA, TEXT

NORMAL, CONTROL, BYTE = 1, 3, 6
TEXTS = [TEXT, *PROBE_TEXTS, "", " ", "\n\n", "<s>", "a</s> <0x0A>", "{}~", "\x00", "ﬀ", "a" * 600]


@pytest.fixture(scope="module")
def file(tokenizer, tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "m.gguf"
    write_gguf(path, GPT(LLAMA), tokenizer, name="m", dtype="f32")
    return path


@pytest.fixture(scope="module")
def fields(file):
    return {name: field.contents() for name, field in gguf.GGUFReader(file).fields.items()}


def pieces(fields):
    """Score and id of each piece that llama.cpp may choose, and the id of each byte."""
    tokens, scores, types = (fields[f"tokenizer.ggml.{name}"] for name in ("tokens", "scores", "token_type"))
    entries = list(zip(tokens, scores, types, strict=True))
    by_text = {text: (score, i) for i, (text, score, kind) in enumerate(entries) if kind != BYTE}
    return by_text, {int(text[3:5], 16): i for i, (text, _, kind) in enumerate(entries) if kind == BYTE}


def encode_plamo2(fields, text):
    """The best sum of whole scores, from the end; a character without a piece costs ten million and is its bytes."""
    by_text, byte_ids = pieces(fields)
    units = {piece: (round(score * 10_000), i) for piece, (score, i) in by_text.items()}
    longest = max(map(len, units))
    best = [(0, 0, -1)] * (len(text) + 1)  # cost of the rest, minus the length of the next piece, its id
    for start in reversed(range(len(text))):
        best[start] = (best[start + 1][0] + 10_000_000, -1, -1)
        for length in range(1, min(longest, len(text) - start) + 1):
            score, i = units.get(text[start : start + length], (-20_000_000, -1))
            if score > -20_000_000:
                best[start] = min(best[start], (best[start + length][0] - score, -length, i))
    ids, start = [], 0
    while start < len(text):
        _, length, i = best[start]
        ids += [i] if i >= 0 else [byte_ids[byte] for byte in text[start].encode()]
        start -= length
    return ids


def encode_llama(fields, text):
    """Joins the two neighbours that form the piece of the highest score, the leftmost first, until none do."""
    by_text, byte_ids = pieces(fields)
    parts = list(text.replace(" ", "\u2581"))
    while True:
        joins = [(by_text[a + b][0], -i) for i, (a, b) in enumerate(itertools.pairwise(parts)) if a + b in by_text]
        if not joins:
            break
        i = -max(joins)[1]
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return [i for part in parts for i in ([by_text[part][1]] if part in by_text else
            [byte_ids[byte] for byte in part.encode()])]  # fmt: skip


def encode(fields, text):
    return (encode_plamo2 if fields["tokenizer.ggml.model"] == "plamo2" else encode_llama)(fields, text)


@pytest.mark.parametrize("text", TEXTS)
def test_llama_cpp_gives_the_ids_of_the_tokenizer(fields, tokenizer, text):
    assert encode(fields, text) == tokenizer.encode(text)


def total(tokenizer, ids):
    return sum(tokenizer.model.pieces[i].score for i in ids)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    text=st.text(
        alphabet=st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from(" \n.,abcdehint")), max_size=60
    )
)
def test_on_any_text_too_but_for_ties(fields, tokenizer, text):
    """Known: U+2581 is a space to ``llama``; ``plamo2`` may take others of equal scores, and drops a leading U+FEFF."""
    ids, expected = encode(fields, text.replace("\u2581", "")), tokenizer.encode(text.replace("\u2581", ""))
    if tokenizer.model.algorithm == "unigram" and ids != expected:
        assert total(tokenizer, ids) == total(tokenizer, expected)
        assert tokenizer.decode_bytes(ids) == tokenizer.decode_bytes(expected)
    else:
        assert ids == expected


def test_every_token_stands_for_the_same_bytes(fields, tokenizer):
    for token in range(tokenizer.vocab_size):
        assert token_bytes(fields, token) == tokenizer.decode_bytes([token])


def test_special_tokens_and_what_is_added_to_a_text_are_said(fields, tokenizer):
    expected = {
        "bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id, "padding_token_id": tokenizer.pad_id,
        "unknown_token_id": 0, "add_bos_token": False, "add_eos_token": False, "add_space_prefix": False,
    }  # fmt: skip
    assert {name: fields[f"tokenizer.ggml.{name}"] for name in expected} == expected
    assert [fields["tokenizer.ggml.token_type"][i] for i in range(5)] == [2, CONTROL, CONTROL, CONTROL, BYTE]
    assert fields["tokenizer.chat_template"] == chat_template(adds_bos=False)


def test_a_vocabulary_that_differs_is_found_out(file, tokenizer, monkeypatch):
    fields = read_fields(file)
    fields["tokenizer.ggml.tokens"][300] += "x"
    monkeypatch.setattr("modelcore.convert.gguf.read_fields", lambda path: fields)
    with pytest.raises(ConversionError, match=r"token 300 of .*m\.gguf stands for b'.*x', not for"):
        check_vocabulary(tokenizer, file)


@pytest.mark.parametrize("name", ["bos", "eos", "padding"])
def test_a_special_token_that_differs_is_found_out(file, tokenizer, monkeypatch, name):
    fields = read_fields(file) | {f"tokenizer.ggml.{name}_token_id": 9}
    monkeypatch.setattr("modelcore.convert.gguf.read_fields", lambda path: fields)
    with pytest.raises(ConversionError, match=f"the {name} token of .*m\\.gguf is not"):
        check_vocabulary(tokenizer, file)


ORIGINALS = Path(__file__).parents[2] / "data" / "tokenizers"


def byte_level(folder, **changes):
    """A small tokenizer of GPT-2's kind; ``changes`` are made to parts of its file."""
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=320, initial_alphabet=alphabet, special_tokens=["<|endoftext|>"], show_progress=False
    )
    backend.train_from_iterator([TEXT], trainer)
    backend.add_tokens(["<tool call>"])
    fields = json.loads(backend.to_str())
    for part, change in changes.items():
        fields[part] |= change
    (folder / "tokenizer.json").write_text(json.dumps(fields))
    return Tokenizer.load(folder)


def check(tokenizer, folder):
    """Compares a tokenizer with what llama.cpp's rules make of the file written with it; gives the file's fields."""
    path = folder / "m.gguf"
    config = replace(LLAMA, vocab_size=tokenizer.vocab_size, n_layers=1, d_model=8, tie_embeddings=True)
    write_gguf(path, GPT(config), tokenizer, name="m", dtype="f32")
    check_vocabulary(tokenizer, path)
    fields = read_fields(path)
    if fields["tokenizer.ggml.model"] == "gpt2":
        merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
        vocabulary = {token: i for i, token in enumerate(fields["tokenizer.ggml.tokens"])}
        backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, merges))
        backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        for text in TEXTS:
            assert backend.encode(text).ids == tokenizer.encode(text), text
    else:
        space = " " if fields["tokenizer.ggml.add_space_prefix"] else ""
        for text in TEXTS:
            assert (encode_llama(fields, space + text) if text else []) == tokenizer.encode(text), text
    return fields


def test_a_byte_level_tokenizer_travels_with_its_merges(tmp_path):
    tokenizer = byte_level(tmp_path)
    fields = check(tokenizer, tmp_path)
    assert (fields["tokenizer.ggml.model"], fields["tokenizer.ggml.pre"]) == ("gpt2", "gpt-2")
    kinds = dict(zip(fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"], strict=True))
    assert (kinds["<|endoftext|>"], kinds["<tool call>"], kinds["a"]) == (CONTROL, 4, NORMAL)
    assert fields["tokenizer.ggml.eos_token_id"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_tokenizers_that_others_made_travel_whole(tmp_path, kind):
    fields = check(Tokenizer.load(ORIGINALS / kind), tmp_path)
    assert fields["tokenizer.ggml.model"] == kind
    assert fields["tokenizer.ggml.add_bos_token"] == fields["tokenizer.ggml.add_space_prefix"] == (kind == "llama")


def metaspace(algorithm):
    """Makes a SentencePiece model with SentencePiece's own defaults, but byte fallback."""

    def make(folder):
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter([TEXT]), model_prefix=str(folder / "tokenizer"), model_type=algorithm,
            vocab_size=340, byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
            hard_vocab_limit=False, minloglevel=2,
        )  # fmt: skip
        (folder / "tokenizer.vocab").unlink()
        return Tokenizer.load(folder)

    return make


def byte_fallback(folder):
    """A model of SentencePiece as the tokenizers library has it."""
    export_huggingface(metaspace("bpe")(folder), folder, 100)
    (folder / "tokenizer.model").unlink()
    return Tokenizer.load(folder)


def test_sentencepiece_bpe_that_others_made_travels_with_its_space_and_beginning(tmp_path):
    fields = check(metaspace("bpe")(tmp_path), tmp_path)
    assert fields["tokenizer.ggml.add_bos_token"]
    assert fields["tokenizer.ggml.add_space_prefix"]


@pytest.mark.parametrize(
    "make",
    [
        metaspace("unigram"),
        byte_fallback,
        lambda folder: byte_level(folder, pre_tokenizer={"add_prefix_space": True}),
        lambda folder: byte_level(folder, model={"ignore_merges": True}),
    ],
    ids=["others' unigram", "byte fallback", "space before a text", "whole words first"],
)
def test_a_tokenizer_that_llama_cpp_has_not_is_refused_in_one_line(tmp_path, make):
    with pytest.raises(
        InputError, match=r"the tokenizer .*tokenizer\.(json|model) cannot be written as GGUF; Sentence"
    ):
        vocabulary_of(make(tmp_path))
