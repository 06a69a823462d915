"""Control groups of Linux: real limits of memory and processor for the programs that a test starts."""

import contextlib
import os
import subprocess
import sys
import uuid
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Group:
    """A group that processes can be started in.

    Attributes:
        folders: Its folders: one, or in version 1 of control groups one for each resource. Memory's comes first.
    """

    folders: tuple[Path, ...]

    def start(self, command, **popen):
        """Starts a command as a member of the group from its first instruction on."""
        joining = " && ".join(f'echo $$ > "{folder}/cgroup.procs"' for folder in self.folders)
        return subprocess.Popen(["/bin/sh", "-c", f'{joining} && exec "$@"', "sh", *map(str, command)], **popen)

    def run(self, command):
        """Runs a command with this process's modules to its end, its output captured."""
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        process = self.start(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
        out, err = process.communicate()
        return subprocess.CompletedProcess(command, process.returncode, out, err)

    def held(self):
        """Bytes that its processes hold: their own, and the mapped files' that they were first to read."""
        figures = dict(line.split() for line in (self.folders[0] / "memory.stat").read_text().splitlines())
        names = ("total_rss", "total_mapped_file") if "total_rss" in figures else ("anon", "file_mapped")
        return sum(int(figures[name]) for name in names)

    def killed(self):
        """How many of its processes the system has killed because the limit was reached."""
        name = "memory.oom_control" if (self.folders[0] / "memory.oom_control").exists() else "memory.events"
        return int(dict(line.split() for line in (self.folders[0] / name).read_text().splitlines())["oom_kill"])


@contextlib.contextmanager
def control_group(*, memory, cores=None):
    """A group whose processes may hold ``memory`` bytes together, page cache included, and no swap.

    Args:
        memory: The limit in bytes.
        cores: How many processors' time they get together; None: no limit.

    Yields the :class:`Group`, or skips the test where none can be made.
    """
    version_1 = (ROOT / "memory").is_dir()
    name = f"modelcore-test-{uuid.uuid4().hex}"
    if version_1:
        limits = {"memory/memory.limit_in_bytes": memory, "memory/memory.memsw.limit_in_bytes": memory}
        if cores:
            limits |= {"cpu/cpu.cfs_period_us": 100_000, "cpu/cpu.cfs_quota_us": int(100_000 * cores)}
        files = {ROOT / place / name / file: value for key, value in limits.items() for place, file in [key.split("/")]}
    else:
        files = {ROOT / name / "memory.max": memory, ROOT / name / "memory.swap.max": 0}
        if cores:
            files[ROOT / name / "cpu.max"] = f"{int(100_000 * cores)} 100000"
    folders = tuple(dict.fromkeys(file.parent for file in files))
    try:
        try:
            for folder in folders:
                folder.mkdir()
            for file, value in files.items():
                file.write_text(str(value))
        except OSError as error:
            pytest.skip(f"this machine offers no such limits: {error.filename}: {error.strerror}")
        yield Group(folders)
    finally:
        for folder in folders:
            if folder.exists():
                folder.rmdir()
