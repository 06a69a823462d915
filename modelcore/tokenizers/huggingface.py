"""Export to the files that ``transformers.AutoTokenizer`` loads, with the same ids and the same text.

``tokenizer.json`` is the format of the tokenizers library. For our own SentencePiece models its vocabulary writes a
space as a space and not as SentencePiece's U+2581, so that nothing needs replacing before or after, and U+2581 in a
text stays what it is.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelcore.atomic import write_json
from modelcore.tokenizers.chat import chat_template
from modelcore.tokenizers.sentencepiece_file import CONTROL, NORMAL, SPACE_MARK, UNKNOWN, Piece
from modelcore.tokenizers.sentencepiece_tokenizer import SentencePieceTokenizer
from modelcore.tokenizers.tokenizer import JSON_FILE, ROLES_FILE, Tokenizer
from modelcore.tokenizers.words import WORD_PATTERN

if TYPE_CHECKING:
    import tokenizers


def export_huggingface(tokenizer: Tokenizer, folder: Path, context_length: int) -> None:
    """Writes ``tokenizer.json`` and ``tokenizer_config.json``, chat template included.

    ``AutoTokenizer.from_pretrained(folder)`` then encodes every text to the ids of ``tokenizer.encode``, after the
    beginning's id if ``tokenizer.adds_bos``, with one difference that its users count on: the name of a special token
    in a text, such as ``</s>``, is taken for that special id (unless ``split_special_tokens=True`` is given, when it is
    text here too).

    Args:
        tokenizer: What to export.
        folder: An existing folder.
        context_length: Longest sequence that the model takes, in tokens.
    """
    if isinstance(tokenizer, SentencePieceTokenizer):
        backend = _ours(tokenizer) if tokenizer.is_ours else _sentencepiece(tokenizer)
        write_json(folder / JSON_FILE, json.loads(backend.to_str()))
    else:
        tokenizer.save(folder)  # it has that form already
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context_length,
        # Without this, calls of the tokenizer also return token_type_ids, which decoders refuse.
        "model_input_names": ["input_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,
        **tokenizer.special_tokens(),
        "chat_template": chat_template(adds_bos=tokenizer.adds_bos),
    }
    write_json(folder / ROLES_FILE, config)


def _ours(tokenizer: SentencePieceTokenizer) -> tokenizers.Tokenizer:
    from tokenizers import Regex, decoders, pre_tokenizers

    backend = _model(tokenizer, [_name(piece) for piece in tokenizer.model.pieces])
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(WORD_PATTERN), behavior="isolated")
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return backend


def _sentencepiece(tokenizer: SentencePieceTokenizer) -> tokenizers.Tokenizer:
    """As SentencePiece itself works: spaces become U+2581, and one may come before the text."""
    from tokenizers import decoders, normalizers, processors

    backend = _model(tokenizer, [piece.text for piece in tokenizer.model.pieces])
    steps: list[normalizers.Normalizer] = [normalizers.Replace(" ", SPACE_MARK)]
    parts: list[decoders.Decoder] = [decoders.Replace(SPACE_MARK, " "), decoders.ByteFallback(), decoders.Fuse()]
    if tokenizer.adds_space:
        steps.insert(0, normalizers.Prepend(SPACE_MARK))
        parts.append(decoders.Strip(" ", 1, 0))
    backend.normalizer, backend.decoder = normalizers.Sequence(steps), decoders.Sequence(parts)
    if tokenizer.adds_bos:
        bos = tokenizer.name(tokenizer.bos_id)
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tokenizer.bos_id)]
        )
    return backend


def _model(tokenizer: SentencePieceTokenizer, names: list[str]) -> tokenizers.Tokenizer:
    """The vocabulary under these names, special pieces and user symbols set apart from the text."""
    from tokenizers import AddedToken, models
    from tokenizers import Tokenizer as Backend

    pieces = tokenizer.model.pieces
    model: models.Model
    if tokenizer.model.algorithm == "unigram":
        scored = [(name, piece.score) for name, piece in zip(names, pieces, strict=True)]
        model = models.Unigram(scored, unk_id=tokenizer.unk_id, byte_fallback=True)
    else:
        ids = {name: i for i, name in enumerate(names)}
        scores = {name: piece.score for name, piece in zip(names, pieces, strict=True) if piece.kind == NORMAL}
        unk = None if tokenizer.unk_id is None else names[tokenizer.unk_id]
        model = models.BPE(ids, _merges(scores), unk_token=unk, fuse_unk=True, byte_fallback=True)
    backend = Backend(model)
    special = [piece.text for piece in pieces if piece.kind in (CONTROL, UNKNOWN)]
    backend.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in special])
    backend.add_tokens([AddedToken(symbol, normalized=False) for symbol in tokenizer.user_symbols])
    return backend


def _name(piece: Piece) -> str:
    return piece.text.replace(SPACE_MARK, " ") if piece.kind == NORMAL else piece.text


def _merges(scores: dict[str, float]) -> list[tuple[str, str]]:
    """The pairs that may be joined, first the one that SentencePiece would join first.

    SentencePiece joins whatever two neighbours form the piece of the highest score, so a piece has as many pairs as
    there are ways to cut it into two pieces.
    """
    merges = []
    for name in sorted(scores, key=lambda name: -scores[name]):
        for cut in range(1, len(name)):
            if name[:cut] in scores and name[cut:] in scores:
                merges.append((name[:cut], name[cut:]))
    return merges
