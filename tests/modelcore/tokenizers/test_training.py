import itertools
import subprocess
import sys

import pytest
from transformers import AutoTokenizer

from modelcore.errors import InputError
from modelcore.tokenizers import Tokenizer, training
from modelcore.tokenizers.huggingface import export_huggingface
from modelcore.tokenizers.sentencepiece_file import NORMAL
from modelcore.tokenizers.training import train_sentencepiece
from modelcore.tokenizers.words import LONGEST_WORD

both = pytest.mark.parametrize("algorithm", ["unigram", "bpe"])


def train(texts, folder, vocab_size, algorithm="bpe", seed=0):
    folder.mkdir(exist_ok=True)
    report = train_sentencepiece(texts, folder, vocab_size=vocab_size, algorithm=algorithm, seed=seed)
    return Tokenizer.load(folder), report


@both
def test_the_same_corpus_gives_the_same_bytes(tmp_path, novel, algorithm):
    first, _ = train([novel], tmp_path / "first", 600, algorithm)
    second, _ = train([novel], tmp_path / "second", 600, algorithm)
    assert first.digest == second.digest


@both
@pytest.mark.parametrize("spaces", [0, 1], ids=["no space", "one space in thousands of characters"])
def test_a_space_stays_a_space_where_the_corpus_has_hardly_any(tmp_path, spaces, algorithm):
    corpus = "天地玄黃宇宙洪荒" * 1000 + " 天地" * spaces
    tokenizer, _ = train([corpus], tmp_path, 269, algorithm)
    text = " 天 地  ▁ 玄\n and so on "
    assert tokenizer.decode(tokenizer.encode(text)) == text
    export_huggingface(tokenizer, tmp_path, context_length=64)
    exported = AutoTokenizer.from_pretrained(tmp_path)
    assert exported(text, add_special_tokens=False)["input_ids"] == tokenizer.encode(text)
    assert exported.decode(tokenizer.encode(text)) == text


def test_a_corpus_that_fits_is_used_whole(tmp_path, novel):
    _, report = train([novel, novel], tmp_path, 600)
    assert report.corpus_bytes == report.sampled_bytes == 2 * len(novel.encode())


def test_a_larger_corpus_is_sampled_by_the_seed(tmp_path, novel, monkeypatch):
    monkeypatch.setattr(training, "MAX_SAMPLE_BYTES", 30_000)
    once, report = train([novel], tmp_path / "once", 600, seed=1)
    again, _ = train([novel], tmp_path / "again", 600, seed=1)
    other, _ = train([novel], tmp_path / "other", 600, seed=2)
    assert report.corpus_bytes == len(novel.encode())
    assert 20_000 < report.sampled_bytes <= 30_000
    assert once.digest == again.digest != other.digest


def test_no_more_than_the_sample_is_held_while_the_corpus_streams_by(monkeypatch):
    monkeypatch.setattr(training, "MAX_SAMPLE_BYTES", 100_000)
    texts = itertools.repeat("word " * 1000, 400)
    passages, report = training._sample(texts, seed=0)
    assert report.corpus_bytes == 2_000_000
    assert sum(map(len, passages)) == report.sampled_bytes <= 100_000


# A corpus of so many MB, given document by document; prints the peak of resident memory in KiB, and how much was used.
_MEASURED = """
import random, resource, sys
from pathlib import Path
from modelcore.tokenizers.training import train_sentencepiece

def texts(megabytes):
    rng = random.Random(0)
    words = ["".join(rng.choices("etaoinshrdlu", k=rng.randint(1, 9))) for _ in range(20_000)]
    documents = [" ".join(rng.choices(words, k=170_000))[:1_000_000] for _ in range(5)]
    for number in range(megabytes):
        yield documents[number % 5]

corpus = texts(int(sys.argv[1]))
report = train_sentencepiece(corpus, Path(sys.argv[3]), vocab_size=600, algorithm=sys.argv[2], seed=0)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
print(report.corpus_bytes, report.sampled_bytes)
"""


@pytest.mark.slow
@both
def test_memory_does_not_grow_with_the_corpus(tmp_path, algorithm):
    def measure(megabytes):
        command = [sys.executable, "-c", _MEASURED, str(megabytes), algorithm, str(tmp_path)]
        peak, *counts = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
        return int(peak), tuple(map(int, counts))

    (small, few), (large, many) = measure(5), measure(200)
    assert (few[0], many[0]) == (5_000_000, 200_000_000)
    assert min(few[1], many[1]) > 0.98 * training.MAX_SAMPLE_BYTES
    # 195 MB more text; what is left is the noise of the allocator.
    assert large - small < 10 * 1024


def test_how_the_sample_was_drawn_is_told(monkeypatch):
    report = training._sample(["word " * 1000], seed=3)[1]
    assert report.sampling == "none: the corpus has no more than the 4,194,304 bytes that are used"
    monkeypatch.setattr(training, "MAX_SAMPLE_BYTES", 100_000)
    passages, report = training._sample(itertools.repeat("word " * 1000, 400), seed=3)
    assert (report.corpus_passages, report.sampled_passages) == (800, len(passages))
    assert report.sampling == (
        f"{len(passages)} of 800 passages of up to 4,096 characters, "
        "drawn from the whole corpus with equal chances (seed 3)"
    )


def test_passages_lose_nothing_of_a_text_with_lines_of_any_length(novel):
    for text in (novel, "x" * 50_000, " " * 50_000, "one two\n" * 5_000):
        assert "".join(training._passages(text)) == text
        assert max(map(len, training._passages(text))) <= 4096


def test_what_sentencepiece_cannot_learn_is_kept_from_it():
    assert list(training._passages("nul\0mark▁end")) == ["nul", "mark", "end"]


@both
def test_a_long_line_is_learned_from_and_not_skipped(tmp_path, novel, algorithm):
    tokenizer, _ = train([novel.replace("\n", " ")], tmp_path, 600, algorithm)
    assert tokenizer.encode(" which") == [tokenizer.encode(" which")[0]]


def test_pieces_join_punctuation_and_newlines_but_never_words(tokenizer):
    texts = [piece.text for piece in tokenizer.model.pieces if piece.kind == NORMAL]
    assert any("\n" in text and len(text.strip("\n")) > 0 for text in texts)
    assert any(set(text) & set(".,;") and len(text) > 1 for text in texts)
    assert not any("▁" in text.lstrip("▁") for text in texts)


def test_the_scores_of_the_longest_word_add_up_exactly_in_32_bits(tokenizer):
    scores = [piece.score for piece in tokenizer.model.pieces if piece.kind == NORMAL]
    assert all(score * 2**9 == round(score * 2**9) for score in scores)
    if tokenizer.model.algorithm == "unigram":
        unknown = min(scores) - 10  # SentencePiece's score of a character that it does not know
        assert -unknown * 2 * LONGEST_WORD * 2**9 <= 2**24


def test_a_vocabulary_larger_than_sentencepiece_counts_is_refused(tmp_path):
    with pytest.raises(InputError, match="vocab_size 10000000000 is too large"):
        train(["a b"], tmp_path, 10**10)


@both
@pytest.mark.parametrize("vocab_size", [5000, 100_000])
def test_a_vocabulary_too_large_for_the_corpus_names_the_largest_that_works(tmp_path, novel, algorithm, vocab_size):
    with pytest.raises(
        InputError, match=f"vocab_size {vocab_size} is too large for this corpus, which supports at most"
    ) as error:
        train([novel[:3000]], tmp_path, vocab_size, algorithm)
    largest = int(str(error.value).split("at most ")[1].split(";")[0])
    tokenizer, _ = train([novel[:3000]], tmp_path, largest, algorithm)
    assert tokenizer.vocab_size == largest


@both
@pytest.mark.parametrize("vocab_size", [1, 200, 270])
def test_a_vocabulary_too_small_names_the_smallest_that_works(tmp_path, novel, algorithm, vocab_size):
    with pytest.raises(InputError, match=f"vocab_size {vocab_size} is too small: .* need at least") as error:
        train([novel[:3000]], tmp_path, vocab_size, algorithm)
    smallest = int(str(error.value).split("at least ")[1])
    tokenizer, _ = train([novel[:3000]], tmp_path, smallest, algorithm)
    assert tokenizer.vocab_size == smallest


@pytest.mark.parametrize("texts", [[], [""], ["", "\0"], ["\n\n"]])
def test_a_corpus_without_text_is_refused(tmp_path, texts):
    with pytest.raises(InputError, match="the corpus holds no text to train a tokenizer on"):
        train(texts, tmp_path, 600)


@pytest.mark.parametrize("text", ["   ", "a"])
def test_hardly_any_text_is_refused_in_one_line(tmp_path, text):
    with pytest.raises(InputError, match="vocab_size 600 is too large for this corpus"):
        train([text], tmp_path, 600)


def test_sentencepiece_is_silent(tmp_path, novel, capfd):
    train([novel], tmp_path, 600, "unigram")
    with pytest.raises(InputError):
        train([novel], tmp_path, 10)
    assert capfd.readouterr() == ("", "")
