"""What a company sets in the enterprise overlay: manifests and pipelines take it from the same file."""

from __future__ import annotations

from pathlib import Path

FILE = Path(__file__).parents[1] / "manifests" / "overlays" / "enterprise" / "values" / "values.env"


def read(file: Path = FILE) -> dict[str, str]:
    """The values of a file of ``NAME=value`` lines and comments; none where there is no such file.

    There is none where the pipelines are installed as a package, without the manifests, and nothing is compiled.
    """
    lines = file.read_text("utf-8").splitlines() if file.is_file() else []
    pairs = (line.partition("=") for line in lines if line and not line.startswith("#"))
    return {name: value for name, _, value in pairs}
