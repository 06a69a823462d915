"""How many tokens the tokenizer files of a Hugging Face folder prove that there are.

Some programs pad a model's vocabulary for speed and publish it so: an embedding of 50,304 rows for GPT-2's 50,257
tokens. The padding's rows are no tokens. A tokenizer's files are read here as far as needed to count, whatever kind
they are of.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from modelcore.errors import InputError
from modelcore.files import read_json
from modelcore.tokenizers.sentencepiece_file import parse_model
from modelcore.tokenizers.tokenizer import JSON_FILE, ROLES_FILE, SENTENCEPIECE_FILE, VOCAB_FILE


def proven_vocab_size(folder: Path) -> int | None:
    """One more than the highest id that any tokenizer file of ``folder`` names; None without a vocabulary there.

    Raises:
        InputError: If one of the files is damaged.
    """
    folder = Path(folder)
    sizes = list(_vocabularies(folder))
    return max([*sizes, *_additions(folder)]) if sizes else None


def _vocabularies(folder: Path) -> Iterator[int]:
    """The size of each whole vocabulary."""
    if (path := folder / SENTENCEPIECE_FILE).is_file():
        try:
            yield len(parse_model(path.read_bytes()).pieces)
        except ValueError as error:
            raise InputError(f"{path} is no SentencePiece model, or a damaged one: {error}") from error
    if (path := folder / JSON_FILE).is_file():
        fields = read_json(path)
        model = fields.get("model")
        vocabulary = model.get("vocab") if isinstance(model, dict) else None
        if not isinstance(vocabulary, dict | list) or not vocabulary:
            raise InputError(f"{path} has no vocabulary under 'model'; it is no file of the tokenizers library")
        yield len(vocabulary) if isinstance(vocabulary, list) else _beyond(path, vocabulary.values())
        added = fields.get("added_tokens") or []
        yield _beyond(path, (token.get("id") for token in added)) if added else 0
    if (path := folder / VOCAB_FILE).is_file():
        yield _beyond(path, read_json(path).values())


def _additions(folder: Path) -> Iterator[int]:
    """What the files of tokens that were added later reach up to."""
    if (path := folder / "added_tokens.json").is_file() and (added := read_json(path)):
        yield _beyond(path, added.values())
    if (path := folder / ROLES_FILE).is_file():
        added = read_json(path).get("added_tokens_decoder") or {}
        if added:
            yield _beyond(path, (int(id_) if id_.isdecimal() else None for id_ in added))


def _beyond(path: Path, ids: Any) -> int:
    try:
        return 1 + max(int(id_) for id_ in ids)
    except (TypeError, ValueError):
        raise InputError(f"{path} has a token whose id is no number") from None
