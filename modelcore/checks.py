"""Checks of single settings, so that what is wrong with one is said in the same words wherever it is given."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

from modelcore.errors import InputError


def is_whole(value: object, least: int) -> bool:
    """Whether a value is a whole number of ``least`` or more; True and False are none."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def is_number(value: object) -> bool:
    """Whether a value is a finite number; True and False are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -math.inf < value < math.inf


def check_whole(name: str, value: object, least: int = 1) -> None:
    """Refuses anything but a whole number of ``least`` or more.

    Raises:
        InputError: Naming the setting, its value, and what would be right; so do the checks below.
    """
    if not is_whole(value, least):
        raise InputError(f"{name} is {value!r}; it must be a whole number of {least} or more")


def check_number(name: str, value: object) -> None:
    """Refuses anything but a finite number, of which the caller then checks the range."""
    if not is_number(value):
        written_as_text = isinstance(value, str) and re.fullmatch(r"[-+]?\d+[eE][-+]?\d+", value)
        hint = " (YAML takes 6e-4 for a text; write 6.0e-4)" if written_as_text else ""
        raise InputError(f"{name} is {value!r}; it must be a number{hint}")


def check_flag(name: str, value: object) -> None:
    """Refuses anything but True and False."""
    if not isinstance(value, bool):
        raise InputError(f"{name} is {value!r}; it must be true or false")


def check_choice(name: str, value: object, choices: Iterable[str]) -> None:
    """Refuses anything but one of ``choices``."""
    choices = tuple(choices)
    if value not in choices:
        raise InputError(f"{name} is {value!r}; it must be one of: {', '.join(choices)}")
