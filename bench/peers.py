"""The peers that are no packages of this project's environment: found where the user says they are."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from modelcore.errors import InputError

PEERS = {
    "nanogpt": ("model.py",),
    "litgpt": ("litgpt/config.py", "litgpt/model.py"),
    "gptfast": ("model.py", "generate.py", "quantize.py", "tokenizer.py", "tp.py"),
    "llamacpp": ("llama_cpp/__init__.py",),
}
"""By peer, the files that its folder must hold: a checkout; for llama.cpp where llama-cpp-python is installed."""


def find_peers(given: Iterable[str]) -> dict[str, Path]:
    """The folders that ``name=path`` texts name.

    Raises:
        InputError: If a text is not of that form, a peer is unknown, or its folder does not hold what is needed.
    """
    found: dict[str, Path] = {}
    for text in given:
        name, equals, path = text.partition("=")
        if not equals or name not in PEERS:
            raise InputError(f"peer {text!r} is not known; give NAME=FOLDER, NAME one of: {', '.join(PEERS)}")
        folder = Path(path).expanduser().absolute()
        for file in PEERS[name]:
            if not path or not (folder / file).is_file():
                raise InputError(f"{name} is not in {path!r}: there is no {file}; it needs {', '.join(PEERS[name])}")
        found[name] = folder
    return found
