"""Builds the container images: ``python -m components.images.build --help``."""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

import modelcore
from components.images import IMAGES, SPARK, Image
from components.images.engine import Engine
from modelcore import __version__
from modelcore.errors import InputError

REPOSITORY = Path(__file__).parents[2]
CODE_LABEL = "aic-ai-poc-gpt.code"
"""The label that tells of which code an image was made, see :func:`code_digest`."""

# Settings of pip that name where packages come from; the engine takes their values from the environment.
_PIP = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL")


def code_digest() -> str:
    """SHA-256 over modelcore's files, in hexadecimal: what an image and a working copy are compared by."""
    source = Path(modelcore.__file__).parent
    digest = hashlib.sha256()
    for file in sorted(path for path in source.rglob("*") if path.suffix in (".py", ".yaml")):
        digest.update(file.relative_to(source).as_posix().encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()


def build_words(image: Image, engine: Engine, *, base_image: str = "", device: str = "") -> list[str]:
    """The engine's command that builds an image.

    Args:
        image: The image.
        engine: Who builds it.
        base_image: What it stands on; empty: what its Dockerfile says.
        device: cpu or cuda: torch's build; empty: cpu.
    """
    arguments = {"VERSION": __version__, "REVISION": _revision(), "SOURCE": _source()}
    if image.dockerfile.startswith("components/"):
        arguments |= {"CODE": code_digest()}
    if device and "model" in image.name:
        arguments |= {"DEVICE": device}
    if base_image:
        arguments |= {"BASE_IMAGE": base_image}
    if image.built_on:
        arguments |= {"BUILT_ON": image.built_on}
    words = ["build", "--file", image.dockerfile, "--tag", image.name]
    if engine.is_podman:
        words += ["--format", "docker"]
    for name, value in arguments.items():
        words += ["--build-arg", f"{name}={value}"]
    for name in _PIP:
        if os.environ.get(name):
            words += ["--build-arg", name]
    return [*words, "."]


def _revision() -> str:
    revision = _git("rev-parse", "HEAD")
    return f"{revision}-changed" if revision and _git("status", "--porcelain") else revision or "unknown"


def _source() -> str:
    """The repository's address, without what its owner signs in with; ``unknown`` for one on this machine."""
    address = _git("remote", "get-url", "origin")
    found = re.fullmatch(r"(?:(https?|ssh)://)?(?:[^@/]+@)?([\w.-]+\.\w+)([:/].+)", address)
    return f"https://{found[2]}/{found[3][1:].removesuffix('.git')}" if found else "unknown"


def _git(*words: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(REPOSITORY), *words], capture_output=True, text=True, check=False)  # noqa: S603, S607
    except FileNotFoundError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def main(arguments: list[str] | None = None) -> int:
    """Builds the images; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m components.images.build", description="Build the images.")
    parser.add_argument("--engine", default="", help="docker or podman; default: the first of them that answers")
    parser.add_argument("--base-image", default="", help="a Debian or Ubuntu with Python 3.11 or newer and pip")
    parser.add_argument("--device", default="", choices=("", "cpu", "cuda"), help="torch's build; default: cpu")
    parser.add_argument("--spark", action="store_true", help="build the image of Spark applications too")
    options = parser.parse_args(arguments)
    os.chdir(REPOSITORY)
    try:
        engine = Engine(options.engine)
        for image in (*IMAGES, SPARK) if options.spark else IMAGES:
            sys.stderr.write(f"== {image.name} ({engine.program})\n")
            engine.stream(*build_words(image, engine, base_image=options.base_image, device=options.device))
    except InputError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
