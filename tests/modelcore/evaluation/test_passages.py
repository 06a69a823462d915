"""What is asked of a held-out text: passages as they stand there, answers that stand there, and nothing by accident."""

import random
import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelcore.evaluation.passages import (
    CHOICE_WORDS,
    CHOICES,
    MAX_WORDS,
    MIN_LETTERS,
    MIN_WORDS,
    make_tasks,
)

NOVEL = Path(__file__).parents[3] / "examples" / "austen" / "heldout" / "sense_and_sensibility.txt"
MANY = 10_000
NAMES = ("Elinor", "Edward", "Lucy Steele", "Marianne", "Colonel Brandon")


def words(text: str) -> list[str]:
    return re.findall(r"[^\W\d_]+(?:['’-][^\W\d_]+)*", text)


def made_up_text(n_sentences: int, seed: int = 0) -> str:
    rng = random.Random(seed)
    vocabulary = ["walked", "garden", "letter", "sister", "the", "a", "to", "with", *NAMES, *map(str, range(9))]
    return " ".join(" ".join(rng.choices(vocabulary, k=rng.randint(3, 15))) + " indeed." for _ in range(n_sentences))


@pytest.fixture(scope="module")
def novel() -> str:
    return NOVEL.read_text(encoding="utf-8")[:250_000]


@pytest.fixture(scope="module")
def tasks(novel):
    return make_tasks([novel], items=MANY, seed=0)


def test_a_last_word_stands_in_the_text_and_in_its_own_passage(novel, tasks):
    last_words, _ = tasks
    assert len(last_words) > 100
    for item in last_words:
        assert item.passage + item.last_word in novel
        assert item.last_word[0] == " "
        word = item.last_word[1:]
        assert len(word) >= MIN_LETTERS
        assert word.casefold() in {before.casefold() for before in words(item.passage)}
        assert MIN_WORDS <= len(words(item.passage)) <= MAX_WORDS


def test_the_right_choice_follows_the_passage_and_the_others_stand_elsewhere(novel, tasks):
    _, choices = tasks
    assert len(choices) > 300
    for item in choices:
        assert item.passage + item.choices[item.answer] in novel
        assert MIN_WORDS <= len(words(item.passage)) <= MAX_WORDS
        assert len(set(item.choices)) == len(item.choices) == CHOICES
        for number, choice in enumerate(item.choices):
            assert choice in novel
            assert len(words(choice)) == CHOICE_WORDS
            assert (item.passage + choice in novel) == (number == item.answer)


def test_every_place_holds_the_right_choice_equally_often(tasks):
    _, choices = tasks
    counts = Counter(item.answer for item in choices)
    expected = len(choices) / CHOICES
    assert sum((counts[place] - expected) ** 2 / expected for place in range(CHOICES)) < 16.27  # chi-square, 0.1 %


def test_no_two_passages_overlap(novel, tasks):
    for items, ends in zip(tasks, (lambda item: item.last_word, lambda item: item.choices[item.answer]), strict=True):
        done = 0
        for item in items:
            place = novel.index(item.passage + ends(item), done)  # in the order of the text, each behind the one before
            done = place + len(item.passage + ends(item))


def test_passages_begin_with_sentences_and_mr_ends_none(novel, tasks):
    for item in tasks[0][:40]:
        before = novel[: novel.index(item.passage)].rstrip()
        assert before == "" or re.search(r"\w{4}[.!?]+[\"')]*$", before)
    assert any("Mr. " in item.passage for item in tasks[0])


def test_the_same_seed_draws_the_same_items_and_another_seed_others(novel, tasks):
    first, again, other = (make_tasks([novel], items=30, seed=seed) for seed in (1, 1, 2))
    assert first == again
    for drawn, others, all_items in zip(first, other, tasks, strict=True):
        assert len(drawn) == 30
        assert {item.passage for item in drawn} < {item.passage for item in all_items}
        assert {item.passage for item in drawn} != {item.passage for item in others}


def test_every_passage_is_drawn_equally_often():
    text = made_up_text(150)
    passages = [item.passage for item in make_tasks([text], items=MANY, seed=0)[1]]
    size, draws = len(passages) // 3, 150
    counts = Counter(item.passage for seed in range(draws) for item in make_tasks([text], items=size, seed=seed)[1])
    expected = draws * size / len(passages)
    deviation = (expected * (1 - size / len(passages))) ** 0.5
    assert max(abs(counts[passage] - expected) for passage in passages) < 4.5 * deviation


def test_documents_are_kept_apart():
    texts = [made_up_text(40, seed) for seed in range(5)]
    for item in make_tasks(texts, items=MANY, seed=0)[1]:
        assert sum(item.passage + item.choices[item.answer] in text for text in texts) == 1


@pytest.mark.parametrize(
    "text",
    ["", "   \n", "Too short a text for anything.", "1 2 3. 4 5 6!\n" * 500, "春はあけぼの。" * 500, "\x00" * 99],
)
def test_a_text_without_such_sentences_yields_no_item_and_no_error(text):
    assert make_tasks([text], items=MANY, seed=0) == ([], [])
    assert make_tasks([], items=MANY, seed=0) == ([], [])


def test_choices_that_are_all_the_same_are_no_choice():
    text = ("They walked in the garden with their sister and her letter all day long. " * 40).strip()
    assert make_tasks([text], items=MANY, seed=0)[1] == []


@given(
    st.lists(st.sampled_from(["sister ", "garden", " ", "\n", "word. ", "Mr. ", "“No!” ", "is a thing ", "é—", "12"]))
)
def test_whatever_the_text_its_items_stand_in_it(parts):
    text = "".join(parts) * 40
    last_words, choices = make_tasks([text], items=5, seed=0)
    assert all(item.passage + item.last_word in text for item in last_words)
    assert all(item.passage + item.choices[item.answer] in text for item in choices)
