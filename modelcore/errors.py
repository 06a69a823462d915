"""The one exception for problems that the person at the terminal can mend."""


class InputError(ValueError):
    """Something given by the user is wrong; the message is one line, and says what and where.

    The command line and the pipeline print the message alone, without a traceback, and exit
    non-zero. A message names the thing, its value, and what would be right.
    """


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type's name where it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0]
