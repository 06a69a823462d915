"""Checks the container images, and writes what is in them: ``python -m components.images.check --help``."""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from components.images import IMAGES, SPARK, Image
from components.images.build import CODE_LABEL, REPOSITORY, code_digest
from components.images.engine import Engine
from components.images.materials import bill_of_materials
from modelcore import __version__
from modelcore.atomic import write_text
from modelcore.errors import InputError

USER = 10001
BILLS = REPOSITORY / "build" / "sbom"
CONTENTS = Path(__file__).parent / "contents.py"
LABELS = ("title", "description", "version", "revision", "source", "licenses")
# A container that may do nothing but compute: every image must work in one.
LOCKED = (
    *("--read-only", "--tmpfs", "/tmp", "--network", "none"),  # noqa: S108
    *("--cap-drop", "ALL", "--security-opt", "no-new-privileges"),
)
_SECRET = re.compile(
    r"(?i)(password|passwd|secret|token|api_?key|access_key(_id)?|credentials?)\w*\s*[=:]\s*\S|://[^/\s:@]+:[^/\s@]+@"
)


def size_mb(about: dict[str, Any], contents: dict[str, Any]) -> float:
    """An image's size in millions of bytes, without wheels that the base image it was built on keeps for pip.

    Args:
        about: What the engine knows of the image.
        contents: What contents.py told inside it.
    """
    return float(about["Size"] - contents["wheels_of_base"]) / 1e6


def faults(image: Image, about: dict[str, Any], history: list[str], contents: dict[str, Any]) -> list[str]:
    """What is wrong with an image, a line each.

    Args:
        image: The image.
        about: What the engine knows of it.
        history: The commands that made its layers.
        contents: What contents.py told inside it.
    """
    config, labels = about["Config"], about["Config"].get("Labels") or {}
    missing = [name for name in LABELS if not labels.get(f"org.opencontainers.image.{name}")]
    told = [f"{name}={value}" for name, value in labels.items()]
    spoken = [line for line in [*history, *(config.get("Env") or []), *told] if _SECRET.search(line)]
    size = size_mb(about, contents)
    found = {
        f"its user is {config.get('User')!r}, not '{USER}:{USER}'": config.get("User") != f"{USER}:{USER}",
        f"it runs as {contents['uid']}:{contents['gid']}": (contents["uid"], contents["gid"]) != (USER, USER),
        "it has no health check": not (about.get("HealthCheck") or config.get("Healthcheck")),
        f"labels are missing: {', '.join(missing)}": bool(missing),
        f"its label says version {labels.get('org.opencontainers.image.version')}, not {__version__}": labels.get(
            "org.opencontainers.image.version"
        )
        != __version__,
        "it was made from other code than this; make images": labels.get(CODE_LABEL, code_digest()) != code_digest(),
        f"it can write to {', '.join(contents['writable'])}": contents["writable"] != ["/tmp"],  # noqa: S108
        "pip is left in it": contents["pip"],
        f"caches are left in it: {', '.join(contents['caches'])}": bool(contents["caches"]),
        f"it holds {', '.join(contents['secrets'])}": bool(contents["secrets"]),
        f"a secret stands in its history, environment or labels, near {spoken[0][:40] if spoken else ''!r}": bool(
            spoken
        ),
        f"it takes {size:.0f} MB, more than {image.budget_mb}": size > image.budget_mb,
    }
    return [fault for fault, holds in found.items() if holds]


def examine(image: Image, engine: Engine, bills: Path = BILLS) -> tuple[float, list[str]]:
    """Looks into an image and writes its bill of materials.

    Args:
        image: The image.
        engine: Whose image it is.
        bills: Folder for the bills.

    Returns:
        Its size in millions of bytes, and what is wrong with it.

    Raises:
        InputError: If there is no such image, or it does not run.
    """
    about = engine.inspect(image.name)
    if about is None:
        raise InputError(f"there is no image {image.name}; build it first: make images")
    history = engine.ask("history", "--no-trunc", "--format", "{{.CreatedBy}}", image.name).splitlines()
    words = ("run", "--rm", "--interactive", *LOCKED, "--entrypoint", "python", image.name, "-I", "-")
    contents = json.loads(engine.ask(*words, text=CONTENTS.read_text(encoding="utf-8")))
    bill = bill_of_materials(image.name, contents["python"], contents["packages"], contents["debian"])
    write_text(bills / f"{image.name.rpartition(':')[0]}.cdx.json", bill)
    return size_mb(about, contents), faults(image, about, history, contents)


def lint(image: Image) -> list[str]:
    """What hadolint says of an image's Dockerfile, a line each."""
    words = [str(Path(sys.executable).with_name("hadolint")), "--no-color", image.dockerfile]
    done = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, check=False)  # noqa: S603
    return (done.stdout + done.stderr).splitlines()


def main(arguments: list[str] | None = None) -> int:
    """Checks the images; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m components.images.check", description="Check the images.")
    parser.add_argument("--engine", default="", help="docker or podman; default: the first of them that answers")
    parser.add_argument("--spark", action="store_true", help="check the image of Spark applications too")
    options = parser.parse_args(arguments)
    found: list[str] = []
    try:
        engine = Engine(options.engine)
        for image in (*IMAGES, SPARK) if options.spark else IMAGES:
            size, wrong = examine(image, engine)
            sys.stdout.write(f"{image.name:<36}{size:7.0f} MB of {image.budget_mb:5} MB\n")
            found += [f"{image.name}: {fault}" for fault in wrong] + lint(image)
    except InputError as error:
        found.append(str(error))
    for fault in found:
        sys.stderr.write(f"error: {fault}\n")
    if not found:
        sys.stdout.write(f"bills of materials in {BILLS.relative_to(REPOSITORY)}/\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
