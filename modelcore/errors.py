"""The exceptions whose message is all that the person at the terminal needs."""


class InputError(ValueError):
    """Something given by the user is wrong; the message is one line, and says what and where.

    The command line and the pipeline print the message alone, without a traceback, and exit
    non-zero. A message names the thing, its value, and what would be right.
    """


class ConversionError(RuntimeError):
    """A converted model does not compute what its source does; nothing of it was kept."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type's name where it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0]
