"""Compares llama.cpp with modelcore on one model: token ids of a text, logits, and greedy continuations.

By hand, not in CI: building llama.cpp takes some ten minutes of two cores.

    pip install llama-cpp-python      # into the environment that modelcore is in
    python scripts/compare-llama-cpp.py runs/latest/export model.gguf examples/austen/heldout/sense_and_sensibility.txt
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import numpy as np
import torch
from llama_cpp import GGML_TYPE_F32, Llama

from modelcore.convert import read_model
from modelcore.tokenizers import Tokenizer

# What tokenizers disagree on: kinds of space, contractions, marks, names of special and of byte tokens.
HARD = [
    *" \n\t\x1c\x85\xa0\u2028\u3000\u200béΩﬀ",
    *("a", "the", "THE", "'s", "'ll", "don't", "12", "1234", "!!", "<", "<s>", "</s>", "<unk>", "<0x0A>"),
    "  ",
]
HARD += ["\n\n", "\r\n", "e\u0301", "😀", "東京", "Ġ", "<|endoftext|>", " x", "{}"]


def main() -> None:
    """Prints one line a comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="the folder that the GGUF file was made from")
    parser.add_argument("gguf", type=Path)
    parser.add_argument("text", type=Path, help="any text, in paragraphs")
    parser.add_argument("--prompts", type=int, default=24, help="number of greedy continuations")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model, tokenizer = read_model(options.source).float(), Tokenizer.load(options.source)
    theirs = Llama(
        str(options.gguf), n_ctx=0, n_threads=1, logits_all=True, type_k=GGML_TYPE_F32, type_v=GGML_TYPE_F32,
        flash_attn=False, verbose=False,
    )  # fmt: skip

    def our_ids(text: str) -> list[int]:
        return tokenizer.encode(text, bos=tokenizer.adds_bos)

    rng = random.Random(0)
    paragraphs = [part for part in options.text.read_text(encoding="utf-8").split("\n\n") if part.strip()]
    hard = ["".join(rng.choices(HARD, k=rng.randint(1, 30))) for _ in range(1500)]
    any_characters = ["".join(map(chr, rng.choices(range(1, 0xD800), k=rng.randint(1, 25)))) for _ in range(1500)]
    for name, texts in (("paragraphs", paragraphs), ("hard texts", hard), ("any characters", any_characters)):
        other = [text for text in texts if theirs.tokenize(text.encode(), add_bos=True, special=False) != our_ids(text)]
        print(f"{name}: {len(other)} of {len(texts)} have other ids", *map(ascii, other[:3]), sep="\n    ")

    context = model.config.context_length
    length = min(64, context - context // 3 - 2)
    prompts = [our_ids(text)[: context // 3] for text in rng.sample(paragraphs, options.prompts)]
    equal, tokens_before, largest, gaps = 0, 0, 0.0, []
    for prompt in prompts:
        theirs.reset()
        theirs.eval(prompt)
        ids, same = list(prompt), True
        for _ in range(length):
            with torch.inference_mode():
                ours = model(torch.tensor([ids]))[0, -1].numpy()
            logits = np.array(theirs.scores[theirs.n_tokens - 1])
            largest = max(largest, float(np.abs(ours - logits).max()))
            if ours.argmax() != logits.argmax():
                best, second = np.sort(ours)[:-3:-1]
                gaps.append(float(best - second))
                same = False
                break
            ids.append(int(ours.argmax()))
            theirs.eval(ids[-1:])
            tokens_before += 1
        equal += same
    print(f"greedy: {equal} of {len(prompts)} continuations of {length} tokens are equal")
    print(f"    {tokens_before} tokens compared; largest difference of a logit {largest:.2g}")
    print(*(f"    first difference where our two likeliest tokens are {gap:.2g} apart" for gap in gaps), sep="\n")


if __name__ == "__main__":
    main()
