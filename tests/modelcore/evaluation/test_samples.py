"""Samples ask two models the same, in the form that tuning taught, and cannot break out of their document."""

from modelcore.evaluation.samples import (
    Sample,
    as_markdown,
    draw_samples,
    prompts_of_conversations,
    prompts_of_texts,
)
from modelcore.tokenizers.chat import Message


def conversation(prompt: str, *, system: str = "") -> list[Message]:
    said = [Message("system", system)] if system else []
    return [*said, Message("user", prompt), Message("assistant", "Ja."), Message("user", "Warum?")]


def test_prompts_are_what_users_say_first_questions_before_others():
    said = ["Guten Tag.", "Wie geht es dir?", "Wie geht es dir?", "Komm her!", "Ist er da? " * 10, "Wohin gehst du? "]
    conversations = [conversation(text, system="Ein Wald.") for text in said]
    assert prompts_of_conversations(conversations) == ["Wie geht es dir?", "Wohin gehst du?", "Guten Tag."]


def test_where_all_prompts_are_long_the_shortest_is_asked():
    assert prompts_of_conversations([conversation("a" * 300), conversation("b" * 200)]) == ["b" * 200]


def test_without_conversations_the_first_short_sentences_of_the_text_are_asked():
    text = "I.\n\nDer Froschkönig\n\nEs war einmal\nein König. " + "Lang " * 40 + ". Er hatte eine Tochter! Sie"
    assert prompts_of_texts([text, "Sie war schön und klug. Ja."]) == [
        "Es war einmal ein König.",
        "Er hatte eine Tochter!",
        "Sie war schön und klug.",
    ]
    assert prompts_of_texts(["他从前有一个女儿，她很美。他们住在森林里的小屋。"]) == [
        "他从前有一个女儿，她很美。",
        "他们住在森林里的小屋。",
    ]


def test_a_text_without_sentences_is_asked_by_its_beginning():
    assert prompts_of_texts(["ab " * 100]) == [("ab " * 34).strip()[:100].strip()]
    assert prompts_of_texts([]) == []


class Echo:
    """Stands for a model: says back what it was asked, with the random numbers' seed."""

    def __init__(self, name: str) -> None:
        self.name = name

    def fits(self, prompt):
        return len(prompt) < 20

    def complete(self, prompt, sampling, max_tokens):
        from modelcore.inference import Completion

        return Completion(f"{self.name} {prompt} {sampling.seed} {max_tokens}", "eos")


def test_both_models_get_the_same_prompt_and_seed():
    samples = draw_samples(Echo("old"), Echo("new"), ["Hello."], seed=7, max_tokens=5)
    asked = ' "Hello."\n\n"'
    assert samples == [Sample("Hello.", f"old {asked} 7 5", f"new {asked} 7 5")]


def test_a_prompt_that_fits_no_context_is_left_out():
    assert draw_samples(Echo("old"), Echo("new"), ["Hello." * 9]) == []


def test_a_models_text_stays_a_code_block():
    document = as_markdown([Sample("Hello.", "# not a title\n\n<b>x</b>", "")])
    assert "\n    # not a title\n    \n    <b>x</b>\n" in document
    assert document.startswith("# Samples before and after tuning\n\n## Hello.\n")
