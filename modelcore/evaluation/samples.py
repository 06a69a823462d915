"""What two models say to the same prompts with the same random numbers, side by side."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from modelcore.inference import SamplingConfig, TextGenerator
from modelcore.tokenizers.chat import format_prompt, reply_text

PROMPTS = (
    "I am very sorry to hear it. Is your sister quite well?",
    "Will you dance with me, or do you mean to sit by the fire all evening?",
    "What is your opinion of him?",
)


@dataclass(frozen=True)
class Sample:
    """A prompt, and what the model said to it before and after it was tuned."""

    prompt: str
    before: str
    after: str


def draw_samples(
    pretrained: TextGenerator,
    tuned: TextGenerator,
    prompts: Iterable[str] = PROMPTS,
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
