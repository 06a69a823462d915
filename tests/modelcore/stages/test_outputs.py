"""A stage replaces what a stage of its kind wrote, and nothing else; it finds that out before it works."""

import json
import os
import subprocess
import sys

import pytest

from modelcore.cli import main
from modelcore.errors import InputError
from modelcore.stages.outputs import Output

# The inputs do not exist: whoever looks at them first would say so.
LINES = {
    "validate-data": "validate-data /no/text --out {out}",
    "train-tokenizer": "train-tokenizer /no/text --out {out} --vocab-size 400",
    "tokenize": "tokenize /no/text --heldout /no/text --tokenizer /no/tokenizer --out {out}",
    "pretrain": "pretrain --tokens /no/tokens --out {out}",
    "finetune": "finetune --checkpoint /no/model --instructions /no/pairs --out {out}",
    "evaluate": "evaluate --checkpoint /no/model --export /no/model --tokens /no/tokens --heldout /no/text --out {out}",
    "register": "register --export /no/model --evaluation /no/evaluation --out {out}",
}
# validate-data writes into folders of --out.
INSIDE = {"validate-data": ("train", "heldout", "quarantine", "data_docs")}

TOKENS = Output("token folder", "meta.json", '"modelcore-tokens"', ("tokenizer.model", "train", "*.bin"))
NOTE = Output("note", mark='"note"')


def snapshot(folder):
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def refusal(line, capsys):
    assert main(line.split()) == 1
    errors = [text for text in capsys.readouterr().err.splitlines() if text.startswith("modelcore: error: ")]
    assert len(errors) == 1
    return errors[0]


@pytest.mark.parametrize(
    ("command", "inside"), [(command, name) for command in LINES for name in INSIDE.get(command, ("",))]
)
def test_a_folder_of_other_things_is_left_alone_before_any_work(command, inside, tmp_path, capsys):
    out = tmp_path / "out"
    (out / inside / "letters").mkdir(parents=True)
    (out / inside / "letters" / "a.txt").write_text("dear")
    (out / inside / "meta.json").write_text("{}")
    before = snapshot(tmp_path)
    assert f"{out / inside} exists and is no " in refusal(LINES[command].format(out=out), capsys)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("command", LINES)
def test_a_file_is_left_alone_before_any_work(command, tmp_path, capsys):
    out = tmp_path / "thesis.tex"
    out.write_text("years of work")
    assert str(out) in refusal(LINES[command].format(out=out), capsys)
    assert snapshot(tmp_path) == {out: b"years of work"}


@pytest.mark.parametrize("command", LINES)
def test_an_output_under_a_file_is_refused_before_any_work(command, tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    line = refusal(LINES[command].format(out=tmp_path / "file" / "out"), capsys)
    assert f"{tmp_path / 'file'} is a file" in line


def write_tokens(folder):
    folder.mkdir()
    (folder / "meta.json").write_text(json.dumps({"format": "modelcore-tokens"}))
    (folder / "tokenizer.model").write_bytes(b"m")
    return folder


def test_nothing_an_empty_folder_and_an_earlier_output_may_be_replaced(tmp_path):
    TOKENS.check(tmp_path / "deep" / "new")
    (tmp_path / "empty").mkdir()
    TOKENS.check(tmp_path / "empty")
    TOKENS.check(write_tokens(tmp_path / "tokens"))
    assert not (tmp_path / "deep").exists()


def test_an_earlier_output_with_something_of_the_users_in_it_is_kept(tmp_path):
    folder = write_tokens(tmp_path / "tokens")
    (folder / "NOTES.md").write_text("which corpus this was")
    with pytest.raises(InputError, match=r"tokens exists and is no token folder \(it holds NOTES\.md\)"):
        TOKENS.check(folder)


@pytest.mark.parametrize(
    ("content", "fault"), [(None, "it has no meta.json"), ('{"format": "mine"}', "meta.json is not what")]
)
def test_a_folder_that_only_looks_alike_is_kept(tmp_path, content, fault):
    (tmp_path / "tokenizer.model").write_bytes(b"m")
    if content is not None:
        (tmp_path / "meta.json").write_text(content)
    with pytest.raises(InputError, match=fault):
        TOKENS.check(tmp_path)


def test_a_file_is_known_by_what_it_begins_with(tmp_path):
    path = tmp_path / "note.json"
    path.write_text('{"note": "x"}')
    NOTE.check(path)
    path.write_text("x")
    with pytest.raises(InputError, match="is no note"):
        NOTE.check(path)


def test_of_a_link_the_target_counts(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.txt").write_text("a")
    (tmp_path / "link").symlink_to("real")
    with pytest.raises(InputError, match="real exists and is no token folder"):
        TOKENS.check(tmp_path / "link")
    (tmp_path / "dangling").symlink_to("not-there-yet")
    TOKENS.check(tmp_path / "dangling")


def test_the_working_folder_and_mount_points_cannot_be_replaced(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in (tmp_path, tmp_path.parent):
        with pytest.raises(InputError, match="name a folder inside it"):
            TOKENS.check(path)
    with pytest.raises(InputError, match="is a mount point"):
        TOKENS.check("/proc")


def test_a_folder_one_may_not_write_in_is_refused(tmp_path):
    (tmp_path / "locked").mkdir(mode=0o555)
    code = (
        "import os, sys\n"
        "from modelcore.stages.outputs import Output\n"
        "from modelcore.errors import InputError\n"
        "os.setuid(65534) if os.getuid() == 0 else None\n"
        "try:\n"
        "    Output('x', 'y').check(sys.argv[1])\n"
        "except InputError as error:\n"
        "    print(error)\n"
    )
    path = tmp_path
    while path != path.parent and os.getuid() == 0:  # nobody may look into pytest's folders
        path.chmod(path.stat().st_mode | 0o011)
        path = path.parent
    said = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "locked" / "out")], capture_output=True, text=True, check=True
    )
    assert "no permission to write in" in said.stdout
