"""Whether text is of the kind that a model was trained on."""

import dataclasses
import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon

from modelcore.data.drift import (
    ENOUGH_DOCUMENTS,
    Limits,
    TextProfile,
    compare,
    distance_beyond_chance,
    draw_texts,
    frequency_bands,
    jensen_shannon_distance,
    population_stability_index,
    profile_sample,
    profile_split,
    token_shifts,
)
from modelcore.data.shards import open_split, write_tokens
from modelcore.errors import InputError
from modelcore.tokenizers import Tokenizer
from modelcore.tokenizers.training import train_sentencepiece

EMMA = Path("examples/austen/train/emma.txt").read_text(encoding="utf-8")
PRIDE = Path("examples/austen/train/pride_and_prejudice.txt").read_text(encoding="utf-8")
COUNTS = st.lists(st.integers(0, 1000), min_size=5, max_size=5).filter(any)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    train_sentencepiece([EMMA[:200_000]], folder, vocab_size=1000, algorithm="unigram", seed=0)
    return Tokenizer.load(folder)


def paragraphs(text):
    return [paragraph for paragraph in text.split("\n\n") if paragraph.strip()]


def profile(texts, tokenizer, **options):
    return profile_sample(draw_texts(texts, **options).encode(tokenizer), tokenizer)


@given(COUNTS, COUNTS)
def test_the_distance_is_the_one_of_scipy(first, second):
    ours = jensen_shannon_distance(first, second)
    # Of two that are all but equal scipy takes the root of what rounding left.
    assert ours == pytest.approx(np.nan_to_num(jensenshannon(first, second, base=2)), abs=1e-6)


@given(COUNTS, COUNTS)
def test_it_is_symmetric_between_0_and_1_and_0_only_for_equal_shares(first, second):
    distance = jensen_shannon_distance(first, second)
    assert distance == pytest.approx(jensen_shannon_distance(second, first), abs=1e-7)
    assert 0 <= distance <= 1 + 1e-12
    shares = [np.asarray(counts) / sum(counts) for counts in (first, second)]
    assert (distance < 1e-6) == np.allclose(*shares, atol=1e-6)


def test_texts_without_a_token_in_common_are_1_apart():
    assert jensen_shannon_distance([3, 4, 0, 0], [0, 0, 1, 9]) == 1


@pytest.mark.parametrize("tokens", [300, 3_000, 30_000])
def test_what_chance_makes_of_few_tokens_is_no_distance(tokens):
    share = np.arange(2000, 0, -1) / np.arange(2000, 0, -1).sum()
    draw = np.random.default_rng(7)
    reference, text = draw.multinomial(100_000, share), draw.multinomial(tokens, share)
    assert jensen_shannon_distance(reference, text) > 0.1 or tokens == 30_000
    assert distance_beyond_chance(reference, text) < 0.08


def test_the_stability_index_is_that_of_the_textbook():
    # Siddiqi's sum of (new - old) * ln(new / old); half a count in a bin of thousands changes nothing to speak of.
    old, new = [2_000, 3_000, 5_000], [3_000, 3_000, 4_000]
    expected = 0.1 * math.log(0.3 / 0.2) - 0.1 * math.log(0.4 / 0.5)
    assert population_stability_index(old, new) == pytest.approx(expected, rel=1e-3)
    assert population_stability_index(old, old) == 0
    assert population_stability_index([5, 0, 0], [0, 0, 5]) < math.inf


def test_a_profile_of_tokens_on_disk_is_that_of_the_text(tmp_path, tokenizer):
    texts = paragraphs(EMMA[:60_000])
    write_tokens(tmp_path / "tokens", tokenizer, train=texts, heldout=texts[:1])
    assert profile_split(open_split(tmp_path / "tokens", "train"), tokenizer) == profile(texts, tokenizer)


def test_a_profile_survives_json_and_anything_else_is_refused(tokenizer):
    before = profile([EMMA[:5_000]], tokenizer)
    assert TextProfile.from_dict(json.loads(json.dumps(before.to_dict()))) == before
    with pytest.raises(InputError, match=r"^this is no profile of a text: .*; register the model again$"):
        TextProfile.from_dict({"unigrams": [1], "lengths": [1], "more": 2})


def test_a_large_corpus_is_sampled_evenly_in_whole_documents_and_by_the_seed(tokenizer):
    texts = [f"{number:04} " + "word " * random.Random(number).randrange(1, 40) for number in range(2_000)]
    drawn = [
        tokenizer.decode(draw_texts(texts, sample_bytes=20_000, seed=seed).encode(tokenizer).tokens)
        for seed in (0, 0, 1)
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    sample = draw_texts(iter(texts), sample_bytes=20_000).encode(tokenizer)
    assert 15_000 < sample.n_bytes <= 20_000
    assert sample.documents == 2_000
    assert sample.n_tokens == sample.lengths.sum() == len(sample.tokens)
    halves = [int(document.strip()[:4]) < 1_000 for document in texts if document.strip()[:20] in drawn[0]]
    assert 0.3 < sum(halves) / len(halves) < 0.7


def test_a_single_document_larger_than_the_sample_is_taken_whole(tokenizer):
    assert draw_texts([EMMA[:9_000]], sample_bytes=10).n_bytes == len(EMMA[:9_000].encode())
    with pytest.raises(InputError, match="there is no document"):
        draw_texts([])


def test_another_part_of_the_same_novel_is_of_its_kind_and_python_code_is_not(tokenizer):
    reference = profile(paragraphs(EMMA[:300_000]), tokenizer)
    same = compare(reference, profile(paragraphs(EMMA[300_000:500_000]), tokenizer), Limits())
    assert same.reasons == []
    assert same.figures.keys() == {"token_distance", "bytes_per_token_change", "fallback_rise", "length_psi"}
    code = compare(
        reference, profile([Path(json.__file__).read_text(), Path("README.md").read_text()], tokenizer), Limits()
    )
    assert [reason.split(" (")[0] for reason in code.reasons] == [
        "other tokens",
        "a tokenizer that fits otherwise",
        "more that the vocabulary lacks",
    ]
    assert code.figures["token_distance"] > 2 * same.figures["token_distance"]


def test_a_novel_of_the_same_author_is_nearer_than_any_limit(tokenizer):
    drift = compare(profile([EMMA], tokenizer), profile([PRIDE], tokenizer), Limits())
    assert drift.reasons == []
    assert drift.figures["token_distance"] < 0.25


def test_lengths_are_compared_only_where_there_are_documents_enough(tokenizer):
    many = ["Emma was there."] * ENOUGH_DOCUMENTS
    long = ["Emma was there. " * 50] * ENOUGH_DOCUMENTS
    reference = profile(many, tokenizer)
    assert compare(reference, profile(long, tokenizer), Limits()).figures["length_psi"] > 1
    assert "length_psi" not in compare(reference, profile(long[1:], tokenizer), Limits()).figures


def test_text_that_the_model_predicts_worse_is_of_another_kind(tokenizer):
    one = profile([EMMA[:20_000]], tokenizer)
    kept = compare(one, one, Limits(), reference_bits_per_byte=2.0, bits_per_byte=2.19)
    worse = compare(one, one, Limits(), reference_bits_per_byte=2.0, bits_per_byte=2.21)
    broken = compare(one, one, Limits(), reference_bits_per_byte=2.0, bits_per_byte=math.nan)
    assert kept.reasons == []
    assert worse.reasons == ["text that the model predicts worse (bits_per_byte_rise 0.105, limit 0.1)"]
    assert len(broken.reasons) == 1


def test_what_another_tokenizer_made_is_not_compared(tokenizer):
    one = profile([EMMA[:5_000]], tokenizer)
    with pytest.raises(InputError, match="different tokenizers"):
        compare(one, dataclasses.replace(one, tokenizer_digest="0" * 64), Limits())


@pytest.mark.parametrize("wrong", [0, -1, math.nan, math.inf])
def test_a_limit_is_a_number_above_0(wrong):
    with pytest.raises(InputError, match=r"max_length_psi is .*; it must be a number above 0"):
        Limits(length_psi=wrong)


def test_the_tokens_that_moved_are_named_and_bands_add_up_to_the_whole(tokenizer):
    before = profile([EMMA[:50_000]], tokenizer)
    now = profile([EMMA[:50_000] + " zebra" * 3_000], tokenizer)
    moved = token_shifts(before, now, tokenizer, most=5)
    assert set("zebra") & set("".join(name for name, _, _ in moved))
    assert moved[0][2] > moved[0][1]
    bands = frequency_bands(before, now)
    assert bands["band"] == list(range(1, 11))
    assert sum(bands["reference"]) == pytest.approx(1)
    assert sum(bands["text"]) == pytest.approx(1)
    assert bands["reference"] == pytest.approx([0.1] * 10, abs=0.04)
