"""A tokenizer as llama.cpp's vocabulary: the fields ``tokenizer.ggml.*`` of a GGUF file.

Each kind is written as that one of llama.cpp's which gives the same ids:

* SentencePiece's BPE as ``llama``: neighbours that form the piece of the highest score are joined, unknown characters
  become bytes.
* Our unigram as ``plamo2``: the best sum of scores, unknown characters become bytes. (Its ``t5`` has the best sum too,
  but no bytes: every character outside the vocabulary would be the unknown token, which the model has never seen.) It
  counts in whole ten-thousandths, and its pieces hold spaces as they are.
* GPT-2's byte-level BPE as ``gpt2``, with its merges.

Specification: the GGUF document of ggml, and llama.cpp's src/llama-vocab.cpp.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from modelcore.errors import InputError
from modelcore.tokenizers import Tokenizer
from modelcore.tokenizers.chat import chat_template
from modelcore.tokenizers.json_tokenizer import GPT2_CUTS, JsonTokenizer, byte_level_bytes
from modelcore.tokenizers.sentencepiece_file import BYTE, CONTROL, NORMAL, SPACE_MARK, UNUSED, USER_DEFINED, byte_of
from modelcore.tokenizers.sentencepiece_tokenizer import SentencePieceTokenizer

if TYPE_CHECKING:
    import gguf

UNIGRAM, BPE, BYTE_LEVEL = "plamo2", "llama", "gpt2"
"""llama.cpp's names of the algorithms."""

# A unigram score times this is the whole number that llama.cpp adds up. Our scores are multiples of 2^-9 (see
# tokenizers/training.py), so none is rounded, and ties stay ties.
_SCORE_UNITS = 2**15

# llama.cpp multiplies the score stored by this and rounds; -1000 stands for a character without a piece, and what is
# below -2000 is never chosen: the names of special pieces in a text are text.
_THEIR_UNITS = 10_000
_UNKNOWN, _NEVER = -1000.0, -2000.0

# What a byte-level BPE must not have for llama.cpp's ``gpt-2`` to join pieces as it does.
_GPT2_SWITCHES = ("byte_fallback", "continuing_subword_prefix", "dropout", "end_of_word_suffix", "ignore_merges")


@dataclass(frozen=True)
class Vocabulary:
    """What GGUF says of a tokenizer.

    Attributes:
        model: llama.cpp's name of the algorithm.
        tokens: The pieces, by id.
        types: Their kinds, numbered as SentencePiece does.
        scores: Their scores, where the algorithm has any.
        merges: The pairs that are joined, first ones first, where it has any; a space between the two.
        pre: llama.cpp's name of how a text is cut beforehand.
    """

    model: str
    tokens: list[str]
    types: list[int]
    scores: list[float] = field(default_factory=list)
    merges: list[str] = field(default_factory=list)
    pre: str = "default"


def vocabulary_of(tokenizer: Tokenizer) -> Vocabulary:
    """The vocabulary with which llama.cpp gives the tokenizer's ids.

    Raises:
        InputError: If llama.cpp has no such tokenizer.
    """
    if isinstance(tokenizer, SentencePieceTokenizer):
        if tokenizer.model.algorithm == "bpe":
            return _bpe(tokenizer)
        if tokenizer.is_ours:
            return _unigram(tokenizer)
    elif isinstance(tokenizer, JsonTokenizer):
        fields = json.loads(tokenizer.to_json())
        model, cuts = fields["model"], fields["pre_tokenizer"] or {}
        if (
            model["type"] == "BPE"
            and fields["normalizer"] is None
            and cuts.items() >= GPT2_CUTS.items()
            and not any(model.get(name) for name in _GPT2_SWITCHES)
        ):
            return _byte_level(tokenizer, fields)
    raise InputError(
        f"the tokenizer {tokenizer.model_file} cannot be written as GGUF; SentencePiece's BPE, a unigram model made "
        "by train-tokenizer, and GPT-2's byte-level BPE can"
    )


def write_vocabulary(writer: gguf.GGUFWriter, tokenizer: Tokenizer) -> None:
    """Adds the tokenizer, and the template of a conversation with a tuned model, to a GGUF file's fields.

    Raises:
        InputError: As :func:`vocabulary_of`.
    """
    vocabulary = vocabulary_of(tokenizer)
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    if vocabulary.scores:
        writer.add_token_scores(vocabulary.scores)
    if vocabulary.merges:
        writer.add_token_merges(vocabulary.merges)
    writer.add_bos_token_id(tokenizer.bos_id)
    writer.add_eos_token_id(tokenizer.eos_id)
    writer.add_pad_token_id(tokenizer.pad_id)
    if tokenizer.unk_id is not None:
        writer.add_unk_token_id(tokenizer.unk_id)
    writer.add_add_bos_token(tokenizer.adds_bos)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(tokenizer.adds_space)
    writer.add_remove_extra_whitespaces(False)
    writer.add_chat_template(chat_template(adds_bos=tokenizer.adds_bos))


def token_bytes(fields: dict[str, Any], token: int) -> bytes:
    """The text of a token by the fields of a GGUF file, as llama.cpp writes it out; control tokens have none.

    Args:
        fields: The file's fields by name.
        token: The id.
    """
    text: str = fields["tokenizer.ggml.tokens"][token]
    kind: int = fields["tokenizer.ggml.token_type"][token]
    if kind == BYTE:
        return byte_of(text)
    if kind != NORMAL:
        return text.encode() if kind == USER_DEFINED else b""
    if fields["tokenizer.ggml.model"] == BYTE_LEVEL:
        return byte_level_bytes(text)
    return (text.replace(SPACE_MARK, " ") if fields["tokenizer.ggml.model"] == BPE else text).encode()


def _bpe(tokenizer: SentencePieceTokenizer) -> Vocabulary:
    pieces = tokenizer.model.pieces
    # A text is searched for user symbols before its spaces are replaced.
    tokens = [piece.text.replace(SPACE_MARK, " ") if piece.kind == USER_DEFINED else piece.text for piece in pieces]
    return Vocabulary(BPE, tokens, [piece.kind for piece in pieces], [piece.score for piece in pieces])


def _unigram(tokenizer: SentencePieceTokenizer) -> Vocabulary:
    tokens, scores = [], []
    for piece in tokenizer.model.pieces:
        is_text = piece.kind in (NORMAL, USER_DEFINED)
        tokens.append(piece.text.replace(SPACE_MARK, " ") if is_text else piece.text)
        scores.append(piece.score * _SCORE_UNITS / _THEIR_UNITS if is_text or piece.kind == BYTE else _NEVER)
        if is_text and scores[-1] <= _UNKNOWN:
            raise InputError(f"the piece {piece.text!r} has the score {piece.score}, too low for GGUF")
    return Vocabulary(UNIGRAM, tokens, [piece.kind for piece in tokenizer.model.pieces], scores)


def _byte_level(tokenizer: JsonTokenizer, fields: dict[str, Any]) -> Vocabulary:
    names = {i: token for token, i in fields["model"]["vocab"].items()}
    kinds = dict.fromkeys(names, NORMAL)
    for added in fields["added_tokens"]:
        names[added["id"]] = added["content"]
        kinds[added["id"]] = CONTROL if added["special"] else USER_DEFINED
    kinds |= {
        i: CONTROL for i in (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, tokenizer.unk_id) if i is not None
    }
    # An id that no token has is one that nothing yields.
    ids = range(tokenizer.vocab_size)
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in fields["model"]["merges"]]
    return Vocabulary(
        BYTE_LEVEL,
        [names.get(i, f"[PAD{i}]") for i in ids],
        [kinds.get(i, UNUSED) for i in ids],
        merges=merges,
        pre="gpt-2",
    )
