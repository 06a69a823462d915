"""Who becomes champion: the rule, case by case."""

import math

import pytest

from modelcore.evaluation.gate import MARGIN, Decision, Score, decide

NOVEL, OTHER = "a" * 64, "b" * 64


def test_the_first_model_becomes_champion():
    assert decide(Score(3.5, NOVEL), None) == Decision(True, "first champion, at 3.5000 bits per byte")


def test_a_model_better_by_more_than_the_margin_becomes_champion():
    decision = decide(Score(1.98, NOVEL), Score(2.0, NOVEL))
    assert decision == Decision(True, "better: 1.9800 bits per byte against the champion's 2.0000")


def test_a_model_better_by_exactly_the_margin_becomes_champion():
    for champion in (1.0, 2.0, 2.1234567, 3.3):
        assert decide(Score(champion - MARGIN, NOVEL), Score(champion, NOVEL)).promote


def test_a_model_better_by_less_than_the_margin_does_not():
    decision = decide(Score(2.0 - MARGIN / 2, NOVEL), Score(2.0, NOVEL))
    assert not decision.promote
    assert decision.reason.startswith(f"not better by the margin of {MARGIN}: 1.9975 ")


@pytest.mark.parametrize("candidate", [2.0, 2.001, 5.0])
def test_a_tie_or_a_worse_model_does_not(candidate):
    decision = decide(Score(candidate, NOVEL), Score(2.0, NOVEL))
    assert not decision.promote
    assert decision.reason.startswith("not better: ")


def test_models_measured_on_different_texts_are_not_compared_however_good():
    decision = decide(Score(0.5, OTHER), Score(2.0, NOVEL))
    assert not decision.promote
    assert decision.reason == (
        "not comparable: the candidate was measured on another text (bbbbbbbbbbbb) than the champion (aaaaaaaaaaaa); "
        "evaluate both on one text, or delete the alias @champion"
    )


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf, 0.0, -1.0])
@pytest.mark.parametrize("champion", [None, Score(2.0, NOVEL), Score(math.nan, NOVEL)])
def test_a_score_that_is_none_never_wins(broken, champion):
    decision = decide(Score(broken, NOVEL), champion)
    assert not decision.promote
    assert "which is no score" in decision.reason


def test_a_champion_whose_score_is_unknown_stays():
    decision = decide(Score(1.0, NOVEL), Score(math.nan, ""))
    assert not decision.promote
    assert decision.reason.startswith("the champion's score is unknown; evaluate it")
