"""The tables and pictures of docs/performance.md, made from the rows: ``python -m bench.report``."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.row import Row, read_rows
from modelcore.atomic import write_text
from modelcore.errors import InputError
from modelcore.files import read_json

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
PICTURES = PAGE.parent / "images"
BEGIN, END = "<!-- begin: made by python -m bench.report -->", "<!-- end: made by python -m bench.report -->"


def main() -> int:
    """Puts what the committed rows give into the page, and draws the pictures."""
    try:
        text = updated(PAGE.read_text(encoding="utf-8"), RESULTS)
    except InputError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    write_text(PAGE, text)
    for path in _files(RESULTS):
        write_text(PICTURES / picture_name(path), picture(read_rows(path), f"bench-{path.stem}"))
    return 0


def updated(page: str, results: Path) -> str:
    """The page with the tables of all files in ``results`` between its two markers.

    Raises:
        InputError: If the page has no markers, a file's line is no row, or the machine's facts are missing beside it.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise InputError(f"the page has no lines {BEGIN!r} and {END!r} to put the tables between")
    sections = "\n\n".join(_section(path) for path in _files(results))
    return f"{before}{begin}\n\n{sections}\n\n{end}{after}"


def markdown_table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table."""
    lines = ["| what | | ours | peer | its figure | ratio |", "|---|---|--:|---|--:|--:|"]
    lines += [f"| {' | '.join(cells)} |" for cells in map(_cells, rows)]
    return "\n".join(lines)


def plain_table(rows: Sequence[Row]) -> str:
    """The rows as a table for a terminal."""
    table = [("what", "", "ours", "peer", "its figure", "ratio"), *map(_cells, rows)]
    widths = [max(len(cells[column]) for cells in table) for column in range(6)]
    numbers = {2, 4, 5}
    lines = [
        "  ".join(
            cell.rjust(width) if column in numbers else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ).rstrip()
        for cells in table
    ]
    return "\n".join(lines)


def picture(rows: Sequence[Row], name: str) -> str:
    """The ratios as bars from 1, on a logarithmic scale: an SVG file's text.

    Args:
        rows: Those without a peer are left out.
        name: Different for each picture of a page.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    from modelcore import charts

    shown = [(row, row.ratio) for row in rows if row.ratio is not None]
    with rc_context(charts.STYLE | {"svg.fonttype": "none", "svg.hashsalt": name, "figure.facecolor": "white"}):
        figure = Figure(figsize=(10, 0.32 * len(shown) + 0.9))
        axes = figure.subplots()
        for place, (_, ratio) in enumerate(reversed(shown)):
            axes.barh(place, ratio - 1, left=1, height=0.65, color=charts.BLUE if ratio >= 1 else charts.ORANGE)
            axes.annotate(
                f"{ratio:.2f} ×",
                (ratio, place),
                xytext=(4 if ratio >= 1 else -4, 0),
                textcoords="offset points",
                ha="left" if ratio >= 1 else "right",
                va="center",
            )
        labels = [f"{row.name}, {row.metric} ({row.peer})" for row, _ in reversed(shown)]
        axes.set_yticks(range(len(shown)), labels)
        axes.set_xscale("log", base=2)
        ratios = [ratio for _, ratio in shown]
        axes.set_xlim(min([0.8, *ratios]) / 2, max([1.2, *ratios]) * 1.7)  # room for the figures
        axes.set_ylim(-0.7, len(shown) - 0.3)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.axvline(1, color=charts.INK, linewidth=1)
        axes.set_xlabel("times better than the peer (logarithmic scale)")
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def picture_name(rows: Path) -> str:
    """The file name of the picture of a file of rows."""
    return f"performance-{rows.stem}.svg"


def figure_text(value: float | None, unit: str) -> str:
    """A figure with three digits and its unit: ``46,700 tok/s``, ``0.342``."""
    if value is None:
        return ""
    rounded = float(f"{value:.3g}")
    number = f"{rounded:,.0f}" if rounded >= 100 else f"{rounded:.3g}"
    return f"{100 * value:.3g} %" if unit == "fraction" else f"{number} {unit}"


def _cells(row: Row) -> tuple[str, ...]:
    ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
    figures = figure_text(row.value, row.unit), figure_text(row.peer_value, row.unit)
    return row.name, row.metric, figures[0], row.peer, figures[1], ratio


def _section(path: Path) -> str:
    facts = read_json(path.with_suffix(".json"))
    described = " · ".join(f"{what} {value}" for what, value in facts.items())
    rows = read_rows(path)
    alt = f"Ratios of the table below as bars, {path.stem}"
    return f"### {path.stem}\n\n{described}\n\n![{alt}](images/{picture_name(path)})\n\n{markdown_table(rows)}"


def _files(results: Path) -> list[Path]:
    return sorted(results.glob("*.jsonl"))


if __name__ == "__main__":
    sys.exit(main())
