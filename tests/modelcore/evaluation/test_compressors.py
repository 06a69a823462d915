"""The compressors' figures are those of the real programs' formats."""

import bz2
import gzip
import lzma

import pytest

from modelcore.errors import InputError
from modelcore.evaluation.compressors import compressed_bits_per_byte

TEXTS = ["It is a truth universally acknowledged, " * 30, "", "that a single man – in possession of £ – " * 20]


def test_the_figures_are_the_sizes_of_the_compressed_files():
    content = "".join(TEXTS).encode()
    assert compressed_bits_per_byte(iter(TEXTS)) == {
        "gzip": 8 * len(gzip.compress(content, 9)) / len(content),
        "bzip2": 8 * len(bz2.compress(content, 9)) / len(content),
        "xz": 8 * len(lzma.compress(content, preset=9 | lzma.PRESET_EXTREME)) / len(content),
    }


@pytest.mark.parametrize("texts", [[], ["", ""]])
def test_an_empty_text_is_an_error(texts):
    with pytest.raises(InputError, match="the held-out text is empty"):
        compressed_bits_per_byte(texts)
