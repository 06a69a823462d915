"""What two models say to the same prompts with the same random numbers, side by side."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from modelcore.tokenizers.chat import Message, format_prompt, reply_text

if TYPE_CHECKING:
    from modelcore.inference import TextGenerator

PROMPTS = 3
"""How many prompts are put to the models."""

MAX_CHARACTERS = 100
"""Longest prompt, where there are shorter ones: it is read on a terminal, and typed again."""

_MIN_CHARACTERS = 10  # what is shorter is a heading's number, a "Yes." or a "Mr."
_OPENING = 20_000  # characters of a document that are searched for its opening sentences
_QUESTION_MARKS = ("?", "？", "؟")
_SENTENCE = re.compile(r"(?:[^\W\d_]{3}[.!?…؟]|[。！？])$")  # a title is none, and "Mr." ends none
_SENTENCE_END = re.compile(r"(?<=[.!?…؟])\s+|(?<=[。！？])\s*|\n\s*\n")


@dataclass(frozen=True)
class Sample:
    """A prompt, and what the model said to it before and after it was tuned."""

    prompt: str
    before: str
    after: str


def prompts_of_conversations(conversations: Sequence[Sequence[Message]]) -> list[str]:
    """What users say first in a few of the conversations: short lines, questions before others.

    Args:
        conversations: Such that the tuned model has not learned from, in the order of their file.

    Returns:
        At most :data:`PROMPTS` different texts, or the shortest one if none is short; the same for the same file.
    """
    opened = [next(message.content for message in said if message.role == "user") for said in conversations]
    different = list(dict.fromkeys(text.strip() for text in opened))
    short = [text for text in different if len(text) <= MAX_CHARACTERS and "\n" not in text]
    asking = sorted(short, key=lambda text: not text.endswith(_QUESTION_MARKS))  # stable: else the file's order
    return asking[:PROMPTS] or sorted(different, key=len)[:1]


def prompts_of_texts(texts: Iterable[str]) -> list[str]:
    """The first short sentences of the texts, where there are no conversations to take prompts from.

    Args:
        texts: Documents that no model has seen; read only as far as needed.

    Returns:
        At most :data:`PROMPTS` texts, or how the first text begins if it has no short sentence.
    """
    first = ""
    found: list[str] = []
    for text in texts:
        first = first or " ".join(text[:MAX_CHARACTERS].split())
        sentences = (" ".join(piece.split()) for piece in _SENTENCE_END.split(text[:_OPENING]))
        short = (sentence for sentence in sentences if _MIN_CHARACTERS <= len(sentence) <= MAX_CHARACTERS)
        found += islice(filter(_SENTENCE.search, short), PROMPTS - len(found))
        if len(found) == PROMPTS:
            break
    return found or [first] * bool(first)


def draw_samples(
    pretrained: TextGenerator,
    tuned: TextGenerator,
    prompts: Iterable[str],
    *,
    seed: int = 0,
    max_tokens: int = 60,
) -> list[Sample]:
    """Asks both models every prompt that leaves room for an answer in their context, in the form that tuning taught.

    Args:
        pretrained: The model before tuning.
        tuned: The model after it.
        prompts: What is said to them.
        seed: Of the random numbers.
        max_tokens: Longest answer; a tuned model mostly ends before.
    """
    from modelcore.inference import SamplingConfig  # with torch, which a report does without

    sampling = SamplingConfig(temperature=0.7, top_p=0.9, seed=seed)
    samples = []
    for prompt in prompts:
        asked = format_prompt(prompt)
        if all(model.fits(asked) for model in (pretrained, tuned)):
            said = (model.complete(asked, sampling, max_tokens).text for model in (pretrained, tuned))
            before, after = map(reply_text, said)
            samples.append(Sample(prompt, before, after))
    return samples


def as_markdown(samples: Iterable[Sample]) -> str:
    """The samples as a Markdown document; a model's text stands in code blocks and cannot become markup."""
    parts = ["# Samples before and after tuning\n"]
    for sample in samples:
        parts.append(f"## {sample.prompt}\n")
        for title, text in (("Before", sample.before), ("After", sample.after)):
            block = "\n".join(f"    {line}" for line in text.split("\n"))
            parts.append(f"{title}:\n\n{block}\n")
    return "\n".join(parts)
