"""A model of ours as lm-eval, EleutherAI's evaluation harness, asks for one."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs

from modelcore.errors import InputError
from modelcore.evaluation.continuations import score_continuations
from modelcore.inference import SamplingConfig, TextGenerator, generate

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

BATCH_PROMPTS = 16
MAX_NEW_TOKENS = 256


class HarnessModel(TemplateLM):
    """A model as lm-eval asks for it; ``lm_eval.simple_evaluate(model=HarnessModel(generator), tasks=[...])``.

    It gives what lm-eval's own model for transformers gives with the exported folder, if that is told the prefix that
    our models know, the end-of-text token: ``prefix_token_id=tokenizer.eos_token_id``. What does not fit the model's
    context loses its beginning.

    Args:
        generator: The model with its tokenizer.
        seed: Of the random numbers, for tasks that sample.
    """

    def __init__(self, generator: TextGenerator, *, seed: int = 0) -> None:
        super().__init__()
        self._generator, self._seed = generator, seed
        self._device = generator.model.device

    @property
    def eot_token_id(self) -> int:
        """The end-of-text token; a text begins after it, too."""
        return self._generator.tokenizer.eos_id

    @property
    def max_length(self) -> int:
        """Longest sequence that the model reads, in tokens."""
        return self._generator.model.config.context_length

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """The ids of a text; there are no special ones to add."""
        return self._generator.tokenizer.encode(string)

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """Log-likelihood of each request's continuation after its context, and whether greedy decoding gives it."""
        scores: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=disable_tqdm)
        return scores

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[tuple[str, str], list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        scores = score_continuations(self._generator.model, [(seen, scored) for _, seen, scored in requests])
        for (texts, _, _), score in zip(requests, scores, strict=True):
            self.cache_hook.add_partial("loglikelihood", texts, score)
        return scores

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:
        """The log-likelihood of each request's text, from its first token on."""
        texts = [request.args[0] for request in requests]
        pairs = [([self.prefix_token_id], self.tok_encode(text)) for text in texts]
        scores = [nats for nats, _ in score_continuations(self._generator.model, pairs)]
        for text, score in zip(texts, scores, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), score)
        return scores

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """The text that follows each request's context, up to where its options say.

        Raises:
            InputError: If an option is none that is known here, or leaves no room for the context.
        """
        alike: dict[str, list[int]] = defaultdict(list)
        for number, request in enumerate(requests):
            alike[json.dumps(request.args[1], sort_keys=True)].append(number)
        texts = [""] * len(requests)
        for numbers in alike.values():
            options = requests[numbers[0]].args[1]
            for first in range(0, len(numbers), BATCH_PROMPTS):
                some = numbers[first : first + BATCH_PROMPTS]
                contexts = [requests[number].args[0] for number in some]
                for number, text in zip(some, self._generate(contexts, options), strict=True):
                    texts[number] = text
                    self.cache_hook.add_partial("generate_until", requests[number].args, text)
        return texts

    def _generate(self, contexts: list[str], options: dict[str, Any]) -> list[str]:
        options = dict(normalize_gen_kwargs(options, min(MAX_NEW_TOKENS, self.max_length // 2)))
        stops, max_tokens, sampled = (options.pop(key) for key in ("until", "max_gen_toks", "do_sample"))
        if not sampled:
            options["temperature"] = 0.0
        try:
            sampling = SamplingConfig(**options, seed=self._seed)
        except TypeError as error:
            raise InputError(f"a task's generation_kwargs hold an option that is not known: {error}") from None
        if (room := self.max_length - max_tokens) < 1:
            raise InputError(
                f"a task asks for {max_tokens} new tokens, the model's context is {self.max_length}; ask for fewer"
            )
        prompts = [self.tok_encode(context)[-room:] or [self.prefix_token_id] for context in contexts]
        continuations = generate(self._generator.model, prompts, sampling, max_tokens, self.eot_token_id)
        texts = [self._generator.tokenizer.decode(continuation.tokens) for continuation in continuations]
        return [min((text.split(stop)[0] for stop in stops if stop), key=len, default=text) for text in texts]
