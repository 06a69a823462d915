"""Bad documents set aside: one JSON line each, with where it came from and why."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from modelcore.data.sources import PREVIEW_CHARACTERS, Record
from modelcore.data.validation import Fault

FILE = "quarantine.jsonl"


class Quarantine:
    """Writes ``quarantine.jsonl``; used as a context manager.

    A line has the fields ``part`` (train or heldout), ``source``, ``row``, ``reasons``, ``details`` (one a reason) and
    ``preview``.

    Args:
        folder: An existing folder.

    Attributes:
        rows: Documents written so far.
        reasons: How often each reason was given.
    """

    _NAMED = 5

    def __init__(self, folder: Path) -> None:
        self._file = open(folder / FILE, "w", encoding="utf-8")  # noqa: SIM115  closed by __exit__
        self.rows = 0
        self.reasons: Counter[str] = Counter()
        self._named: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def write(self, part: str, record: Record, faults: list[Fault]) -> None:
        """Adds one document of ``part`` with its faults."""
        line = {
            "part": part,
            "source": record.source,
            "row": record.row,
            "reasons": [fault.reason for fault in faults],
            "details": [fault.detail or record.detail for fault in faults],
            "preview": record.preview if record.text is None else record.text[:PREVIEW_CHARACTERS],
        }
        self._add(line)

    def take(self, folder: Path) -> None:
        """Adds the documents of another quarantine, whose folder is given."""
        with open(folder / FILE, encoding="utf-8") as lines:
            for line in lines:
                self._add(json.loads(line))

    def _add(self, line: dict[str, Any]) -> None:
        if self.rows < self._NAMED:
            why = ", ".join(detail or reason for detail, reason in zip(line["details"], line["reasons"], strict=True))
            self._named.append(f"{line['source']}:{line['row']} ({why})")
        self._file.write(json.dumps(line, ensure_ascii=False) + "\n")
        self.rows += 1
        self.reasons.update(line["reasons"])

    def summary(self) -> str:
        """The first few documents, each with what is wrong with it, and how many more there are; in one line."""
        more = f" and {self.rows - self._NAMED:,} more" if self.rows > self._NAMED else ""
        return " ".join(f"{'; '.join(self._named)}{more}".split())
