"""The rules: Great Expectations holds each fact against its expectation, and each failure names document and reason."""

import json
import re
import socket
import subprocess
import sys

import pytest

from modelcore.data import facts as facts_module
from modelcore.data.facts import COLUMNS, OVERLAP, collect_facts
from modelcore.data.heldout import Overlap
from modelcore.data.sources import MAX_DOCUMENT_BYTES, Record
from modelcore.data.validation import Fault, Validator
from modelcore.data.validation_page import render

GOOD = Record("a.txt", 1, 5, "hello")


@pytest.fixture(scope="module")
def validator():
    return Validator()


def table(records, overlap=None):
    (facts,) = collect_facts(records, overlap)
    return facts


def faults(validator, name, records, overlap=None):
    verdict = validator.validate(name, table(records, overlap))
    named = {document: [(fault.reason, fault.detail) for fault in found] for document, found in verdict.faults.items()}
    return named, verdict


def test_facts_are_a_row_a_document_and_hold_no_text():
    facts = table([GOOD, Record("b.txt", 3, 9, " \n"), Record("c.txt", 1, 4, None, "not_utf8")])
    assert list(facts.columns) == list(COLUMNS)
    assert facts["document"].tolist() == ["a.txt:1", "b.txt:3", "c.txt:1"]
    assert facts["bytes"].tolist()[0] == 5
    assert facts["blank"].tolist()[:2] == [False, True]
    assert facts["sha256"].isna().tolist() == [False, True, True]
    assert "hello" not in facts.to_csv()


def test_only_the_second_of_two_equal_texts_is_a_duplicate_whatever_white_space_is_around_it():
    facts = table([GOOD, Record("b.txt", 1, 7, "\nhello "), Record("c.txt", 1, 5, "other")])
    assert facts["duplicate_of"].isna().tolist() == [True, False, True]
    assert facts["duplicate_of"][1] == "a.txt:1"


def test_clean_documents_pass_every_check(validator):
    found, verdict = faults(validator, "clean", [GOOD, Record("b.txt", 1, 5, "other")])
    assert found == {}
    assert all(check.passed for check in verdict.checks)
    assert {check.reason for check in verdict.checks} == {
        "table", "schema", "encoding", "nul_bytes", "length", "empty", "duplicate",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("record", "reason", "detail"),
    [
        (Record("x", 1, 9, None, "not_json"), "schema", ""),
        (Record("x", 1, 9, None, "no_text_field"), "schema", ""),
        (Record("x", 1, 9, None, "damaged"), "schema", ""),
        (Record("x", 1, 9, None, "not_utf8"), "encoding", ""),
        (Record("x", 1, 9, "a\0b\0"), "nul_bytes", "2 NUL bytes"),
        (Record("x", 1, MAX_DOCUMENT_BYTES + 1, None, "too_long"), "length", ""),
        (Record("x", 1, 3, " \n "), "empty", "nothing but white space"),
        (Record("x", 1, 0, ""), "empty", "nothing but white space"),
        (Record("x", 1, 5, "hello"), "duplicate", "same text as a.txt:1"),
    ],
)
def test_each_kind_of_bad_document_fails_its_own_check_alone(validator, request, record, reason, detail):
    found, verdict = faults(validator, request.node.name, [GOOD, record])
    assert found == {"x:1": [(reason, detail)]}
    assert [check.reason for check in verdict.checks if not check.passed] == [reason]
    (failed,) = [check for check in verdict.checks if not check.passed]
    assert (failed.failed, failed.examples) == (1, ("x:1",))


def test_a_document_can_be_bad_for_several_reasons(validator):
    found, _ = faults(validator, "several", [Record("x", 1, 2, "a\0"), Record("y", 1, 2, "a\0")])
    assert [reason for reason, _ in found["y:1"]] == ["nul_bytes", "duplicate"]


def test_held_out_text_that_training_holds_too_is_contaminated(validator):
    line = "A line of text that is long enough to be compared with others.\n"
    overlap = Overlap([line, "other " * 20], [line])
    records = [Record("leaked", 1, 60, line), Record("fresh", 1, 60, "other " * 20)]
    found, _ = faults(validator, "held-out", records, overlap)
    assert found == {"leaked:1": [("contamination", "100% of its lines stand in the training corpus")]}
    assert OVERLAP in table(records, overlap)


def test_no_document_at_all_fails_the_table(validator):
    found, verdict = faults(validator, "nothing", [])
    assert found == {}
    assert [check.title for check in verdict.checks if not check.passed] == ["there is a document"]


def test_many_documents_are_validated_in_parts_with_the_outcome_of_the_whole(tmp_path, monkeypatch):
    records = [
        GOOD,
        Record("b.txt", 1, 2, "a\0"),
        *(Record("c.jsonl", row, 5, f"text {row % 7}") for row in range(1, 20)),
    ]

    def outcome(rows):
        monkeypatch.setattr(facts_module, "TABLE_ROWS", rows)
        validator = Validator()
        tables = list(collect_facts(records))
        for facts in tables:
            validator.validate("training corpus", facts)
        validator.write_docs(tmp_path / str(rows))
        assert len(list((tmp_path / str(rows) / "validations").rglob("*.html"))) == len(tables)
        return [len(facts) for facts in tables], validator.verdicts

    sizes, whole = outcome(100)
    assert sizes == [21]
    assert whole["training corpus"].faults["c.jsonl:19"] == [Fault("duplicate", "same text as c.jsonl:5")]
    sizes, in_parts = outcome(5)
    assert sizes == [5, 5, 5, 5, 1]
    assert in_parts == whole


def test_data_docs_and_the_page_tell_the_outcome_and_nothing_goes_over_the_network(tmp_path, monkeypatch):
    def refuse(*arguments):
        raise AssertionError(f"connects to {arguments}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    validator = Validator()
    validator.validate("training corpus", table([GOOD, Record("<b>.txt", 1, 5, "hello")]))
    validator.write_docs(tmp_path)
    assert "training corpus" in (tmp_path / "index.html").read_text()
    (page,) = (tmp_path / "validations").rglob("*.html")
    assert "%3Cb%3E.txt:1" in page.read_text(), "the name of a file cannot put HTML into the page"
    assert "<b>.txt" not in page.read_text()

    summary = render(list(validator.verdicts.values()), {"documents": 2}, "1 of 2 documents are bad")
    assert "1 of 2 documents are bad" in summary
    assert "%3Cb%3E.txt:1" in summary
    assert not re.search(r"https?://|<script|<link|\bsrc=", summary), "the page stands alone"


def test_many_bad_documents_are_all_named(validator):
    records = [Record("x", row, 2, "a\0" + str(row)) for row in range(1, 501)]
    found, _ = faults(validator, "many", records)
    assert len(found) == 500
    assert json.dumps(found)


def test_a_program_that_is_no_file_is_not_ended_by_an_installed_pyspark():
    program = "from modelcore.data.validation import Validator; Validator(); print('goes on')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "goes on\n"
