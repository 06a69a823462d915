"""What every tokenizer does, whoever made it, and how one is found in a folder."""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from modelcore.errors import InputError

Ids = npt.NDArray[np.uint32]

SENTENCEPIECE_FILE = "tokenizer.model"
"""Name of a SentencePiece model in a folder that holds a tokenizer."""

JSON_FILE = "tokenizer.json"
"""Name of a tokenizer of the tokenizers library, such as GPT-2's, in such a folder."""

ROLES_FILE = "tokenizer_config.json"
"""Beside :data:`JSON_FILE`: which of its tokens begin and end a text."""

VOCAB_FILE, MERGES_FILE = "vocab.json", "merges.txt"
"""The two files in which GPT-2's tokenizer was published."""

TOKENIZER_FILES = (SENTENCEPIECE_FILE, JSON_FILE, ROLES_FILE, VOCAB_FILE, MERGES_FILE)
"""Every file that may belong to the tokenizer in a folder."""

# Words whose ids are remembered. Text repeats few words very often; the bound keeps memory under some 30 MiB.
_REMEMBERED_WORDS = 1 << 17
_LONGEST_REMEMBERED = 32


class Tokenizer(ABC):
    """Text to ids and back.

    A text never yields a special id: ``</s>`` in it is encoded as the four characters it is. What a tokenizer does not
    give back as it was is stated by its class.

    Attributes:
        model_file: The file it was loaded from; :meth:`load` takes it again.
        digest: SHA-256, in hexadecimal, of the file that :meth:`save` writes.
        vocab_size: Number of ids, special ones and bytes included.
        bos_id: Id of the beginning of a text; where the vocabulary has none, ``eos_id``.
        eos_id: Id of the end of a text.
        pad_id: Id that fills up a batch; where the vocabulary has none, ``eos_id``.
        unk_id: Id of what the vocabulary does not know, or None.
        adds_bos: Whether its models are used to texts that begin with ``bos_id``.
        adds_space: Whether it encodes a text as if a space stood before it ("dummy prefix").
        releases_gil: Whether other threads can run Python for most of the time that :meth:`encode_batch` takes, several
            of which may then be at work.
    """

    model_file: Path
    digest: str
    vocab_size: int
    bos_id: int
    eos_id: int
    pad_id: int
    unk_id: int | None
    adds_bos: bool
    adds_space: bool
    releases_gil: bool = False

    def __init__(self, pieces: list[bytes]) -> None:
        """Takes what each id stands for, as UTF-8 bytes; nothing for special ids."""
        self._bytes = pieces
        self.vocab_size = len(pieces)
        self._remembered = _RememberedWords(self._encode_word)

    @staticmethod
    def load(path: Path | str) -> Tokenizer:
        """Loads the tokenizer in a folder, of the kind that its files show, or one of these files.

        A folder holds ``tokenizer.model`` (SentencePiece: our own, LLaMA's), or ``tokenizer.json`` (the tokenizers
        library: GPT-2's byte-level BPE and its like), or ``vocab.json`` and ``merges.txt`` (GPT-2's as published).
        The first of these that is there counts.

        Raises:
            InputError: If there is none, or it is damaged or of a kind that cannot be used.
        """
        file = find_tokenizer(Path(path))
        if file.suffix == ".json":
            from modelcore.tokenizers.json_tokenizer import JsonTokenizer

            return JsonTokenizer(file)
        from modelcore.tokenizers.sentencepiece_tokenizer import SentencePieceTokenizer

        return SentencePieceTokenizer(file)

    def check_model(self, vocab_size: int) -> None:
        """Makes sure that a model with ``vocab_size`` tokens can be this tokenizer's.

        Raises:
            InputError: If it cannot.
        """
        if vocab_size != self.vocab_size:
            raise InputError(
                f"the tokenizer {self.model_file} has {self.vocab_size} tokens, the model {vocab_size}; use the "
                "tokenizer that the model was trained with"
            )

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Writes the tokenizer into an existing folder, from which :meth:`load` loads an equal one."""

    @abstractmethod
    def name(self, token_id: int) -> str:
        """The token as the vocabulary writes it."""

    def special_tokens(self) -> dict[str, str]:
        """The names of the special tokens, by the fields that Hugging Face's ``tokenizer_config.json`` has for them."""
        ids = {"unk_token": self.unk_id, "bos_token": self.bos_id, "eos_token": self.eos_id, "pad_token": self.pad_id}
        return {field: self.name(i) for field, i in ids.items() if i is not None}

    def encode(self, text: str, *, bos: bool = False, eos: bool = False) -> list[int]:
        """The ids of a text.

        Args:
            text: The text.
            bos: Whether the id of a text's beginning comes first.
            eos: Whether the id of a text's end comes last.

        Raises:
            InputError: If the text holds half a surrogate pair, which is no character.
        """
        ids: list[int] = self.encode_batch([text], bos=bos, eos=eos)[0].tolist()
        return ids

    def encode_batch(
        self, texts: Sequence[str], *, bos: bool = False, eos: bool = False
    ) -> tuple[Ids, npt.NDArray[np.int64]]:
        """The ids of several texts, those that :meth:`encode` gives, as arrays: no Python object for each id.

        Args:
            texts: The texts.
            bos: Whether the id of a text's beginning comes before each.
            eos: Whether the id of a text's end comes after each.

        Returns:
            The ids of all texts one after another, uint32, and how many of them each text has, int64.

        Raises:
            InputError: If a text holds half a surrogate pair, which is no character.
        """
        for text in texts:
            _check_characters(text)
        before, after = np.array([self.bos_id] * bos, np.uint32), np.array([self.eos_id] * eos, np.uint32)
        parts, lengths = [before[:0]], np.full(len(texts), bos + eos, dtype=np.int64)
        for number, ids in enumerate(self._encode_texts(texts)):
            parts += (before, ids, after)
            lengths[number] += len(ids)
        return np.concatenate(parts), lengths

    def decode(self, ids: Iterable[int]) -> str:
        """The text of some ids; special ids have none, and bytes that form no character become U+FFFD.

        Raises:
            InputError: If an id is outside the vocabulary.
        """
        content = self.decode_bytes(ids)
        return content.removeprefix(b" " if self.adds_space else b"").decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The UTF-8 bytes of ids within a text: half a character may stand at either end, and a first space stays.

        Raises:
            InputError: If an id is outside the vocabulary.
        """
        ids = ids if isinstance(ids, Sequence) else list(ids)
        if ids and (min(ids) < 0 or max(ids) >= self.vocab_size):
            wrong = next(i for i in ids if not 0 <= i < self.vocab_size)
            raise InputError(
                f"token id {wrong} is outside the vocabulary of {self.vocab_size} (0 to {self.vocab_size - 1})"
            )
        return b"".join([self._bytes[i] for i in ids])

    def _encode_texts(self, texts: Sequence[str]) -> list[Ids]:
        """The ids of each text, put together from those of its words."""
        ids_of = self._remembered.__getitem__
        return [np.frombuffer(b"".join(map(ids_of, self._words(text))), dtype=np.uint32) for text in texts]

    @abstractmethod
    def _words(self, text: str) -> Sequence[str]:
        """Cuts a text, changed as the tokenizer changes it, where no piece can reach over the cut."""

    @abstractmethod
    def _encode_word(self, word: str) -> list[int]:
        """The ids of one of ``_words``."""


class _RememberedWords(dict[str, bytes]):
    """The ids of words, as an array's bytes: what is not there is encoded, and remembered if it is short.

    Joining bytes is the fastest way from words to ids that Python has: dictionary, ``map`` and ``join`` are all C.
    """

    def __init__(self, encode: Callable[[str], list[int]]) -> None:
        self._encode = encode

    def __missing__(self, word: str) -> bytes:
        ids = array("I", self._encode(word)).tobytes()
        if len(word) <= _LONGEST_REMEMBERED:
            if len(self) >= _REMEMBERED_WORDS:
                self.clear()  # what is frequent in the text at hand is soon there again
            self[word] = ids
        return ids


def find_tokenizer(path: Path) -> Path:
    """The file by which the tokenizer at ``path``, a folder or a file, is known.

    Raises:
        InputError: If there is none, or only half of it.
    """
    if path.is_file():
        path = path.with_name(VOCAB_FILE) if path.name == MERGES_FILE else path
        if path.name == VOCAB_FILE and not path.with_name(MERGES_FILE).is_file():
            raise InputError(f"{path} is half a tokenizer: {MERGES_FILE} is not beside it")
        return path
    if not path.is_dir():
        raise InputError(f"cannot read the tokenizer {path}: No such file or directory")
    for name in (SENTENCEPIECE_FILE, JSON_FILE, VOCAB_FILE, MERGES_FILE):
        if (path / name).is_file():
            return find_tokenizer(path / name) if name in (VOCAB_FILE, MERGES_FILE) else path / name
    raise InputError(
        f"{path} holds no tokenizer: neither {SENTENCEPIECE_FILE}, nor {JSON_FILE}, nor {VOCAB_FILE} and {MERGES_FILE}"
    )


def has_tokenizer(folder: Path) -> bool:
    """Whether there is anything in a folder that :meth:`Tokenizer.load` would look at."""
    return any((folder / name).is_file() for name in (SENTENCEPIECE_FILE, JSON_FILE, VOCAB_FILE, MERGES_FILE))


def copy_tokenizer(file: Path, folder: Path) -> None:
    """Copies the tokenizer that :func:`find_tokenizer` found into a folder, without loading it."""
    if file.suffix != ".json":
        shutil.copyfile(file, folder / SENTENCEPIECE_FILE)
        return
    shutil.copyfile(file, folder / (VOCAB_FILE if file.name == VOCAB_FILE else JSON_FILE))
    beside = (ROLES_FILE, MERGES_FILE) if file.name == VOCAB_FILE else (ROLES_FILE,)
    for source in (file.with_name(name) for name in beside):
        if source.is_file():
            shutil.copyfile(source, folder / source.name)


def _check_characters(text: str) -> None:
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:
        where = f"character {error.start + 1} of the text is half a surrogate pair (U+{ord(text[error.start]):04X})"
        raise InputError(f"{where}, no character") from None
