"""What general compressors make of a text: the yardstick for a model's bits per byte."""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Iterable
from typing import Protocol

from modelcore.errors import InputError

OPTIONS = {"gzip": "-9", "bzip2": "-9", "xz": "-9e"}
"""The compressors, and how their programs are told what is done here."""


class _Compressor(Protocol):
    def compress(self, data: bytes, /) -> bytes: ...

    def flush(self) -> bytes: ...


def compressed_bits_per_byte(texts: Iterable[str]) -> dict[str, float]:
    """Bits a byte of UTF-8 that ``gzip -9``, ``bzip2 -9`` and ``xz -9e`` need for the texts, one after the other.

    The size is that of the whole compressed file, headers and checksums included (gzip: without a file name).

    Returns:
        Bits per byte by the names in OPTIONS.

    Raises:
        InputError: If the texts are all empty.
    """
    compressors: dict[str, _Compressor] = {
        "gzip": zlib.compressobj(9, zlib.DEFLATED, zlib.MAX_WBITS | 16),  # 16: with gzip's header
        "bzip2": bz2.BZ2Compressor(9),
        "xz": lzma.LZMACompressor(preset=9 | lzma.PRESET_EXTREME),
    }
    sizes = dict.fromkeys(compressors, 0)
    n_bytes = 0
    for text in texts:
        content = text.encode()
        n_bytes += len(content)
        for name, compressor in compressors.items():
            sizes[name] += len(compressor.compress(content))
    if not n_bytes:
        raise InputError("the held-out text is empty; there is nothing to compare with")
    for name, compressor in compressors.items():
        sizes[name] += len(compressor.flush())
    return {name: 8 * size / n_bytes for name, size in sizes.items()}
