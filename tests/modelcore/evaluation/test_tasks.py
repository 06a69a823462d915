"""The tasks' files say all that lm-eval needs, a short text goes without them, and nobody asks the network."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from modelcore.errors import InputError
from modelcore.evaluation.passages import make_tasks
from modelcore.evaluation.tasks import MIN_ITEMS, write_tasks
from modelcore.gptx import GPT, GPTConfig
from modelcore.models import save_model
from modelcore.tokenizers.training import train_sentencepiece

VOCABULARY = ("walked", "garden", "letter", "sister", "the", "a", "to", "with", "her", "Elinor", "Edward")
TEXTS = [
    " ".join(" ".join(random.Random(100 * i + j).choices(VOCABULARY, k=9)) + " again." for j in range(70))
    for i in range(2)
]


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_files_hold_the_items_and_name_each_other(tmp_path):
    assert write_tasks(tmp_path / "tasks", iter(TEXTS), items=20, seed=4) == {"last_word": 20, "multiple_choice": 20}
    last_words, choices = make_tasks(TEXTS, items=20, seed=4)
    for name, items in (("last_word", last_words), ("multiple_choice", choices)):
        assert rows(tmp_path / "tasks" / f"{name}.jsonl") == [vars(item) for item in items]
        config = yaml.safe_load((tmp_path / "tasks" / f"{name}.yaml").read_text(encoding="utf-8"))
        assert config["task"] == name
        assert config["dataset_kwargs"] == {"data_files": {"test": f"{name}.jsonl"}}


def test_a_text_that_is_too_short_goes_without_the_task_and_says_so(tmp_path, warnings_logged):
    short = TEXTS[0][: len(TEXTS[0]) // 4]
    available = [len(items) for items in make_tasks([short], items=100, seed=0)]
    assert 0 < max(available) < MIN_ITEMS
    assert write_tasks(tmp_path / "tasks", [short]) == {}
    assert not (tmp_path / "tasks").exists()
    assert [
        f"task={name} passages={count} wanted={MIN_ITEMS}: the held-out text is too short for this task, "
        "which is left out"
        for name, count in zip(("last_word", "multiple_choice"), available, strict=True)
    ] == warnings_logged


def test_too_few_items_are_refused(tmp_path):
    with pytest.raises(InputError, match="9 items are too few for a task; take 10 or more"):
        write_tasks(tmp_path, TEXTS, items=9)


OFFLINE = """
import socket, sys
from pathlib import Path

asked = []

def refuse(*arguments, **options):
    asked.append(arguments)
    raise OSError("no network here")

socket.getaddrinfo = socket.create_connection = socket.socket.connect = socket.socket.connect_ex = refuse
socket.socket.sendto = refuse

from modelcore.evaluation.tasks import run_tasks
from modelcore.inference import TextGenerator

scores = run_tasks(TextGenerator.load(Path(sys.argv[1])), Path(sys.argv[2]), ["last_word", "multiple_choice"])
assert {score.items for score in scores.values()} == {20}, scores
assert not asked, asked
"""


def test_the_tasks_run_without_a_network_and_do_not_even_ask_for_one(tmp_path):
    """In a process of its own, whose imports are watched too, and which nothing has told to be offline."""
    (tmp_path / "model").mkdir()
    train_sentencepiece(TEXTS, tmp_path, vocab_size=300, algorithm="bpe", seed=0)
    torch.manual_seed(0)
    save_model(tmp_path / "model", GPT(GPTConfig(300, 64, 1, 16, 2, 2, 16)), tmp_path / "tokenizer.model")
    write_tasks(tmp_path / "tasks", TEXTS, items=20)
    environment = {key: value for key, value in os.environ.items() if not key.endswith("_OFFLINE")}
    subprocess.run(
        [sys.executable, "-c", OFFLINE, tmp_path / "model", tmp_path / "tasks"],
        env=environment | {"HOME": str(tmp_path), "HF_HOME": str(tmp_path / "hf")},
        check=True,
    )
