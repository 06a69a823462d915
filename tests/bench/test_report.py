"""docs/performance.md says what the committed rows say."""

import json
import re

import pytest

from bench.report import (
    BEGIN,
    END,
    PAGE,
    PICTURES,
    RESULTS,
    markdown_table,
    picture,
    picture_name,
    plain_table,
    updated,
)
from bench.row import Row, read_rows
from modelcore.errors import InputError

ROWS = [
    Row("training llama-nano", "throughput", 46_712.3, "tok/s", "Hugging Face", 35_000.0),
    Row("training llama-nano", "MFU", 0.4123, "fraction"),
    Row("decoding gpt2-small", "first token", 12.345, "ms", "Hugging Face", 6.1725),
]


def test_a_table_has_a_line_a_row_with_figures_of_three_digits():
    assert markdown_table(ROWS).splitlines() == [
        "| what | | ours | peer | its figure | ratio |",
        "|---|---|--:|---|--:|--:|",
        "| training llama-nano | throughput | 46,700 tok/s | Hugging Face | 35,000 tok/s | 1.33 |",
        "| training llama-nano | MFU | 41.2 % |  |  |  |",
        "| decoding gpt2-small | first token | 12.3 ms | Hugging Face | 6.17 ms | 0.50 |",
    ]
    assert plain_table(ROWS).splitlines()[1].split()[-3:] == ["35,000", "tok/s", "1.33"]


def test_a_picture_shows_the_ratios_of_rows_with_a_peer():
    text = picture(ROWS, "x")
    assert _ratios(text) == ["0.50", "1.33"]
    assert "MFU" not in text
    assert "training llama-nano, throughput (Hugging Face)" in text
    assert picture(ROWS, "x") == text


def test_tables_stand_between_the_markers_and_the_rest_of_the_page_stays(tmp_path):
    (tmp_path / "cpu-x.jsonl").write_text("".join(row.to_json() + "\n" for row in ROWS))
    (tmp_path / "cpu-x.json").write_text(json.dumps({"processor": "X", "torch": "2.13.0"}))
    page = updated(f"before\n{BEGIN}\nold\n{END}\nafter\n", tmp_path)
    assert page.startswith(f"before\n{BEGIN}\n\n### cpu-x\n\nprocessor X · torch 2.13.0\n")
    assert page.endswith(f"\n{markdown_table(ROWS)}\n\n{END}\nafter\n")
    assert updated(page, tmp_path) == page


def test_a_page_without_markers_is_refused(tmp_path):
    with pytest.raises(InputError, match="the page has no lines"):
        updated("no place\n", tmp_path)


def test_rows_without_the_machines_facts_beside_them_are_refused(tmp_path):
    (tmp_path / "cpu-x.jsonl").write_text("".join(row.to_json() + "\n" for row in ROWS))
    with pytest.raises(InputError, match=r"cpu-x\.json is missing"):
        updated(f"{BEGIN}\n{END}\n", tmp_path)


def test_the_page_has_the_tables_that_the_committed_rows_give():
    page = PAGE.read_text(encoding="utf-8")
    assert updated(page, RESULTS) == page, "run python -m bench.report"


def test_the_committed_pictures_show_the_committed_rows():
    for path in RESULTS.glob("*.jsonl"):
        shown = _ratios((PICTURES / picture_name(path)).read_text(encoding="utf-8"))
        assert shown == [f"{row.ratio:.2f}" for row in reversed(read_rows(path)) if row.ratio is not None], path


def test_no_picture_is_left_of_rows_that_are_gone():
    drawn = {path.name for path in PICTURES.glob("performance-*.svg")}
    assert drawn == {picture_name(path) for path in RESULTS.glob("*.jsonl")}


def test_every_relative_link_of_the_page_leads_somewhere():
    for target in re.findall(r"\]\((?!http)([^)#]+)", PAGE.read_text(encoding="utf-8")):
        assert (PAGE.parent / target).exists(), target


def _ratios(svg: str) -> list[str]:
    return re.findall(r">([\d.]+) ×<", svg)
