"""The one kind of error that is the operator's to mend."""

import re

# What may stand between the slashes and the host: a user and a password, which may hold a slash of its own.
_USER = re.compile(r"//(?:[^/\s:]*:\S*|[^/\s]*)@")
# What reads as a host, its port and a path as well; dots stand for it.
_UNCLEAR = re.compile(r"//[^/\s:@]*:\d*/\S*@")


class OperatorError(Exception):
    """Says in one line what is wrong and what would be right. Never holds a secret."""


def one_line(text: object) -> str:
    """What another program or library says, as one line in which no address holds a user and a password."""
    shown = _USER.sub(lambda found: "//…@" if _UNCLEAR.fullmatch(found[0]) else "//", str(text))
    return " ".join(shown.split())
