"""How probable a model finds continuations of contexts, the question behind multiple choice and last words.

A context that several continuations share is read once: its keys and values are copied to a row for each of them. A
sequence longer than the model's context loses its beginning. A continuation that is itself longer is scored in
pieces as lm-eval's rolling log-likelihood does it: each piece but the first sees as much before it as fits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from modelcore.evaluation.next_token import score_next
from modelcore.gptx import GPT, KVCache, evaluating

BATCH_TOKENS = 2048  # of rows times the longest row; their keys and values are held at once

Ids = tuple[int, ...]
Piece = tuple[int, Ids]
"""A continuation's index, and ids of it that are scored together."""


def score_continuations(
    model: GPT, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], *, batch_tokens: int = BATCH_TOKENS
) -> list[tuple[float, bool]]:
    """Scores each continuation after its context.

    Args:
        model: The model; dropout is off meanwhile.
        pairs: Ids of a context, at least one, and of its continuation.
        batch_tokens: Most tokens computed at once. It changes speed and memory, not the result.

    Returns:
        For each pair ln p of the continuation, and whether each of its tokens was the most likely one.

    Raises:
        ValueError: If a context is empty.
    """
    by_context: dict[Ids, list[Piece]] = {}
    for number, (context, continuation) in enumerate(pairs):
        for seen, scored in _pieces(tuple(context), tuple(continuation), model.config.context_length):
            by_context.setdefault(seen, []).append((number, scored))
    totals = torch.zeros(len(pairs), dtype=torch.float64)
    greedy = torch.ones(len(pairs), dtype=torch.bool)
    with evaluating(model):
        for batch in _batches(by_context, model.config.context_length, batch_tokens):
            numbers, losses, hits = _score(model, batch)
            totals.index_add_(0, numbers, -losses.double())
            greedy[numbers[~hits]] = False
    return list(zip(totals.tolist(), greedy.tolist(), strict=True))


def _pieces(context: Ids, continuation: Ids, length: int) -> Iterator[tuple[Ids, Ids]]:
    """What is seen and what is scored after it; of both together, the last token is not read."""
    if not context:
        raise ValueError("a continuation needs a context of at least one token: the end-of-text token starts a text")
    tokens = context + continuation
    if 0 < len(continuation) <= length:
        tokens = tokens[-length - 1 :]
        yield tokens[: len(tokens) - len(continuation)], continuation
        return
    done = 0
    while done < len(continuation):
        scored = continuation[done : done + length]
        end = len(context) + done + len(scored)
        yield tokens[max(0, end - length - 1) : end - len(scored)], scored
        done += len(scored)


def _batches(
    by_context: dict[Ids, list[Piece]], length: int, batch_tokens: int
) -> Iterator[list[tuple[Ids, list[Piece]]]]:
    """Contexts with their pieces, those of similar length together; a context with very many comes several times."""
    batch: list[tuple[Ids, list[Piece]]] = []
    rows = seen = scored = 0
    for context, pieces in sorted(by_context.items(), key=lambda item: (-len(item[0]), item[0])):
        longest = max(len(ids) for _, ids in pieces)
        at_once = max(1, batch_tokens // (len(context) + longest))
        for some in (pieces[first : first + at_once] for first in range(0, len(pieces), at_once)):
            together = max(seen, len(context)) + max(scored, longest)
            # Rows are padded to the longest of both parts, and even the padding must fit the context.
            if batch and (together > length + 1 or (rows + len(some)) * together > batch_tokens):
                yield batch
                batch, rows, seen, scored = [], 0, 0, 0
            batch.append((context, some))
            rows, seen, scored = rows + len(some), max(seen, len(context)), max(scored, longest)
    if batch:
        yield batch


@torch.inference_mode()
def _score(model: GPT, batch: list[tuple[Ids, list[Piece]]]) -> tuple[Tensor, Tensor, Tensor]:
    """Scores the pieces of a batch token by token: the number of its pair, -ln p and whether it was likeliest."""
    contexts = [context for context, _ in batch]
    rows = [row for row, (_, pieces) in enumerate(batch) for _ in pieces]  # the context of each piece
    scored = [torch.tensor(ids) for _, pieces in batch for _, ids in pieces]
    lengths = torch.tensor([len(ids) for ids in scored], device=model.device)
    targets = pad_sequence(scored, batch_first=True).to(model.device)  # (R, T)
    seen = pad_sequence([torch.tensor(context) for context in contexts], batch_first=True).to(model.device)  # (B, S)

    slots = seen.shape[1] + targets.shape[1] - 1
    cache = KVCache(model.config, len(contexts), slots, dtype=model.embedding.weight.dtype, device=model.device)
    hidden = model.hidden(seen, cache)  # (B, S, d_model)
    ends = torch.tensor([len(context) - 1 for context in contexts], device=model.device)
    states = hidden[torch.arange(len(contexts), device=model.device), ends][rows][:, None]  # (R, 1, d_model)
    if targets.shape[1] > 1:
        cache.advance([len(context) for context in contexts])
        cache.keep(rows)
        states = torch.cat([states, model.hidden(targets[:, :-1], cache)], dim=1)  # (R, T, d_model)
    wanted = torch.arange(targets.shape[1], device=model.device) < lengths[:, None]  # (R, T)
    losses, hits, _ = score_next(model, states[wanted], targets[wanted])
    numbers = torch.tensor([number for _, pieces in batch for number, _ in pieces])
    return numbers.repeat_interleave(lengths.cpu()), losses.cpu(), hits.cpu()
