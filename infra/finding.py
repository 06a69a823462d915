"""What one check of the doctor's found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Args:
        status: ``fail`` stands in the way; ``warn`` deserves a thought, or could not be found out.
        check: What was looked at.
        text: What was found and, unless that is well, what to do.
    """

    status: Literal["ok", "warn", "fail"]
    check: str
    text: str

    def __str__(self) -> str:
        return f"{self.status:<6}{self.check:<16}{self.text}"
