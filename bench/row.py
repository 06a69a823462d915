"""One figure of a benchmark, and the peer's beside it: one JSON line."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelcore.checks import check_choice, is_number
from modelcore.errors import InputError

UNITS = {
    "tok/s": "higher",
    "MB/s": "higher",
    "GB/s": "higher",
    "GFLOP/s": "higher",
    "TFLOP/s": "higher",
    "fraction": "higher",
    "s": "lower",
    "ms": "lower",
    "nats": "lower",
    "MiB": "lower",
    "GiB": "lower",
}
"""The units a row may have, and whether higher or lower is better; MB and GB are powers of ten."""


@dataclass(frozen=True)
class Row:
    """One figure, ours, beside the same of a peer, measured in the same run.

    Attributes:
        name: What was worked on. Its first word is the benchmark's name: ``training llama-nano``.
        metric: What was measured: ``throughput``, ``peak memory``.
        value: Our figure, above 0, kept to six digits; a median where there were several runs.
        unit: One of :data:`UNITS`.
        peer: Whose the other figure is, or empty.
        peer_value: Its figure; None exactly where there is no peer.

    Raises:
        InputError: If a field is none of that.
    """

    name: str
    metric: str
    value: float
    unit: str
    peer: str = ""
    peer_value: float | None = None

    def __post_init__(self) -> None:
        for field in ("name", "metric", "peer"):
            text = getattr(self, field)
            if not isinstance(text, str) or text != " ".join(text.split()) or "|" in text:
                raise InputError(f"{field} is {text!r}; it must be one line of words, without |")
        for field in ("name", "metric"):
            if not getattr(self, field):
                raise InputError(f"{field} is empty; every row tells what was measured")
        check_choice("unit", self.unit, UNITS)
        if bool(self.peer) != (self.peer_value is not None):
            raise InputError(f"peer is {self.peer!r} and peer_value {self.peer_value!r}; give both or none")
        for field in ("value", "peer_value"):
            number = getattr(self, field)
            if field == "peer_value" and number is None:
                continue
            if not is_number(number) or number <= 0:
                raise InputError(f"{field} of {self.name}, {self.metric} is {number!r}; it must be a number above 0")
            object.__setattr__(self, field, float(f"{number:.6g}"))

    @property
    def benchmark(self) -> str:
        """The benchmark that the row is of."""
        return self.name.split()[0]

    @property
    def ratio(self) -> float | None:
        """How many times better ours is: above 1 is in our favour, whichever way the unit counts; None without peer."""
        if self.peer_value is None:
            return None
        better = self.value / self.peer_value if UNITS[self.unit] == "higher" else self.peer_value / self.value
        return round(better, 4)

    def to_json(self) -> str:
        """The row as one line of JSON."""
        return json.dumps(dataclasses.asdict(self) | {"ratio": self.ratio}, ensure_ascii=False)

    @classmethod
    def from_json(cls, line: str) -> Row:
        """The row that :meth:`to_json` wrote.

        Raises:
            InputError: If the line is no row, or its ratio is not that of its values.
        """
        try:
            fields: dict[str, Any] = json.loads(line)
            ratio = fields.pop("ratio")
            row = cls(**fields)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise InputError(f"no row of a benchmark: {line.strip()[:200]!r} ({error})") from None
        if ratio != row.ratio:
            raise InputError(f"the ratio of {row.name}, {row.metric} is {ratio!r}; its values give {row.ratio}")
        return row


def read_rows(path: Path) -> list[Row]:
    """The rows of a file, in order; none if there is no such file.

    Raises:
        InputError: If the file cannot be read, or a line is no row.
    """
    if not path.is_file():
        return []
    try:
        return [Row.from_json(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path} holds no rows: it is no UTF-8 ({error})") from None
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
