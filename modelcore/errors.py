"""The exceptions whose message is all that the person at the terminal needs."""

import re

# What may stand between the slashes and the host: a user and a password, which may hold a slash of its own.
_USER = re.compile(r"//(?:[^/\s:]*:\S*|[^/\s]*)@")
# What reads as a host, its port and a path as well.
_UNCLEAR = re.compile(r"//[^/\s:@]*:\d*/\S*@")


class InputError(ValueError):
    """Something given by the user is wrong; the message is one line, and says what and where.

    The command line and the pipeline print the message alone, without a traceback, and exit
    non-zero. A message names the thing, its value, and what would be right.
    """


class TakenError(InputError):
    """Something else stands where something was to be written; trying again does not help, another place does."""


class ConversionError(RuntimeError):
    """A converted model does not compute what its source does; nothing of it was kept."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type's name where it has none; without passwords of addresses."""
    return without_password((str(error).splitlines() or [type(error).__name__])[0])


def without_password(text: str) -> str:
    """``text`` in which no address holds the user's name and password that may stand before its host.

    Where a password cannot be told from a port and a path, as in ``//host:1/a@b``, dots stand for both: ``//…@b``.
    """
    return _USER.sub(lambda found: "//…@" if _UNCLEAR.fullmatch(found[0]) else "//", text)
