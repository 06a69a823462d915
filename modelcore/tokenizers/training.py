"""Training of a SentencePiece model on any amount of text, in bounded memory.

The settings are those under which nothing of a text is lost and the fewest tokens are needed on novels that were not
trained on (bytes per token at 2,048 pieces, BPE): text cut into lines 3.12; newlines within the text 3.20; pieces that
mix letters, punctuation and newlines 3.32; pieces of several spaces 3.33. Pieces that span words would reach 3.44, but
then no text could be cut into words, which bounds everything else here.
"""

from __future__ import annotations

import heapq
import random
import re
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from modelcore.errors import InputError
from modelcore.tokenizers.sentencepiece_file import NORMAL, SPACE_MARK, Algorithm, parse_model
from modelcore.tokenizers.sentencepiece_tokenizer import BOS_ID, EOS_ID, PAD_ID, UNK_ID
from modelcore.tokenizers.tokenizer import SENTENCEPIECE_FILE
from modelcore.tokenizers.words import SPECIAL_PIECES

MAX_SAMPLE_BYTES = 4 * 2**20
"""Most text that the vocabulary is fitted to; of a larger corpus, passages drawn at random.

It bounds the memory: text without any spaces, the worst case, takes unigram some 110 MiB a MiB, and BPE 70.
"""

_NO_TEXT = len(SPECIAL_PIECES) + 256  # ids that stand for no text or for a byte

_MOST_IDS = 2**31 - 1

PASSAGE_CHARACTERS = 4096
"""Longest passage: the unit of sampling, and of what SentencePiece calls a sentence."""

# A unigram score is rounded to a multiple of this, so that the scores of a word (at most 2 * LONGEST_WORD characters,
# each worth more than -32) add up without rounding in 32-bit floats, in any order. Then pieces that tie, tie for
# every implementation, and the Hugging Face export, which adds in 64 bits, chooses the same ones.
_SCORE_STEP = 2.0**-9


@dataclass(frozen=True)
class SentencePieceTraining:
    """What the training saw.

    Attributes:
        corpus_bytes: UTF-8 bytes of the texts.
        sampled_bytes: UTF-8 bytes that the vocabulary was fitted to; fewer where the corpus exceeds
            ``MAX_SAMPLE_BYTES``.
        corpus_passages: Passages of at most ``PASSAGE_CHARACTERS`` that the texts were cut into.
        sampled_passages: Those that the vocabulary was fitted to.
        seed: Decided which.
    """

    corpus_bytes: int
    sampled_bytes: int
    corpus_passages: int
    sampled_passages: int
    seed: int

    @property
    def sampling(self) -> str:
        """How the sample was drawn, in words."""
        if self.sampled_passages == self.corpus_passages:
            return f"none: the corpus has no more than the {MAX_SAMPLE_BYTES:,} bytes that are used"
        return (
            f"{self.sampled_passages:,} of {self.corpus_passages:,} passages of up to {PASSAGE_CHARACTERS:,} "
            f"characters, drawn from the whole corpus with equal chances (seed {self.seed})"
        )


def train_sentencepiece(
    texts: Iterable[str],
    out: Path,
    *,
    vocab_size: int,
    algorithm: Algorithm,
    seed: int,
    user_symbols: Sequence[str] = (),
) -> SentencePieceTraining:
    """Fits a vocabulary to texts and writes it as ``tokenizer.model``.

    The result is a function of the texts and the arguments alone.

    Args:
        texts: The corpus, read once; it may be larger than memory.
        out: An existing folder to write into.
        vocab_size: Number of ids: 4 special ones, the user symbols, 256 bytes, the characters (a space always among
            them), and pieces of several characters.
        algorithm: ``unigram`` (Kudo, 2018) or ``bpe`` (Sennrich et al., 2016).
        seed: Decides which passages are drawn from a corpus larger than ``MAX_SAMPLE_BYTES``.
        user_symbols: Texts that are one token each, wherever they stand; of several that begin at one place, the
            longest.

    Raises:
        InputError: If there is no text, the vocabulary is too small or too large for it, or a symbol cannot be one.
    """
    from sentencepiece import SentencePieceTrainer

    _check_symbols(user_symbols)
    if vocab_size > _MOST_IDS:
        raise InputError(f"vocab_size {vocab_size} is too large; SentencePiece counts no further than {_MOST_IDS}")
    passages, training = _sample(texts, seed)
    model = BytesIO()
    try:
        SentencePieceTrainer.train(
            sentence_iterator=iter(passages),
            model_writer=model,
            model_type=algorithm,
            vocab_size=max(
                vocab_size, _NO_TEXT + len(user_symbols)
            ),  # so that SentencePiece itself counts what is needed at least
            unk_id=UNK_ID,
            bos_id=BOS_ID,
            eos_id=EOS_ID,
            pad_id=PAD_ID,
            user_defined_symbols=list(user_symbols),
            required_chars=SPACE_MARK,  # Chinese text has too few spaces for one in the vocabulary, or none
            byte_fallback=True,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            split_by_unicode_script=False,
            allow_whitespace_only_pieces=True,
            max_sentence_length=4 * PASSAGE_CHARACTERS,
            num_threads=1,  # unigram's sums depend, in their last bits, on how they are divided among threads
            minloglevel=2,
        )
    except RuntimeError as error:
        raise _readable(error, vocab_size) from error
    data = model.getvalue()
    (out / SENTENCEPIECE_FILE).write_bytes(_round_scores(data) if algorithm == "unigram" else data)
    return training


def _check_symbols(symbols: Sequence[str]) -> None:
    for symbol in symbols:
        if not symbol or re.search(f"[ \0{SPACE_MARK}\ud800-\udfff]", symbol):
            reason = "it must hold a character, and no space, NUL, U+2581 or half of a surrogate pair"
        elif symbol in SPECIAL_PIECES or re.fullmatch("<0x[0-9A-F]{2}>", symbol):
            reason = "a special or byte piece has this name"
        elif symbols.count(symbol) > 1:
            reason = "it is given twice"
        else:
            continue
        raise InputError(f"{symbol!a} cannot be a user symbol: {reason}")


def _sample(texts: Iterable[str], seed: int) -> tuple[list[str], SentencePieceTraining]:
    """Passages of the texts in their order: all, or at most ``MAX_SAMPLE_BYTES`` drawn with equal chances.

    Each passage draws a number, and those with the smallest are kept.
    """
    rng = random.Random(seed)
    kept: list[tuple[float, int, str, int]] = []  # a heap, the largest number drawn first
    number = corpus_bytes = sampled_bytes = 0
    for number, passage in enumerate((part for text in texts for part in _passages(text)), 1):
        size = len(passage.encode())
        corpus_bytes += size
        sampled_bytes += size
        heapq.heappush(kept, (-rng.random(), number, passage, size))
        while sampled_bytes > MAX_SAMPLE_BYTES:
            sampled_bytes -= heapq.heappop(kept)[3]
    passages = [passage for _, _, passage, _ in sorted(kept, key=lambda entry: entry[1])]
    return passages, SentencePieceTraining(corpus_bytes, sampled_bytes, number, len(passages), seed)


def _passages(text: str) -> Iterator[str]:
    """Cuts a text before spaces, or where there are none anywhere, into parts that SentencePiece takes as sentences.

    NUL and U+2581, which SentencePiece cannot learn, are left out.
    """
    for part in re.split(f"[\0{SPACE_MARK}]", text):
        start = 0
        while start < len(part):
            end = start + PASSAGE_CHARACTERS
            if end < len(part):
                space = part.rfind(" ", start + 1, end)
                end = space if space > 0 else end
            yield part[start:end]
            start = end


def _round_scores(data: bytes) -> bytes:
    rounded = bytearray(data)
    for piece in parse_model(data).pieces:
        if piece.kind == NORMAL:
            struct.pack_into("<f", rounded, piece.score_offset, round(piece.score / _SCORE_STEP) * _SCORE_STEP)
    return bytes(rounded)


def _readable(error: RuntimeError, vocab_size: int) -> Exception:
    """The one line that a user can act on, for SentencePiece's complaints about corpus and vocabulary."""
    if "!sentences_.empty()" in str(error):
        return InputError("the corpus holds no text to train a tokenizer on")
    if largest := re.search(r"value <= (\d+)", str(error)):
        return InputError(
            f"vocab_size {vocab_size} is too large for this corpus, which supports at most {largest[1]}; "
            "give a smaller one or more text"
        )
    if least := re.search(r"required_chars\. \d+ vs (\d+)", str(error)):
        return InputError(
            f"vocab_size {vocab_size} is too small: special ids, user symbols, 256 bytes and this corpus's characters "
            f"need at least {least[1]}"
        )
    return error
