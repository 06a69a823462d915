"""The command line ``modelcore``: one command run, its errors in one line each, and its exit status."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Sequence

from modelcore import logs, threads
from modelcore.commands import build_parser
from modelcore.errors import ConversionError, InputError
from modelcore.interrupts import Interrupts


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status: 0, 1 for an error that was explained, 130 or 143 if interrupted."""
    interrupts = Interrupts(last_words=_say_interrupted)
    try:
        return _run(arguments)
    except KeyboardInterrupt:
        _say_interrupted()
        return interrupts.status


def _say_interrupted() -> None:
    sys.stderr.write("modelcore: interrupted\n")


def _run(arguments: Sequence[str] | None) -> int:
    options = build_parser().parse_args(arguments)
    logs.configure()
    for name, value in threads.SHARED_CORES.items():  # no command has imported torch yet
        os.environ.setdefault(name, value)
    # `modelcore generate … | head` ends quietly, like any filter.
    with contextlib.suppress(AttributeError, ValueError):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        command: Callable[[argparse.Namespace], int] = options.command
        return command(options)
    except (InputError, ConversionError) as error:
        sys.stderr.write(f"modelcore: error: {logs.of_rank()}{error}\n")
        return 1
    except ModuleNotFoundError as error:
        if error.name and error.name.partition(".")[0] == "modelcore":
            raise
        sys.stderr.write(
            f"modelcore: error: this command needs the package {error.name!r}, which is not installed; "
            "`modelcore doctor` tells which extra brings it\n"
        )
        return 1


if __name__ == "__main__":
    sys.exit(main())
