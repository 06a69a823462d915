import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPT = EXAMPLES / "make_instructions.py"
sys.path.insert(0, str(EXAMPLES))
import make_instructions as script  # noqa: E402  (a script, not a package)


def test_the_committed_pairs_are_what_the_script_makes_of_the_committed_novels(tmp_path):
    out = tmp_path / "instructions.jsonl"
    subprocess.run([sys.executable, SCRIPT, "--out", out], check=True, capture_output=True)
    assert out.read_bytes() == (EXAMPLES / "austen" / "instructions.jsonl").read_bytes()


def test_the_readme_states_the_size_and_digest_of_every_sample_file():
    readme = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    files = [*EXAMPLES.glob("austen/*/*.txt"), EXAMPLES / "austen" / "instructions.jsonl"]
    assert len(files) == 5
    for file in files:
        content = file.read_bytes()
        row = next(line for line in readme.splitlines() if f"`{file.relative_to(EXAMPLES)}`" in line)
        assert f"{len(content):,}" in row
        assert hashlib.sha256(content).hexdigest() in row


def test_no_novel_is_both_trained_on_and_held_out():
    train = {file.name for file in (EXAMPLES / "austen" / "train").iterdir()}
    heldout = {file.name for file in (EXAMPLES / "austen" / "heldout").iterdir()}
    assert len(train) == 3
    assert heldout == {"sense_and_sensibility.txt"}
    assert not train & heldout


def test_every_committed_pair_is_two_different_clean_lines_of_the_stated_length():
    lines = (EXAMPLES / "austen" / "instructions.jsonl").read_text(encoding="utf-8").splitlines()
    pairs = [json.loads(line) for line in lines]
    assert len({(pair["prompt"], pair["response"]) for pair in pairs}) == len(pairs) > 1900
    for pair in pairs:
        assert set(pair) == {"prompt", "response"}
        for text in pair.values():
            assert script.SHORTEST <= len(text) <= script.LONGEST
            assert not re.search(r'["_\n]|  ', text)
        assert pair["response"].endswith((".", "!", "?"))


def test_a_line_and_its_reply_are_a_pair_and_narration_parts_them():
    novel = '"Is it you, sir?"\n\n"It is I,\nand no other."\n\nThey went in.\n\n"What a very fine room!"\n'
    assert script.dialogue_pairs([novel]) == [("Is it you, sir?", "It is I, and no other.")]


def test_a_conversation_gives_a_pair_for_every_turn_once():
    novel = '"A first line."\n\n"A second line."\n\n"A third line."\n'
    assert script.dialogue_pairs([novel, novel]) == [
        ("A first line.", "A second line."),
        ("A second line.", "A third line."),
    ]


@pytest.mark.parametrize(
    ("paragraph", "spoken"),
    [
        ('"But it is," returned she; "for Mrs. Long has been here."', "But it is; for Mrs. Long has been here."),
        ('"My dear," said his lady to him, "have you heard?"', "My dear, have you heard?"),
        ('"No more have I," said Mr. Bennet. "I am glad."', "No more have I. I am glad."),
        ('"I am sorry," said he.', "I am sorry."),
        ('"How so!" cried his wife.', "How so!"),
        ('"It is true"--said Emma--"that I am."', "It is true--that I am."),
        ('"A speech that goes on in the next paragraph.', None),
        ('He said, "I am sorry."', None),
        (f'"Well," said he, {"and walked about the room " * 5}"let us go."', None),
    ],
)
def test_a_speech_is_freed_of_quotation_marks_and_of_who_says_it(paragraph, spoken):
    assert script.speech(paragraph) == spoken


def test_a_speech_that_comes_later_is_no_reply():
    novel = '"What a charming evening!"\n\n"You are up early," said she the next morning.\n'
    assert script.dialogue_pairs([novel]) == []


def test_of_a_long_line_the_end_is_kept_and_of_a_long_reply_the_beginning():
    sentences = [f"This is the sentence number {n} of them all." for n in range(9)]
    spoken = " ".join(sentences)
    assert script.last_sentences(spoken) == " ".join(sentences[-4:])
    assert script.first_sentences(spoken) == " ".join(sentences[:4])


def test_sentences_are_not_cut_after_a_title():
    spoken = "I saw Mr. Weston. X" + "x" * 190 + "."
    assert script.first_sentences(spoken) == "I saw Mr. Weston."


def test_an_interjection_is_not_left_hanging_where_a_reply_is_cut():
    assert script.first_sentences("I know it well. Oh! " + "X" + "x" * 190 + ".") == "I know it well."


@pytest.mark.parametrize("spoken", ["Oh!", "x" * 300 + ".", "but those two lines are"])
def test_what_is_too_short_too_long_or_unfinished_is_no_reply(spoken):
    assert script.first_sentences(spoken) == ""
