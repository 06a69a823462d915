"""Tokenizers in the format of the tokenizers library: GPT-2's byte-level BPE, and others that lose no byte."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelcore.atomic import write_json
from modelcore.errors import InputError
from modelcore.files import read_json
from modelcore.tokenizers.sentencepiece_file import SPACE_MARK, byte_of
from modelcore.tokenizers.tokenizer import JSON_FILE, MERGES_FILE, ROLES_FILE, VOCAB_FILE, Tokenizer

if TYPE_CHECKING:
    import tokenizers

_ROLES = {
    "eos_token": ("<|endoftext|>", "</s>", "<|end_of_text|>", "<eos>"),
    "bos_token": ("<s>", "<|begin_of_text|>", "<bos>"),
    "pad_token": ("<pad>", "<|pad|>"),
    "unk_token": ("<unk>",),
}
"""The fields of ``tokenizer_config.json``, and the names that a token of each role has where the file is silent."""

GPT2_CUTS = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
"""How GPT-2's tokenizer cuts a text, as ``pre_tokenizer`` of a ``tokenizer.json``."""

# GPT-2's pattern matches spaces only at the start of a piece, so no piece reaches from a character over a space. The
# spaces are Unicode's White_Space, which is what that pattern means by \s and Python's does not.
_SPACES = "\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
_split_at_spaces = re.compile(f"[{_SPACES}]*[^{_SPACES}]+|[{_SPACES}]+").findall


class JsonTokenizer(Tokenizer):
    """A ``tokenizer.json`` of byte-level pieces (GPT-2's) or of pieces with byte fallback (LLaMA's).

    GPT-2's gives every text back as it was. Another gives back what its own normalizer leaves of it. The name of a
    special token in a text is text, as in GPT-2's own encoder; transformers reads it as the token unless told
    ``split_special_tokens=True``.

    Which tokens begin and end a text, ``tokenizer_config.json`` beside the file says; without it, their names do.

    Args:
        model_file: A ``tokenizer.json``, or the ``vocab.json`` that has ``merges.txt`` beside it.

    Raises:
        InputError: If a file is missing, damaged, of a tokenizer that loses bytes, or names no end of a text.
    """

    def __init__(self, model_file: Path) -> None:
        self.model_file = Path(model_file)
        if self.model_file.name == VOCAB_FILE:
            self._backend = _from_vocabulary(self.model_file, self.model_file.with_name(MERGES_FILE))
            self._content = self._backend.to_str().encode()
        else:
            self._content = _read(self.model_file)
            self._backend = _from_json(self.model_file, self._content)
        self._backend.no_truncation()
        self._backend.no_padding()
        self._backend.encode_special_tokens = True  # their names in a text are text
        fields = json.loads(self._backend.to_str())
        super().__init__(self._piece_bytes(fields))
        self.digest = hashlib.sha256(self._content).hexdigest()
        roles = self._roles()
        if "eos_token" not in roles:
            raise InputError(f"{self.model_file} names no end of a text; name its eos_token in {ROLES_FILE} beside it")
        self.eos_id = roles["eos_token"]
        self.bos_id, self.pad_id = roles.get("bos_token", self.eos_id), roles.get("pad_token", self.eos_id)
        self.unk_id = roles.get("unk_token")
        for i in roles.values():
            self._bytes[i] = b""  # also where the file does not say that the token is special
        self.adds_space = _strips_space(fields["decoder"])
        self.adds_bos = self._backend.encode("a").ids[:1] == [self.bos_id]
        self._cuts = (
            fields["normalizer"] is None
            and GPT2_CUTS.items() <= (fields["pre_tokenizer"] or {}).items()
            and all(token["special"] for token in fields["added_tokens"])
        )

    def save(self, folder: Path) -> None:
        """Writes ``tokenizer.json``, and ``tokenizer_config.json`` to name its special tokens."""
        (folder / JSON_FILE).write_bytes(self._content)
        write_json(folder / ROLES_FILE, self.special_tokens())

    def to_json(self) -> str:
        """The content of ``tokenizer.json``."""
        return self._content.decode()

    def name(self, token_id: int) -> str:
        """The token as the vocabulary writes it."""
        return str(self._backend.id_to_token(token_id))

    def _words(self, text: str) -> Sequence[str]:
        return _split_at_spaces(text) if self._cuts else [text] if text else []

    def _encode_word(self, word: str) -> list[int]:
        ids: list[int] = self._backend.encode(word, add_special_tokens=False).ids
        return ids

    def _piece_bytes(self, fields: dict[str, Any]) -> list[bytes]:
        vocabulary = self._backend.get_vocab(with_added_tokens=True)
        kinds = [part["type"] for part in _parts(fields["decoder"])]
        if "ByteLevel" not in kinds and "ByteFallback" not in kinds:
            raise InputError(
                f"{self.model_file} cannot be used: it has neither byte-level pieces, as GPT-2, nor byte fallback, as "
                "LLaMA, so characters outside its vocabulary would be lost"
            )
        read = byte_level_bytes if "ByteLevel" in kinds else _byte_fallback_bytes
        added = {token["id"]: token for token in fields["added_tokens"]}
        pieces = [b""] * (max(vocabulary.values(), default=-1) + 1)
        for token, i in vocabulary.items():
            if i not in added:
                pieces[i] = read(token)
            elif not added[i]["special"]:
                pieces[i] = token.encode()
        return pieces

    def _roles(self) -> dict[str, int]:
        """The special tokens' ids by role: those that the file beside the tokenizer names, or else the known names."""
        path = self.model_file.with_name(ROLES_FILE)
        named: dict[str, Any] = {}
        if path.is_file():
            named = read_json(path)
        ids = {}
        for role, known in _ROLES.items():
            token = named.get(role)
            token = token.get("content") if isinstance(token, dict) else token
            names = (token,) if isinstance(token, str) else known
            found = [i for name in names if (i := self._backend.token_to_id(name)) is not None]
            if isinstance(token, str) and not found:
                raise InputError(f"{path}: {role} is {token!r}, which {self.model_file.name} does not hold")
            if found:
                ids[role] = found[0]
        return ids


def _from_vocabulary(vocab_file: Path, merges_file: Path) -> tokenizers.Tokenizer:
    """GPT-2's tokenizer from the files in which it was published (there encoder.json and vocab.bpe)."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers, processors

    vocabulary = read_json(vocab_file)
    lines = _read(merges_file).decode("utf-8", errors="replace").split("\n")
    pairs = [line.partition(" ") for line in lines if line and not line.startswith("#version")]
    try:
        backend = Backend(models.BPE(vocabulary, [(left, right) for left, _, right in pairs]))
    except Exception as error:  # the library raises nothing more precise
        raise InputError(f"{vocab_file} and {merges_file.name} are no byte-level BPE: {error}") from error
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    backend.add_special_tokens([token for token in _ROLES["eos_token"] if token in vocabulary])
    return backend


def _from_json(file: Path, content: bytes) -> tokenizers.Tokenizer:
    from tokenizers import Tokenizer as Backend

    try:
        return Backend.from_buffer(content)
    except Exception as error:  # the library raises nothing more precise
        raise InputError(f"{file} is no tokenizer of the tokenizers library, or a damaged one: {error}") from error


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read the tokenizer {file}: {error.strerror}") from error


def _parts(component: dict[str, Any] | None) -> list[dict[str, Any]]:
    """A component of a tokenizer.json, or those that a sequence is made of."""
    if component is None:
        return []
    return component["decoders"] if component["type"] == "Sequence" else [component]


def _strips_space(decoder: dict[str, Any] | None) -> bool:
    return any(
        (part["type"] == "Strip" and part["content"] == " " and part["start"] > 0)
        or (part["type"] == "Metaspace" and part.get("prepend_scheme", "always") != "never")
        for part in _parts(decoder)
    )


def _byte_fallback_bytes(token: str) -> bytes:
    if re.fullmatch("<0x[0-9A-F]{2}>", token):
        return byte_of(token)
    return token.replace(SPACE_MARK, " ").encode()


def byte_level_bytes(token: str) -> bytes:
    """What a piece of GPT-2's tokenizer stands for."""
    return b"".join(_BYTES.get(character) or character.encode() for character in token)


def _byte_characters() -> dict[str, bytes]:
    """GPT-2's character for each byte: its own where that is printable, otherwise one from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    characters = {chr(byte): bytes([byte]) for byte in printable}
    return characters | {chr(0x100 + i): bytes([byte]) for i, byte in enumerate(others)}


_BYTES = _byte_characters()
