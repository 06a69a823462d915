"""Instruction data: prompts and the responses to them, as token ids of which only the responses are learned."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from modelcore.errors import InputError
from modelcore.tokenizers import Tokenizer
from modelcore.tokenizers.prompt import format_prompt

__all__ = ["Example", "Instruction", "Instructions", "encode_instruction", "format_prompt", "load_instructions"]

logger = logging.getLogger(__name__)

FIELDS = ("prompt", "response")


@dataclass(frozen=True)
class Instruction:
    """A prompt and the response to it, as text."""

    prompt: str
    response: str


@dataclass(frozen=True)
class Example:
    """A prompt and its response as one sequence.

    Attributes:
        tokens: (n,) int64: the prompt in the form of :func:`format_prompt`, the response, the end-of-document id.
        loss: (n,) bool: which of the tokens are to be learned: the response's and the end.
    """

    tokens: NDArray[np.int64]
    loss: NDArray[np.bool_]


@dataclass(frozen=True)
class Instructions:
    """Examples to tune a model with.

    Attributes:
        examples: In the order of the file.
        dropped: Number of pairs left out because they were longer than the model reads.
        digest: SHA-256 of the file, in hexadecimal.
    """

    examples: list[Example]
    dropped: int
    digest: str


def load_instructions(path: Path | str, tokenizer: Tokenizer, max_tokens: int) -> Instructions:
    """Reads a .jsonl file with one object of the fields ``prompt`` and ``response`` a line; other fields are ignored.

    Args:
        path: The file; blank lines in it are skipped.
        tokenizer: The model's.
        max_tokens: Longest example, template and end included, in tokens; longer ones are left out and counted.

    Raises:
        InputError: If the file is missing, a line is not such an object (the message says file and line), or no
            example is left.
    """
    path = Path(path)
    examples = [encode_instruction(tokenizer, pair) for pair in read_instructions(path)]
    if not examples:
        raise InputError(f"{path} is empty; it must hold a JSON object with prompt and response on each line")
    fitting = [example for example in examples if len(example.tokens) <= max_tokens]
    dropped = len(examples) - len(fitting)
    if not fitting:
        shortest = min(len(example.tokens) for example in examples)
        raise InputError(
            f"{path}: none of its {len(examples)} pairs fits into {max_tokens} tokens (the shortest has {shortest}); "
            "give shorter pairs or a model with a longer context"
        )
    if dropped:
        logger.warning("instructions=%s dropped=%d of=%d longer_than=%d", path, dropped, len(examples), max_tokens)
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Instructions(fitting, dropped, digest)


def encode_instruction(tokenizer: Tokenizer, pair: Instruction) -> Example:
    """The token ids of a pair, and which of them are to be learned.

    Prompt and response are encoded apart, because that is how they meet when the model is asked.
    """
    prompt = tokenizer.encode(format_prompt(pair.prompt))
    response = tokenizer.encode(pair.response, eos=True)
    tokens = np.array(prompt + response, dtype=np.int64)
    return Example(tokens, np.arange(len(tokens)) >= len(prompt))


def read_instructions(path: Path) -> Iterator[Instruction]:
    """The pairs of a .jsonl file, one at a time.

    Raises:
        InputError: As :func:`load_instructions`.
    """
    if not path.is_file():
        raise InputError(f"instructions file {path} does not exist; give a .jsonl file with prompt and response")
    if path.suffix in (".gz", ".bz2", ".xz", ".zst"):
        raise InputError(f"instructions file {path} is compressed; unpack it first")
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield _parse(line, f"{path}:{number}")


def _parse(line: bytes, where: str) -> Instruction:
    try:
        record = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: byte {error.start + 1} of the line is not UTF-8") from error
    except (json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"{where}: the line is no JSON: {error}") from error
    if not isinstance(record, dict):
        raise InputError(f'{where}: the line is no JSON object; it must be {{"prompt": "…", "response": "…"}}')
    for field in FIELDS:
        value = record.get(field)
        if field not in record:
            raise InputError(f"{where}: the field {field!r} is missing")
        if not isinstance(value, str) or not value.strip():
            raise InputError(
                f"{where}: the field {field!r} is {json.dumps(value)[:40]}; it must be a text that is not blank"
            )
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"{where}: character {error.start + 1} of {field!r} is half a surrogate pair") from error
    return Instruction(record["prompt"], record["response"])
