"""The command ``modelcore generate``: a prompt from the command line or standard input, and the text as it comes."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Iterator

from modelcore.errors import InputError
from modelcore.inference.generate import FinishReason
from modelcore.inference.samplers import SamplingConfig
from modelcore.inference.text import TextGenerator
from modelcore.tokenizers.chat import format_prompt, reply_text


def run_generate(options: argparse.Namespace) -> int:
    """Writes what follows the prompt to standard output, piece by piece; everything else goes to standard error.

    Args:
        options: The command's options, as :mod:`modelcore.commands` describes them.

    Returns:
        The exit status, 0.

    Raises:
        InputError: If an option is out of range, or the model cannot read the prompt; nothing is written then.
    """
    rules = ("temperature", "top_k", "top_p", "min_p", "typical_p", "seed")
    penalties = ("repetition_penalty", "presence_penalty", "frequency_penalty")
    sampling = SamplingConfig(**{name: getattr(options, name) for name in rules + penalties})
    prompt = _read_standard_input() if options.prompt == "-" else options.prompt
    if options.chat:
        prompt = format_prompt(prompt, options.system)
    elif options.system:
        raise InputError("--system is part of a chat; give --chat too")
    generator = TextGenerator.load(options.model, options.adapter, options.draft, options.quantize)
    ended: list[FinishReason] = []

    def stream() -> Iterator[str]:
        ended.append((yield from generator.stream(prompt, sampling, options.max_tokens, options.stop)))

    pieces = stream()
    first = next(pieces, "")  # what is wrong with the request shows here, before anything is written
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that is no UTF-8 shows what it can
    sys.stdout.write(reply_text(first) if options.chat else prompt + first)
    sys.stdout.flush()
    for piece in pieces:
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")
    if ended == ["length"] and (room := generator.room(prompt)) < options.max_tokens:
        sys.stderr.write(
            f"note: the text ends where the model's context of {generator.model.config.context_length} tokens is full; "
            f"--max-tokens {options.max_tokens} is more than the {room} that can follow the prompt\n"
        )
    if (speculative := generator.speculative) is not None:
        sys.stderr.write(
            f"draft: {speculative.accepted} of {speculative.proposed} proposed tokens accepted "
            f"({speculative.acceptance_rate:.0%})\n"
        )
    return 0


def _read_standard_input() -> str:
    """All of standard input; bytes that are no UTF-8 come as surrogates, as they do from the command line."""
    return io.TextIOWrapper(sys.stdin.buffer, encoding="utf-8", errors="surrogateescape").read()
