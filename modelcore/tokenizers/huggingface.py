"""Export to the files that ``transformers.AutoTokenizer`` loads, with the same ids and the same text.

``tokenizer.json`` is the format of the tokenizers library. Its vocabulary writes a space as a space and not as
SentencePiece's U+2581, so that nothing needs replacing before or after, and U+2581 in a text stays what it is.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelcore.atomic import write_json
from modelcore.tokenizers.prompt import CHAT_TEMPLATE
from modelcore.tokenizers.sentencepiece_file import NORMAL, Piece
from modelcore.tokenizers.tokenizer import SPACE_MARK, Tokenizer
from modelcore.tokenizers.words import SPECIAL_PIECES, WORD_PATTERN

if TYPE_CHECKING:
    import tokenizers


def export_huggingface(tokenizer: Tokenizer, folder: Path, context_length: int) -> None:
    """Writes ``tokenizer.json`` and ``tokenizer_config.json``, chat template included.

    ``AutoTokenizer.from_pretrained(folder)`` then encodes every text to the ids of ``tokenizer.encode``, adding none at
    either end, with one difference that its users count on: the name of a special piece in a text, such as ``</s>``,
    is taken for that special id (unless ``split_special_tokens=True`` is given, when it is text here too).

    Args:
        tokenizer: What to export.
        folder: An existing folder.
        context_length: Longest sequence that the model takes, in tokens.
    """
    unk, bos, eos, pad = SPECIAL_PIECES
    backend = _backend(tokenizer)
    write_json(folder / "tokenizer.json", json.loads(backend.to_str()))
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context_length,
        # Without this, calls of the tokenizer also return token_type_ids, which decoders refuse.
        "model_input_names": ["input_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,
        "unk_token": unk,
        "bos_token": bos,
        "eos_token": eos,
        "pad_token": pad,
        "chat_template": CHAT_TEMPLATE,
    }
    write_json(folder / "tokenizer_config.json", config)


def _backend(tokenizer: Tokenizer) -> tokenizers.Tokenizer:
    from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as Backend

    pieces = tokenizer.model.pieces
    names = [_name(piece) for piece in pieces]
    model: models.Model
    if tokenizer.model.algorithm == "unigram":
        scored = [(name, piece.score) for name, piece in zip(names, pieces, strict=True)]
        model = models.Unigram(scored, unk_id=0, byte_fallback=True)
    else:
        ids = {name: i for i, name in enumerate(names)}
        model = models.BPE(ids, _merges(pieces), unk_token=SPECIAL_PIECES[0], fuse_unk=True, byte_fallback=True)
    backend = Backend(model)
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(WORD_PATTERN), behavior="isolated")
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    backend.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in SPECIAL_PIECES])
    return backend


def _name(piece: Piece) -> str:
    return piece.text.replace(SPACE_MARK, " ") if piece.kind == NORMAL else piece.text


def _merges(pieces: list[Piece]) -> list[tuple[str, str]]:
    """The pairs that may be joined, first the one that SentencePiece would join first.

    SentencePiece joins whatever two neighbours form the piece of the highest score, so a piece has as many pairs as
    there are ways to cut it into two pieces.
    """
    scores = {_name(piece): piece.score for piece in pieces if piece.kind == NORMAL}
    merges = []
    for name in sorted(scores, key=lambda name: -scores[name]):
        for cut in range(1, len(name)):
            if name[:cut] in scores and name[cut:] in scores:
                merges.append((name[:cut], name[cut:]))
    return merges
