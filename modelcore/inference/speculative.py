"""Speculative decoding: a small draft model proposes tokens, the target reads them all in one pass.

Leviathan et al. 2023, "Fast Inference from Transformers via Speculative Decoding", algorithm 1. With p the target's
distribution and q the draft's, both after the sampling rules, a proposed token x stays with probability
min(1, p(x) / q(x)); the first that does not stay is replaced by a draw from the normalized positive part of p - q, and
where all stay, the target's own next token comes on top. What comes out is distributed as p, whatever the draft is;
a bad draft costs time alone. Greedy decoding is the case of a p and a q that are certain of one token each.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from modelcore.errors import InputError
from modelcore.gptx import GPT, KVCache, evaluating
from modelcore.inference.generate import FinishReason, broken_weights, check_prompts
from modelcore.inference.prefill import read_prompts
from modelcore.inference.samplers import History, SamplingConfig, adjust, bias_vector, draw, greedy


class SpeculativeDecoder:
    """A target model and the draft that runs ahead of it, for one text at a time.

    Args:
        model: The target: the texts are its own.
        draft: A faster model with the same vocabulary. Where the text outgrows its context, the target goes on alone.
        draft_tokens: How many tokens the draft proposes before the target looks.

    Attributes:
        proposed: Tokens that the draft has proposed so far, over all texts.
        accepted: How many of them the target took.

    Raises:
        InputError: If the two differ in their vocabulary, are on different devices, or ``draft_tokens`` is below 1.
    """

    def __init__(self, model: GPT, draft: GPT, draft_tokens: int = 4) -> None:
        ours, theirs = model.config.vocab_size, draft.config.vocab_size
        if ours != theirs:
            raise InputError(
                f"the draft model has {theirs} tokens, the target {ours}; a draft must share the target's tokenizer"
            )
        if model.device != draft.device:
            raise InputError(f"the draft model is on {draft.device}, the target on {model.device}; move one of them")
        if draft_tokens < 1:
            raise InputError(f"draft_tokens is {draft_tokens}; it must be 1 or more")
        self.model, self.draft, self.draft_tokens = model, draft, draft_tokens
        self.proposed = self.accepted = 0

    @property
    def acceptance_rate(self) -> float:
        """The share of proposed tokens that the target took, 0 to 1; 0 before the first."""
        return self.accepted / self.proposed if self.proposed else 0.0

    def stream(
        self,
        prompt: Sequence[int],
        sampling: SamplingConfig | None = None,
        max_tokens: int = 128,
        eos_id: int | None = None,
    ) -> Generator[int, None, FinishReason]:
        """Yields what follows a prompt, like :func:`modelcore.inference.generate.stream` of the target.

        With temperature 0 the tokens are the same (as far as one pass over several tokens rounds like several passes:
        two candidates would have to be some 1e-6 apart for a difference). Sampled tokens have the same distribution,
        but the same seed gives another text than without a draft: the random numbers are used otherwise.

        Returns:
            The finish reason, as the generator's return value.

        Raises:
            InputError: As :func:`modelcore.inference.generate.generate`.
        """
        check_prompts(self.model, [prompt], [max_tokens])
        with evaluating(self.model, self.draft):
            return (yield from self._run(prompt, sampling or SamplingConfig(), max_tokens, eos_id))

    @torch.inference_mode()
    def _run(
        self, prompt: Sequence[int], sampling: SamplingConfig, max_tokens: int, eos_id: int | None
    ) -> Generator[int, None, FinishReason]:
        context, draft_context = self.model.config.context_length, self.draft.config.context_length
        room = min(max_tokens, context + 1 - len(prompt))  # the last token of a text is never fed back
        text = list(prompt)
        cache = self._cache(self.model, len(prompt) + room - 1)
        draft_cache = self._cache(self.draft, min(len(prompt) + room - 1, draft_context))
        # Before each round the target's cache holds the text but for its last token, the draft's at most as much.
        if len(prompt) > 1:
            read_prompts(self.model, [prompt[:-1]], cache)
            if len(prompt) <= draft_context:
                read_prompts(self.draft, [prompt[:-1]], draft_cache)
        sampler = _Sampler(sampling, prompt, self.model.config.vocab_size, self.model.device)
        last = unread = torch.tensor(prompt[-1:], device=self.model.device)  # what target and draft have yet to read
        while True:
            left = len(prompt) + room - len(text)  # a round gives one token more than are proposed
            n = max(0, min(self.draft_tokens, left - 1, draft_context + 1 - len(text)))
            proposal = self._propose(n, unread, draft_cache, sampler)
            new, last = self._verify(last, proposal, cache, sampler)
            taken = len(new) - 1
            self.proposed += n
            self.accepted += taken
            if draft_cache.longest > len(text) + taken:  # the draft forgets what it said and the target did not take
                draft_cache.rewind([len(text) + taken])
            unread = torch.cat((proposal.tokens[-1:], last)) if taken == n else last  # it never read its last token
            for token in new:
                if token == eos_id:
                    return "eos"
                text.append(token)
                yield token
            if len(text) == len(prompt) + room:
                return "length"

    def _cache(self, model: GPT, slots: int) -> KVCache:
        """A cache that up to a whole proposal can be taken back from."""
        dtype, device = model.embedding.weight.dtype, model.device
        return KVCache(model.config, 1, slots, dtype=dtype, device=device, rewind=self.draft_tokens)

    def _propose(self, n: int, unread: Tensor, cache: KVCache, sampler: _Sampler) -> _Proposal:
        """Draws ``n`` tokens from the draft, one after the other, without asking the device for anything.

        Args:
            n: How many.
            unread: The end of the text that ``cache`` does not hold, (tokens,).
            cache: The draft's.
            sampler: The text's.
        """
        device, vocab = self.model.device, self.model.config.vocab_size
        histories = [sampler.history]
        tokens = [torch.empty(0, dtype=torch.long, device=device)]
        distributions = [torch.empty(0, vocab, dtype=torch.float64, device=device)]
        for _ in range(n):
            logits = self.draft.head(self.draft.hidden(unread[None], cache)[:, -1])  # (1, V)
            cache.advance(len(unread))
            distributions.append(sampler.distribution(logits, histories[-1]))
            unread = draw(distributions[-1].log(), sampler.uniform(vocab)[None])  # (1,)
            tokens.append(unread)
            histories.append(histories[-1].extended(unread) if histories[-1] is not None else None)
        return _Proposal(torch.cat(tokens), torch.cat(distributions), _stacked(histories))

    def _verify(self, last: Tensor, proposal: _Proposal, cache: KVCache, sampler: _Sampler) -> tuple[list[int], Tensor]:
        """The tokens that the target takes from the proposal, and one more of its own.

        Args:
            last: The text's last token, which ``cache`` does not hold, (1,).
            proposal: The draft's.
            cache: The target's.
            sampler: The text's; its history is brought up to date.

        Returns:
            The tokens, and the last of them on the device, (1,).
        """
        n, q = len(proposal.tokens), proposal.distributions  # (n, V)
        read = torch.cat((last, proposal.tokens))[None]  # (1, n + 1)
        p = sampler.distribution(self.model.head(self.model.hidden(read, cache)[0]), proposal.history)  # (n + 1, V)
        taken, own = verify(p, q, proposal.tokens, sampler.uniform(n), sampler.uniform(p.shape[-1]))
        broken = torch.stack((~p.sum().isfinite(), ~q.sum().isfinite())).long()
        # One look at the device a round.
        found = torch.cat((torch.stack((taken, own)), broken, proposal.tokens)).tolist()
        count, token, p_is_broken, q_is_broken, *proposed = found
        if p_is_broken or q_is_broken:
            raise broken_weights("the model" if p_is_broken else "the draft model")
        cache.advance(count + 1)
        if (known := proposal.history) is not None:  # row i: after i proposed tokens
            taken_in = History(known.prompt[count : count + 1], known.counts[count : count + 1])
            sampler.history = taken_in.extended(own[None])
        return [*proposed[:count], token], own[None]


def verify(p: Tensor, q: Tensor, tokens: Tensor, uniform: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Which proposed tokens stay, and what follows them, so that the tokens are distributed as ``p``.

    Args:
        p: The target's distribution at each proposed token and after the last, (n + 1, vocab) float64.
        q: What the proposed tokens were drawn from, (n, vocab) float64.
        tokens: The proposed tokens, (n,) int64.
        uniform: (n,) float64 in [0, 1).
        noise: (vocab,) float64 in [0, 1).

    Returns:
        How many of ``tokens`` stay, and the token after them, both int64 scalars.
    """
    place = torch.arange(len(tokens), device=p.device)
    stays = uniform * q[place, tokens] < p[place, tokens]  # (n,): with probability min(1, p / q)
    taken = stays.long().cumprod(dim=0).sum()  # a token stays only where all before it do
    # After the last proposed token q is nothing, so that p remains of p - q.
    p, q = (each.index_select(0, taken[None]) for each in (p, F.pad(q, (0, 0, 0, 1))))  # (1, V)
    rest = (p - q).clamp(min=0)
    rest = torch.where(rest.sum() > 0, rest, p)  # p and q that differ by rounding alone
    return taken, draw(rest.log(), noise[None])[0]


@dataclass(frozen=True)
class _Proposal:
    """What the draft proposes.

    Attributes:
        tokens: (n,) int64.
        distributions: What each was drawn from, (n, vocab) float64.
        history: The text's history before each of them and after the last, n + 1 rows; None where no rule reads it.
    """

    tokens: Tensor
    distributions: Tensor
    history: History | None


class _Sampler:
    """What both models' draws for a text have in common: rules, random numbers, and the history of the text."""

    def __init__(self, sampling: SamplingConfig, prompt: Sequence[int], vocab_size: int, device: torch.device) -> None:
        self._sampling = sampling
        self._bias = bias_vector(sampling.logit_bias, vocab_size, device)
        self._generator = torch.Generator(device).manual_seed(sampling.seed)
        self._device = device
        self.history = History.of([prompt], vocab_size, device) if sampling.reads_history else None

    def distribution(self, logits: Tensor, history: History | None) -> Tensor:
        """The probabilities that the rules make of (rows, vocab) logits, in float64; NaN where there are none."""
        scores = adjust(logits.float(), self._sampling, history, self._bias)
        if self._sampling.temperature > 0.0:
            return scores.double().softmax(dim=-1)
        certain = F.one_hot(greedy(scores), scores.shape[-1]).double()
        return certain.masked_fill(~scores.amax(dim=-1, keepdim=True).isfinite(), float("nan"))

    def uniform(self, count: int) -> Tensor:
        """The next random numbers, (count,) float64 in [0, 1)."""
        return torch.rand(count, generator=self._generator, dtype=torch.float64, device=self._device)


def _stacked(histories: Sequence[History | None]) -> History | None:
    """One row a history."""
    known = [history for history in histories if history is not None]
    if not known:
        return None
    return History(torch.cat([each.prompt for each in known]), torch.cat([each.counts for each in known]))
