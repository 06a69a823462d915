"""Instruction data: conversations as token ids of which only the replies are learned."""

from __future__ import annotations

import codecs
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from modelcore.errors import InputError
from modelcore.files import file_digest
from modelcore.tokenizers import Tokenizer
from modelcore.tokenizers.chat import Message, check_conversation, encode_conversation

logger = logging.getLogger(__name__)

HELDOUT_EVERY = 20
"""Every so many-th conversation is not learned from, but measured on."""

# From this share on, conversations left out are worth a warning.
_MANY_DROPPED = 0.01

_FORMS = '{"prompt": "…", "response": "…"} or {"messages": [{"role": "user", "content": "…"}, …]}'


_Conversation = TypeVar("_Conversation")


@dataclass(frozen=True)
class Example:
    """A conversation as one sequence.

    Attributes:
        tokens: (n,) int64: the ids of :func:`modelcore.tokenizers.chat.encode_conversation`.
        loss: (n,) bool: which of the tokens are to be learned: those of every reply, and the end after each.
    """

    tokens: NDArray[np.int64]
    loss: NDArray[np.bool_]


@dataclass(frozen=True)
class Instructions:
    """Examples to tune a model with.

    Attributes:
        examples: In the order of the file.
        dropped: Number of conversations left out because they were longer than the model reads.
        digest: SHA-256 of the file, in hexadecimal.
    """

    examples: list[Example]
    dropped: int
    digest: str


def load_instructions(path: Path | str, tokenizer: Tokenizer, max_tokens: int) -> Instructions:
    """Reads a .jsonl file with one conversation a line.

    A line is an object with ``messages``, a list of objects with ``role`` (``system`` for the first if there is one,
    then ``user`` and ``assistant`` in turns) and ``content``; or, for one prompt and one reply, with ``prompt`` and
    ``response``. Other fields are ignored, also ``prompt`` where there are ``messages``.

    Args:
        path: The file; blank lines in it are skipped.
        tokenizer: The model's.
        max_tokens: Longest example, template and end included, in tokens; longer ones are left out and counted.

    Raises:
        InputError: If the file is missing, a line is not such an object (the message says file and line), or no
            example is left.
    """
    path = Path(path)
    examples = [encode_example(tokenizer, messages) for messages in read_instructions(path)]
    if not examples:
        raise InputError(f"{path} is empty; each of its lines must be {_FORMS}")
    fitting = [example for example in examples if len(example.tokens) <= max_tokens]
    dropped = len(examples) - len(fitting)
    if not fitting:
        shortest = min(len(example.tokens) for example in examples)
        raise InputError(
            f"{path}: none of its {len(examples)} conversations fits into {max_tokens} tokens (the shortest has "
            f"{shortest}); give shorter ones or a model with a longer context"
        )
    if dropped:
        level = logging.WARNING if dropped >= _MANY_DROPPED * len(examples) else logging.INFO
        logger.log(level, "instructions=%s dropped=%d of=%d longer_than=%d", path, dropped, len(examples), max_tokens)
    return Instructions(fitting, dropped, file_digest(path))


def split_conversations(fitting: Sequence[_Conversation]) -> tuple[list[_Conversation], list[_Conversation]]:
    """Those to learn from, and every :data:`HELDOUT_EVERY`-th (of fewer, the last one) to measure on.

    Args:
        fitting: The conversations that the model can read, in the order of their file.

    Raises:
        InputError: If there are fewer than two.
    """
    if len(fitting) < 2:
        raise InputError(
            f"the instructions hold {len(fitting)} conversation that fits the model; at least 2 are needed"
        )
    heldout = set(range(HELDOUT_EVERY - 1, len(fitting), HELDOUT_EVERY)) or {len(fitting) - 1}
    return (
        [conversation for i, conversation in enumerate(fitting) if i not in heldout],
        [conversation for i, conversation in enumerate(fitting) if i in heldout],
    )


def heldout_conversations(path: Path, tokenizer: Tokenizer, max_tokens: int) -> list[list[Message]]:
    """What was said in the conversations of a file that a model tuned on it did not learn from.

    Args:
        path: The file, as :func:`load_instructions` reads it.
        tokenizer: The model's.
        max_tokens: The model's context, by which tuning chose what it could read.

    Raises:
        InputError: As :func:`read_instructions` and :func:`split_conversations`.
    """
    fitting = [
        messages
        for messages in read_instructions(path)
        if len(encode_conversation(tokenizer, messages).ids) <= max_tokens
    ]
    return split_conversations(fitting)[1]


def encode_example(tokenizer: Tokenizer, messages: Sequence[Message]) -> Example:
    """The token ids of a conversation, and which of them are to be learned."""
    encoded = encode_conversation(tokenizer, messages)
    return Example(np.array(encoded.ids, dtype=np.int64), np.array(encoded.replied, dtype=np.bool_))


def read_instructions(path: Path) -> Iterator[list[Message]]:
    """The conversations of a .jsonl file, one at a time.

    Raises:
        InputError: As :func:`load_instructions`.
    """
    if not path.is_file():
        raise InputError(f"instructions file {path} does not exist; give a .jsonl file with lines of {_FORMS}")
    if path.suffix in (".gz", ".bz2", ".xz", ".zst"):
        raise InputError(f"instructions file {path} is compressed; unpack it first")
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    yield _parse(line.removeprefix(codecs.BOM_UTF8) if number == 1 else line)
                except InputError as error:
                    raise InputError(f"{path}:{number}: {error}") from error.__cause__


def _parse(line: bytes) -> list[Message]:
    try:
        record = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise InputError(f"byte {error.start + 1} of the line is not UTF-8") from error
    except (ValueError, RecursionError) as error:  # a ValueError also for numbers of very many digits
        raise InputError(f"the line is no JSON: {error}") from error
    if not isinstance(record, dict):
        raise InputError(f"the line is no JSON object; it must be {_FORMS}")
    if "messages" not in record:
        return [Message("user", _text(record, "prompt", "")), Message("assistant", _text(record, "response", ""))]
    said = record["messages"]
    if not isinstance(said, list):
        raise InputError(f"the field 'messages' is {_short(said)}; it must be a list of objects with role and content")
    messages = []
    for number, entry in enumerate(said, 1):
        if not isinstance(entry, dict):
            raise InputError(f"message {number} is {_short(entry)}; it must be an object with role and content")
        of = f" of message {number}"
        messages.append(Message(_text(entry, "role", of), _text(entry, "content", of)))  # type: ignore[arg-type]
    check_conversation(messages)
    if messages[-1].role != "assistant":
        raise InputError("the last message is the user's; a conversation to learn from ends with the assistant's")
    return messages


def _text(fields: dict[str, Any], field: str, of: str) -> str:
    """A field that must be a text, neither blank nor with half a character."""
    if field not in fields:
        raise InputError(f"the field {field!r}{of} is missing; a line is {_FORMS}")
    value = fields[field]
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"the field {field!r}{of} is {_short(value)}; it must be a text that is not blank")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"character {error.start + 1} of {field!r}{of} is half a surrogate pair") from error
    return value


def _short(value: Any) -> str:
    return json.dumps(value)[:40]
