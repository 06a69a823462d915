"""Tells what is inside an image, as JSON: run in a container by check.py, with nothing but Python's library.

Its source is given to the container's Python on its standard input.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

# Where programs leave what they fetched, and files that hold what their owner signs in with.
CACHES = ("root/.cache", "tmp/.cache", ".cache", "var/cache/apt/archives/*.deb", "var/lib/apt/lists/*_Packages*")
SECRETS = (".netrc", ".env", "id_rsa", ".aws/credentials", ".docker/config.json", ".pypirc")
TREES = ("root", "home", "opt", "build", "tmp", "srv")


def packages() -> dict[str, list[str]]:
    """Version and licence of each Python package."""
    found = {}
    for package in importlib.metadata.distributions():
        about = package.metadata
        licence = about["License-Expression"] or about["License"] or ""  # None where a package does not tell
        found[str(about["Name"])] = [str(about["Version"]), str(licence)]
    return found


def debian_packages() -> dict[str, str]:
    """Version of each Debian package."""
    words = ["dpkg-query", "--show", "--showformat", "${Package}\t${Version}\n"]
    lines = subprocess.run(words, capture_output=True, text=True, check=False).stdout.splitlines()  # noqa: S603
    return dict(line.split("\t", 1) for line in lines)


def writable(folder: Path) -> bool:
    """Whether a file can be made in a folder."""
    try:
        (folder / ".probe").touch()
    except OSError:
        return False
    (folder / ".probe").unlink()
    return True


def main() -> None:
    """Prints what is inside."""
    root, wheels = Path("/"), Path(os.environ.get("PIP_FIND_LINKS", ""))
    folders = [root, root / "opt", root / "tmp", Path(sys.prefix)]
    contents = {
        "uid": os.getuid(),
        "gid": os.getgid(),
        "python": ".".join(map(str, sys.version_info[:3])),
        "writable": [str(folder) for folder in folders if writable(folder)],
        "pip": importlib.util.find_spec("pip") is not None or any(root.glob("usr/bin/pip*")),
        "caches": [str(path) for pattern in CACHES for path in root.glob(pattern)],
        "secrets": [str(path) for tree in TREES for name in SECRETS for path in (root / tree).rglob(name)],
        "wheels_of_base": sum(path.stat().st_size for path in wheels.glob("*.whl")) if wheels.is_absolute() else 0,
        "packages": packages(),
        "debian": debian_packages(),
    }
    json.dump(contents, sys.stdout)


main()
