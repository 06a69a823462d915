"""Generation from text to text: a model and its tokenizer, streaming, stop strings."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from modelcore.errors import InputError
from modelcore.gptx import GPT
from modelcore.inference.generate import FinishReason, stream
from modelcore.inference.samplers import SamplingConfig

if TYPE_CHECKING:
    from modelcore.tokenizers import Tokenizer


@dataclass(frozen=True)
class Completion:
    """The text that followed a prompt, without the stop string, and why it ended."""

    text: str
    finish_reason: FinishReason


class TextGenerator:
    """A model with its tokenizer.

    Args:
        model: The model.
        tokenizer: The tokenizer it was trained with.

    Raises:
        InputError: If the two differ in the size of their vocabulary.
    """

    def __init__(self, model: GPT, tokenizer: Tokenizer) -> None:
        if model.config.vocab_size != tokenizer.vocab_size:
            raise InputError(
                f"the tokenizer {tokenizer.model_file} has {tokenizer.vocab_size} tokens, the model "
                f"{model.config.vocab_size}; use the tokenizer that the model was trained with"
            )
        self.model, self.tokenizer = model, tokenizer

    @classmethod
    def load(cls, folder: Path, adapter: Path | None = None) -> TextGenerator:
        """Loads a native or a Hugging Face folder, each with its tokenizer.

        Args:
            folder: The model.
            adapter: A LoRA folder in PEFT's format to merge into it, or None.

        Raises:
            InputError: If either is missing or broken.
        """
        from modelcore.convert import detect_format, read_model
        from modelcore.tokenizers import Tokenizer

        folder = Path(folder)
        model = read_model(folder)
        if adapter is not None:
            from modelcore.adapters import load_adapter, merge

            base = folder if detect_format(folder) == "native" else None
            model = merge(load_adapter(Path(adapter), model, base))
        return cls(model, Tokenizer.load(folder))

    def fits(self, prompt: str) -> bool:
        """Whether the model can read ``prompt`` and has room for a token more."""
        return len(self._encode(prompt)) < self.model.config.context_length

    def complete(
        self, prompt: str, sampling: SamplingConfig | None = None, max_tokens: int = 128, stop: Sequence[str] = ()
    ) -> Completion:
        """The whole continuation of ``prompt``; arguments and errors as in :meth:`stream`."""
        pieces: list[str] = []
        source = self.stream(prompt, sampling, max_tokens, stop)
        while True:
            try:
                pieces.append(next(source))
            except StopIteration as end:
                return Completion("".join(pieces), end.value)

    def stream(
        self, prompt: str, sampling: SamplingConfig | None = None, max_tokens: int = 128, stop: Sequence[str] = ()
    ) -> Generator[str, None, FinishReason]:
        """Yields the continuation of ``prompt`` piece by piece, each as soon as nothing that comes can change it.

        Held back are the bytes of an unfinished character, and text that may be the beginning of a stop string.

        Args:
            prompt: The text to continue; an empty one begins a new text.
            sampling: How tokens are chosen.
            max_tokens: Most tokens to add.
            stop: Strings that end the text where they first appear; they are not part of it.

        Returns:
            The finish reason, as the generator's return value.

        Raises:
            InputError: If the prompt does not fit the model's context, or a stop string is empty.
        """
        if "" in stop:
            raise InputError("a stop string is empty; leave it out, or name the text to stop at")
        from modelcore.tokenizers import StreamDecoder

        ids = self._encode(prompt)
        decoder = StreamDecoder(self.tokenizer, continues=prompt != "")
        scanner = StopScanner(stop)
        tokens = stream(self.model, ids, sampling, max_tokens, self.tokenizer.eos_id)
        while True:
            try:
                text = scanner.add(decoder.feed([next(tokens)]))
            except StopIteration as end:
                if text := scanner.add(decoder.flush()) + scanner.flush():
                    yield text
                return "stop" if scanner.found else end.value
            if text:
                yield text
            if scanner.found:
                tokens.close()
                return "stop"

    def _encode(self, prompt: str) -> list[int]:
        ids = self.tokenizer.encode(prompt, bos=self.tokenizer.adds_bos)
        return ids or [self.tokenizer.eos_id]  # texts stand after each other's end


class StopScanner:
    """Passes text on up to the first stop string, holding back what may become one.

    Attributes:
        found: Whether a stop string was met.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = tuple(stop)
        self._held = ""
        self.found = False

    def add(self, text: str) -> str:
        """The part of what is held and ``text`` that is certainly not of a stop string."""
        if self.found:
            return ""
        held = self._held + text
        places = [place for stop in self._stop if (place := held.find(stop)) >= 0]
        if places:
            self.found, self._held = True, ""
            return held[: min(places)]
        keep = max((_overlap(held, stop) for stop in self._stop), default=0)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep]

    def flush(self) -> str:
        """What is still held back, at the end of the text."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that begins ``stop``."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if stop.startswith(text[-n:])), 0)
