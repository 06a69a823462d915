"""Generation from text to text: a model and its tokenizer, streaming, stop strings."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from modelcore.errors import InputError
from modelcore.gptx import GPT
from modelcore.inference.generate import FinishReason, generate, stream
from modelcore.inference.samplers import SamplingConfig
from modelcore.inference.speculative import SpeculativeDecoder

if TYPE_CHECKING:
    from modelcore.quantization import Quantization
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
        draft: A faster model with the same tokenizer for speculative decoding, or None.

    Attributes:
        speculative: The decoder with the draft, which counts the tokens taken from it; None without one.

    Raises:
        InputError: If they differ in the size of their vocabulary.
    """

    def __init__(self, model: GPT, tokenizer: Tokenizer, draft: GPT | None = None) -> None:
        tokenizer.check_model(model.config.vocab_size)
        self.model, self.tokenizer = model, tokenizer
        self.speculative = SpeculativeDecoder(model, draft) if draft is not None else None

    @classmethod
    def load(
        cls,
        folder: Path,
        adapter: Path | None = None,
        draft: Path | None = None,
        quantize: Quantization = "none",
    ) -> TextGenerator:
        """Loads a native or a Hugging Face folder, each with its tokenizer.

        Args:
            folder: The model.
            adapter: A LoRA folder in PEFT's format to merge into it, or None.
            draft: The folder of a faster model with the same tokenizer for speculative decoding, or None.
            quantize: What the linear layers, the head's too, are held in while text is generated: ``none`` (as
                stored), ``int8``, which is faster where reading the weights takes the time, or ``nf4``. The adapter is
                merged in before.

        Raises:
            InputError: If one is missing or broken, the draft has another tokenizer, or ``quantize`` is none of these.
        """
        from modelcore.convert.formats import detect_format, read_model
        from modelcore.quantization import quantize_model
        from modelcore.tokenizers import Tokenizer

        folder = Path(folder)
        apart = quantize != "none"  # the full weights are let go one by one
        model = read_model(folder, apart=apart)
        if adapter is not None:
            from modelcore.adapters import load_adapter, merge

            base = folder if detect_format(folder) == "native" else None
            model = merge(load_adapter(Path(adapter), model, base))
        quantize_model(model, quantize, head=True)
        tokenizer = Tokenizer.load(folder)
        if draft is None:
            return cls(model, tokenizer)
        if Tokenizer.load(draft).digest != tokenizer.digest:
            raise InputError(f"the draft {draft} has another tokenizer than {folder}; a draft must share the target's")
        small = quantize_model(read_model(Path(draft), apart=apart), quantize, head=True)
        return cls(model, tokenizer, small)

    def fits(self, prompt: str) -> bool:
        """Whether the model can read ``prompt`` and more than one token after it."""
        return self.room(prompt) > 1

    def room(self, prompt: str) -> int:
        """Tokens that can follow ``prompt``: its last position in the context predicts one more. Below 1: too long."""
        return self.model.config.context_length - len(self._encode(prompt)) + 1

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

    def complete_all(
        self,
        prompts: Sequence[str],
        sampling: SamplingConfig | Sequence[SamplingConfig] | None = None,
        max_tokens: int | Sequence[int] = 128,
        stop: Sequence[str] = (),
    ) -> list[Completion]:
        """The continuations of several prompts, each what :meth:`complete` gives it, read and continued together.

        A draft is left out: speculative decoding is for one text at a time.

        Args:
            prompts: The texts to continue.
            sampling: How tokens are chosen: for all prompts, or one a prompt.
            max_tokens: Most tokens to add: to each prompt, or one number a prompt.
            stop: As in :meth:`stream`, for all prompts. A text that meets one leaves the batch.

        Raises:
            InputError: As :meth:`stream`, or if the numbers of prompts and settings differ.
        """
        readers = [_Reader(self.tokenizer, prompt, stop) for prompt in prompts]
        ids = [self._encode(prompt) for prompt in prompts]
        texts = [""] * len(prompts)

        def stopped(row: int, token: int) -> bool:
            texts[row] += readers[row].feed(token)
            return readers[row].found

        generations = generate(self.model, ids, sampling, max_tokens, self.tokenizer.eos_id, stopped)
        completions = []
        for text, reader, generation in zip(texts, readers, generations, strict=True):
            rest = reader.flush()
            completions.append(Completion(text + rest, "stop" if reader.found else generation.finish_reason))
        return completions

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
            InputError: If the prompt is no valid Unicode, or does not fit the model's context, or a stop string is
                empty.
        """
        reader = _Reader(self.tokenizer, prompt, stop)
        ids, eos_id = self._encode(prompt), self.tokenizer.eos_id
        if self.speculative is None:
            tokens = stream(self.model, ids, sampling, max_tokens, eos_id)
        else:
            tokens = self.speculative.stream(ids, sampling, max_tokens, eos_id)
        while True:
            try:
                text = reader.feed(next(tokens))
            except StopIteration as end:
                if text := reader.flush():
                    yield text
                return "stop" if reader.found else end.value
            if text:
                yield text
            if reader.found:
                tokens.close()
                return "stop"

    def _encode(self, prompt: str) -> list[int]:
        """The ids of a prompt; of an empty one the end-of-text token, for texts stand after each other's end."""
        try:
            prompt.encode()
        except UnicodeEncodeError as error:
            code = ord(prompt[error.start])
            # Python hands on a byte of a command line or file that is no UTF-8 as a surrogate (PEP 383).
            what = f"byte 0x{code - 0xDC00:02X}" if 0xDC80 <= code <= 0xDCFF else f"the surrogate U+{code:04X}"
            raise InputError(f"the prompt is no valid UTF-8: {what} stands at character {error.start + 1}") from None
        return self.tokenizer.encode(prompt, bos=self.tokenizer.adds_bos) or [self.tokenizer.eos_id]


class _Reader:
    """Turns one text's tokens into text up to the first stop string."""

    def __init__(self, tokenizer: Tokenizer, prompt: str, stop: Sequence[str]) -> None:
        if "" in stop:
            raise InputError("a stop string is empty; leave it out, or name the text to stop at")
        from modelcore.tokenizers import StreamDecoder

        self._decoder, self._scanner = StreamDecoder(tokenizer, continues=prompt != ""), StopScanner(stop)

    @property
    def found(self) -> bool:
        """Whether a stop string was met."""
        return self._scanner.found

    def feed(self, token: int) -> str:
        """The text that a further token makes certain."""
        return self._scanner.add(self._decoder.feed([token]))

    def flush(self) -> str:
        """The rest, when no more tokens come."""
        return self._scanner.add(self._decoder.flush()) + self._scanner.flush()


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
