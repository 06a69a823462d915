"""Makes instruction data from novels: a line of dialogue as the prompt, the next speaker's reply as the response.

Usage: python examples/make_instructions.py [NOVEL.txt ...] [--out FILE]

Without arguments it makes examples/austen/instructions.jsonl from the novels in examples/austen/train. The same novels
give the same bytes. A pair is two paragraphs, one after the other, that are both someone's speech: they begin with a
quotation mark, every mark is closed (a speech that goes on in the next paragraph is left open), and what stands
between the marks is short, such as "said she". Long speeches are cut at sentence ends: of the prompt the last
sentences are kept, of the reply the first ones.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

AUSTEN = Path(__file__).parent / "austen"

SHORTEST, LONGEST = 10, 200  # characters of a prompt and of a response
LONGEST_TAG = 80  # characters between or after quotation marks: "said she", not a scene

LONGEST_INTERJECTION = 6  # characters: "Oh!", "Well!"

# A speech that begins later answers nothing that was said before.
_LATER = re.compile(
    r"\b(next (day|morning|evening)|afterwards|began again|some time|some minutes|a (long|short) pause)\b"
)

_SENTENCE_END = re.compile(r"(?<=[.!?])(?<!\bMr\.)(?<!\bMrs\.)(?<!\bDr\.)(?<!\bSt\.) (?=[A-Z])")


def main(arguments: list[str] | None = None) -> None:
    """Runs the script."""
    parser = argparse.ArgumentParser(description="Makes instruction data (.jsonl) from the dialogues of novels.")
    parser.add_argument("novels", nargs="*", type=Path, help="text files (default: examples/austen/train/*.txt)")
    parser.add_argument("--out", type=Path, default=AUSTEN / "instructions.jsonl", help="file to write")
    options = parser.parse_args(arguments)
    novels = options.novels or sorted((AUSTEN / "train").glob("*.txt"))
    pairs = dialogue_pairs(novel.read_text(encoding="utf-8") for novel in novels)
    with open(options.out, "w", encoding="utf-8", newline="\n") as file:
        for prompt, response in pairs:
            file.write(json.dumps({"prompt": prompt, "response": response}, ensure_ascii=False) + "\n")
    sys.stderr.write(f"{options.out}: {len(pairs)} pairs\n")


def dialogue_pairs(novels: Iterable[str]) -> list[tuple[str, str]]:
    """All pairs of a line and its reply, in the order of the novels, each once."""
    pairs: dict[tuple[str, str], None] = {}
    for novel in novels:
        before: str | None = None
        for paragraph in paragraphs(novel):
            spoken = speech(paragraph)
            if before is not None and spoken is not None and not _LATER.search(paragraph):
                prompt, response = last_sentences(before), first_sentences(spoken)
                if prompt and response:
                    pairs[prompt, response] = None
            before = spoken
    return list(pairs)


def paragraphs(novel: str) -> Iterator[str]:
    """The paragraphs of a text, each as one line, without the underscores that mark italics."""
    for paragraph in re.split(r"\n\s*\n", novel.replace("_", "")):
        if words := paragraph.split():
            yield " ".join(words)


def speech(paragraph: str) -> str | None:
    """What is said in a paragraph, without quotation marks and tags; None where it is not one person's speech."""
    parts = paragraph.split('"')
    if parts[0] or len(parts) % 2 == 0:  # text before the first mark, or a mark left open
        return None
    spoken = ""
    for said, tag in zip(parts[1::2], parts[2::2], strict=True):
        if len(tag) > LONGEST_TAG:
            return None
        spoken += ("" if not spoken or spoken.endswith("--") else " ") + _closed(said.strip(), tag.strip())
    return spoken


def _closed(said: str, tag: str) -> str:
    """A part of a speech, ended as it would be without the tag that follows it.

    The comma before "said she." stands for a full stop, the one before "said she;" for a semicolon.
    """
    if said.endswith(",") and tag[-1:] in (".", ";", ":", "!", "?"):
        return said[:-1] + (tag[-1] if tag[-1] in ";:" else ".")
    if said[-1:].isalnum() and tag.startswith("--"):
        return said + "--"
    return said


def first_sentences(spoken: str) -> str:
    """As many whole sentences from the start as are not too long together; empty where there are none."""
    sentences = _SENTENCE_END.split(spoken)
    kept = _fitting(sentences)
    if len(kept) < len(sentences):
        while kept and len(kept[-1]) <= LONGEST_INTERJECTION:  # the "Oh!" of the sentence that was cut off
            kept.pop()
    text = " ".join(kept)
    return text if len(text) >= SHORTEST and text.endswith((".", "!", "?")) else ""


def last_sentences(spoken: str) -> str:
    """As many whole sentences from the end as are not too long together; empty where there are none."""
    text = " ".join(reversed(_fitting(reversed(_SENTENCE_END.split(spoken)))))
    return text if len(text) >= SHORTEST and text.endswith((".", "!", "?", "--")) else ""


def _fitting(sentences: Iterable[str]) -> list[str]:
    kept: list[str] = []
    length = -1  # no space before the first
    for sentence in sentences:
        length += 1 + len(sentence)
        if length > LONGEST:
            break
        kept.append(sentence)
    return kept


if __name__ == "__main__":
    main()
