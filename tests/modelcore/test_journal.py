"""The journal keeps what is written to it, whatever happens to the process that writes."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelcore.atomic import disk_is_full
from modelcore.errors import InputError, without_password
from modelcore.journal import Journal

URI = "http://mlflow:5000"
ARGUMENTS = st.dictionaries(
    st.text(max_size=8),
    st.text(max_size=20) | st.floats(allow_nan=False, allow_subnormal=False) | st.none(),
    max_size=3,
)
# What a writer does: append an entry, or say that so many of the first that wait are delivered.
ACTIONS = st.lists(ARGUMENTS | st.integers(1, 4), max_size=12)


def write(journal, actions):
    for action in actions:
        if isinstance(action, dict):
            journal.append("r", "call", action)
        elif entries := journal.next(action):
            journal.mark(entries)


def waiting(journal):
    return [(entry.n, entry.arguments) for entry in journal.next(1000)]


@settings(max_examples=60, deadline=None)
@given(before=ACTIONS, after=ACTIONS, data=st.data())
def test_a_journal_cut_off_anywhere_goes_on_from_its_last_whole_line(tmp_path_factory, before, after, data):
    folder = tmp_path_factory.mktemp("journal")
    journal = Journal(folder, URI)
    journal.append("r", "call", {})
    write(journal, before)
    os.close(journal._file)  # killed
    file = folder / "journal.jsonl"
    whole = file.read_bytes()
    head = whole.index(b"\n") + 1
    cut = data.draw(st.integers(head, len(whole)))
    torn = data.draw(st.sampled_from([b"", b"\0" * 40, b'{"n": 99, "run'])) if cut < len(whole) else b""
    file.write_bytes(whole[:cut] + torn)

    lines = [json.loads(line) for line in whole[:cut].splitlines(keepends=True) if line.endswith(b"\n")]
    delivered = max((line["delivered"] for line in lines if "delivered" in line), default=0)
    entries = [(line["n"], line["arguments"]) for line in lines if "method" in line]
    again = Journal(folder, URI)
    assert waiting(again) == [entry for entry in entries if entry[0] > delivered]
    assert again.waiting == len(waiting(again))

    write(again, after)
    left = waiting(again)
    os.close(again._file)
    assert all(json.loads(line) for line in file.read_bytes().splitlines())
    once_more = Journal(folder, URI)
    assert waiting(once_more) == left
    os.close(once_more._file)
    shutil.rmtree(folder)


def test_entries_are_read_in_order_and_not_again_when_delivered(tmp_path):
    journal = Journal(tmp_path / "j", URI)
    for step in range(5):
        journal.append("r", "log_metrics", {"step": step})
    first = journal.next(2)
    assert [entry.arguments["step"] for entry in first] == [0, 1]
    assert journal.next(2) == first, "what was not marked is read again"
    journal.mark(first)
    assert [entry.arguments["step"] for entry in journal.next(10)] == [2, 3, 4]
    assert (journal.waiting, journal.delivered, journal.last) == (3, 2, 5)


def test_a_runs_id_is_known_to_the_next_process(tmp_path):
    journal = Journal(tmp_path / "j", URI)
    journal.append("local", "begin", {})
    journal.append("local", "end", {})
    journal.mark(journal.next(1), "of-the-server")
    journal.close()
    assert Journal(tmp_path / "j", URI).run_ids == {"local": "of-the-server"}


def test_a_journal_with_nothing_left_to_deliver_goes_away(tmp_path):
    journal = Journal(tmp_path / "j", URI)
    journal.append("r", "call", {})
    journal.mark(journal.next(1))
    journal.close()
    assert not (tmp_path / "j").exists()
    with pytest.raises(InputError, match="no tracking that waits"):
        Journal(tmp_path / "j")


def test_files_are_kept_as_they_were_until_they_are_delivered(tmp_path):
    (tmp_path / "docs" / "deep").mkdir(parents=True)
    (tmp_path / "docs" / "deep" / "a.txt").write_text("then")
    journal = Journal(tmp_path / "j", URI)
    name = journal.keep(tmp_path / "docs")
    journal.append("r", "log_path", {"path": name, "folder": None})
    (tmp_path / "docs" / "deep" / "a.txt").write_text("now")
    assert (tmp_path / "j" / name).name == "docs"
    assert (tmp_path / "j" / name / "deep" / "a.txt").read_text() == "then"
    journal.append("r", "call", {})
    journal.mark(journal.next(1))
    assert not list((tmp_path / "j" / "files").iterdir())


def test_one_process_at_a_time(tmp_path):
    journal = Journal(tmp_path / "j", URI)
    journal.append("r", "call", {})
    code = "import sys; from pathlib import Path; from modelcore.journal import Journal; Journal(Path(sys.argv[1]))"
    other = subprocess.run([sys.executable, "-c", code, tmp_path / "j"], capture_output=True, text=True, check=False)
    assert "is in use by another process" in other.stderr
    assert "mlflow" not in other.stderr.replace("mlflow:5000", "")
    journal.close()
    assert Journal(tmp_path / "j").waiting == 1


def test_what_waits_for_one_server_is_not_given_to_another(tmp_path):
    journal = Journal(tmp_path / "j", "http://first:5000")
    journal.append("r", "call", {})
    journal.close()
    with pytest.raises(InputError, match=r"holds 1 tracked calls for http://first:5000, and .* http://second:5000 now"):
        Journal(tmp_path / "j", "http://second:5000")
    assert Journal(tmp_path / "j").tracking_uri == "http://first:5000"


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("https://me:pa%2Fss@host:1/x", "https://host:1/x"),
        ("https://me:p@ss@host", "https://host"),
        ("http://bob:s3cr3t/pass@host", "http://host"),
        ("http://bob:s@3/cr3t/pass@host:5000", "http://host:5000"),
        ("http://host/a@b", "http://host/a@b"),
        ("http://host:5000/a@b", "http://…@b"),
        ("http://bob:1/pass@host:5000/x", "http://…@host:5000/x"),
        ("http://bob:1@p/pass@host", "http://host"),
        ("sqlite:////tmp/x.db", "sqlite:////tmp/x.db"),
    ],
)
def test_passwords_are_not_written(tmp_path, uri, shown):
    assert without_password(uri) == shown
    Journal(tmp_path / "j", uri)
    assert "ss@" not in (tmp_path / "j" / "journal.jsonl").read_text()


def test_a_full_disk_is_an_error_of_the_call_and_leaves_the_journal_whole(small_disk):
    journal = Journal(small_disk.folder / "j", URI)
    journal.append("r", "call", {"text": "before"})
    small_disk.fill(room=5 << 10)
    (small_disk.folder.parent / "large").write_bytes(bytes(1 << 20))
    for fill in (
        lambda: journal.append("r", "call", {"text": "x" * 50_000}),
        lambda: journal.keep(small_disk.folder.parent / "large"),
    ):
        with pytest.raises(OSError, match="No space left") as caught:
            fill()
        assert disk_is_full(caught.value)
    assert list((small_disk.folder / "j").glob("files/*")) == []
    (small_disk.folder / "filler").unlink()
    journal.append("r", "call", {"text": "after"})
    assert [entry.arguments["text"] for entry in journal.next(9)] == ["before", "after"]
    lines = Path(small_disk.folder / "j" / "journal.jsonl").read_text().splitlines()
    assert [json.loads(line).get("n") for line in lines] == [None, 1, 2]
    journal.close()


def test_on_a_full_disk_what_is_delivered_is_not_delivered_again(small_disk):
    journal = Journal(small_disk.folder / "j", URI)
    for _ in range(400):
        journal.append("r", "call", {})
    small_disk.fill(room=0)
    first = journal.next(399)
    for entry in first:  # more marks than the last block has room for
        journal.mark([entry])
    assert [entry.n for entry in journal.next(9)] == [400]
    (small_disk.folder / "filler").unlink()
    journal.close()
    again = Journal(small_disk.folder / "j")
    assert waiting(again)[-1] == (400, {})
    again.close()


def test_a_journal_that_is_closed_takes_nothing_more(tmp_path):
    journal = Journal(tmp_path / "j", URI)
    journal.append("r", "call", {})
    journal.close()
    with open(tmp_path / "other", "wb") as other:  # has the descriptor that the journal had
        with pytest.raises(ValueError, match="is closed"):
            journal.append("r", "call", {})
        assert other.tell() == 0


def test_an_entry_that_was_damaged_in_the_middle_is_passed_over(tmp_path):
    journal = Journal(tmp_path / "j", URI)
    for _ in range(3):
        journal.append("r", "call", {})
    journal.close()
    file = tmp_path / "j" / "journal.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    lines[2] = b"\0" * (len(lines[2]) - 1) + b"\n"
    file.write_bytes(b"".join(lines))
    assert [n for n, _ in waiting(Journal(tmp_path / "j"))] == [1, 3]


FOREIGN = [b"", b"notes\n", b'{"a": 1}\n', b"[1]\n", b'{"n": 1, "run": "r"}\n']


@pytest.mark.parametrize("content", FOREIGN)
def test_a_folder_with_a_journal_that_is_none_of_ours_is_left_alone(tmp_path, content):
    (tmp_path / "journal.jsonl").write_bytes(content)
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError):
        Journal(tmp_path)
    assert (tmp_path / "journal.jsonl").read_bytes() == content
    assert (tmp_path / "thesis.txt").exists()


@pytest.mark.parametrize(
    "line",
    [
        {"n": 2, "run": "r", "at": 1, "method": "log_text", "arguments": {}, "more": 1},
        {"run": "r", "at": 1, "method": "log_text", "arguments": {}},
        {"delivered": "x"},
        {"tracking_uri": "http://other:5000"},
    ],
)
def test_a_line_that_no_journal_writes_is_refused_and_nothing_is_lost(tmp_path, line):
    journal = Journal(tmp_path / "j", URI)
    journal.append("r", "call", {})
    journal.close()
    with open(tmp_path / "j" / "journal.jsonl", "a") as file:
        file.write(json.dumps(line) + "\n")
    before = (tmp_path / "j" / "journal.jsonl").read_bytes()
    with pytest.raises(InputError, match="left alone"):
        Journal(tmp_path / "j")
    assert (tmp_path / "j" / "journal.jsonl").read_bytes() == before


def test_a_delivered_journal_takes_only_its_own_files_with_it(tmp_path):
    journal = Journal(tmp_path / "j", URI)
    (tmp_path / "curve.txt").write_text("1 2 3")
    journal.append("r", "log_path", {"path": journal.keep(tmp_path / "curve.txt"), "folder": None})
    (tmp_path / "j" / "thesis.txt").write_text("years of work")
    journal.mark(journal.next(10))
    journal.close()
    assert [path.name for path in (tmp_path / "j").iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    "path", ["../outside/thesis.txt", "files/../../outside/thesis.txt", "/absolute", "files/x/y", 7]
)
def test_what_is_no_copy_of_the_journals_is_neither_sent_nor_deleted(tmp_path, path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "thesis.txt").write_text("years of work")
    path = str(tmp_path / "outside" / "thesis.txt") if path == "/absolute" else path
    journal = Journal(tmp_path / "j", URI)
    journal.append("r", "log_path", {"path": path, "folder": None})
    (entry,) = journal.next(10)
    assert journal.kept(entry.arguments) is None
    journal.mark([entry])
    journal.close()
    assert (tmp_path / "outside" / "thesis.txt").exists()


def test_a_link_in_the_place_of_a_copy_is_not_followed(tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "thesis.txt").write_text("years of work")
    journal = Journal(tmp_path / "j", URI)
    (tmp_path / "j" / "files").mkdir()
    (tmp_path / "j" / "files" / ("a" * 32)).symlink_to(tmp_path / "outside")
    journal.append("r", "log_path", {"path": f"files/{'a' * 32}/thesis.txt", "folder": None})
    (entry,) = journal.next(10)
    assert journal.kept(entry.arguments) is None
    journal.mark([entry])
    assert (tmp_path / "outside" / "thesis.txt").exists()


def test_what_is_given_up_takes_only_what_the_journal_made(tmp_path):
    journal = Journal(tmp_path / "j", URI)
    (tmp_path / "curve.txt").write_text("1 2 3")
    journal.keep(tmp_path / "curve.txt")
    (tmp_path / "j" / "files" / "thesis").mkdir()
    journal.append("r", "call", {})
    journal.close()
    journal.discard()
    assert [path.name for path in (tmp_path / "j").rglob("*")] == ["files", "thesis"]
