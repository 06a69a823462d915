"""Holding text out: which documents, where a document is cut, and whether held-out text leaked into training."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelcore.data.heldout import Overlap, choose_documents, cut_tail

DOCUMENTS = [(f"a:{number}", hashlib.sha256(str(number).encode()).hexdigest()) for number in range(2000)]
LINE = "A line of text long enough to be told from any other line, number "


def lines(first, last):
    return "".join(f"{LINE}{number}\n" for number in range(first, last))


def test_about_the_fraction_asked_for_is_chosen():
    assert 0.04 * len(DOCUMENTS) < len(choose_documents(DOCUMENTS, 0.05)) < 0.06 * len(DOCUMENTS)


def test_a_document_stays_where_it_is_when_others_come_or_go():
    chosen = choose_documents(DOCUMENTS, 0.05)
    assert choose_documents(DOCUMENTS[:1000], 0.05) == chosen & {name for name, _ in DOCUMENTS[:1000]}


def test_at_least_one_is_chosen():
    nearest, _ = min(DOCUMENTS[:10], key=lambda document: document[1])
    assert choose_documents(DOCUMENTS[:10], 1e-9) == {nearest}
    assert choose_documents([], 0.5) == set()


@given(text=st.text("ab\n"), fraction=st.floats(0.01, 0.99))
def test_a_document_is_cut_at_the_start_of_a_line_and_loses_nothing(text, fraction):
    body, tail = cut_tail(text, fraction)
    assert body + tail == text
    assert not tail or body.endswith("\n")


def test_the_tail_has_about_the_fraction_asked_for():
    text = lines(0, 1000)
    assert len(cut_tail(text, 0.05)[1]) == pytest.approx(0.05 * len(text), rel=0.05)


@pytest.mark.parametrize("text", ["", "only one line", "A title\n" + "and one long paragraph " * 50])
def test_a_document_that_no_line_cuts_well_stays_whole(text):
    assert cut_tail(text, 0.05) == (text, "")


def test_overlap_is_the_part_of_the_lines_that_training_holds_too():
    heldout = lines(0, 10)
    assert Overlap([heldout], [lines(10, 20)]).fraction(heldout) == 0
    assert Overlap([heldout], [lines(0, 10)]).fraction(heldout) == 1
    assert Overlap([heldout], [lines(7, 20)]).fraction(heldout) == pytest.approx(0.3)


def test_indentation_and_line_ends_do_not_hide_an_overlap():
    heldout = lines(0, 10)
    assert Overlap([heldout], ["  " + heldout.replace("\n", "\r\n  ")]).fraction(heldout) == 1


def test_short_lines_that_all_books_share_are_no_overlap():
    assert (
        Overlap(["CHAPTER I\n" + lines(0, 5)], ["CHAPTER I\n" + lines(5, 9)]).fraction("CHAPTER I\n" + lines(0, 5)) == 0
    )


def test_a_document_without_long_lines_is_compared_as_a_whole():
    overlap = Overlap(["short one", "short two"], [" short one\n"])
    assert (overlap.fraction("short one"), overlap.fraction("short two")) == (1, 0)
