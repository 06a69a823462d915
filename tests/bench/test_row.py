"""A row of a benchmark: one JSON line that is checked when written and when read."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.row import UNITS, Row, read_rows
from modelcore.errors import InputError

positive = st.floats(min_value=1e-12, max_value=1e15)


def test_a_row_is_one_json_line_with_these_fields():
    row = Row("training llama-nano", "throughput", 1300.0, "tok/s", "Hugging Face", 1000.0)
    assert json.loads(row.to_json()) == {
        "name": "training llama-nano",
        "metric": "throughput",
        "value": 1300.0,
        "unit": "tok/s",
        "peer": "Hugging Face",
        "peer_value": 1000.0,
        "ratio": 1.3,
    }
    assert "\n" not in row.to_json()


@pytest.mark.parametrize(("unit", "ratio"), [("tok/s", 2.0), ("fraction", 2.0), ("s", 0.5), ("MiB", 0.5)])
def test_a_ratio_above_1_is_in_our_favour_whichever_way_the_unit_counts(unit, ratio):
    assert Row("x", "y", 20.0, unit, "peer", 10.0).ratio == ratio


def test_without_a_peer_there_is_no_ratio():
    row = Row("x", "MFU", 0.41, "fraction")
    assert json.loads(row.to_json())["ratio"] is None
    assert Row.from_json(row.to_json()) == row


@given(positive, st.sampled_from(sorted(UNITS)), st.none() | positive)
def test_what_is_read_is_what_was_written(value, unit, peer_value):
    row = Row("a name", "a metric", value, unit, "" if peer_value is None else "a peer", peer_value)
    assert Row.from_json(row.to_json()) == row
    assert math.isclose(row.value, value, rel_tol=1e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"value": math.nan}, "value of x, y is nan; it must be a number above 0"),
        ({"value": math.inf}, "value of x, y is inf"),
        ({"value": 0.0}, "value of x, y is 0.0"),
        ({"value": "1"}, "value of x, y is '1'"),
        ({"peer": "p", "peer_value": math.nan}, "peer_value of x, y is nan"),
        ({"peer": "p"}, "give both or none"),
        ({"peer_value": 1.0}, "give both or none"),
        ({"unit": "parsecs"}, "unit is 'parsecs'; it must be one of: tok/s"),
        ({"name": ""}, "name is empty"),
        ({"metric": "two\nlines"}, "metric is 'two\\nlines'"),
        ({"name": "a | b"}, "without |"),
    ],
)
def test_what_is_no_figure_is_refused_in_one_line(fields, message):
    with pytest.raises(InputError) as error:
        Row(**({"name": "x", "metric": "y", "value": 1.0, "unit": "s"} | fields))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_line_whose_ratio_was_changed_is_refused():
    line = Row("x", "y", 2.0, "tok/s", "p", 1.0).to_json().replace('"ratio": 2.0', '"ratio": 3.0')
    with pytest.raises(InputError, match=r"the ratio of x, y is 3.0; its values give 2.0"):
        Row.from_json(line)


@pytest.mark.parametrize("line", ["", "{}", "[1]", "no JSON", '{"name": "x", "ratio": null}'])
def test_a_line_that_is_no_row_is_refused(line):
    with pytest.raises(InputError, match="no row of a benchmark"):
        Row.from_json(line)


def test_a_file_that_is_not_there_has_no_rows(tmp_path):
    assert read_rows(tmp_path / "none.jsonl") == []
