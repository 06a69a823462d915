"""Encoding a corpus: in order, each document ended, and the same on one core as on many."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading

import numpy as np
import psutil
import pytest

from modelcore.data import encoding
from modelcore.data.encoding import encode_documents
from modelcore.data.shards import write_tokens
from modelcore.errors import InputError
from modelcore.tokenizers import Tokenizer
from modelcore.tokenizers.training import train_sentencepiece

TEXTS = [f"Document number {number}, of {number % 7} words" + " word" * (number % 7) for number in range(40)]


def joined(batches):
    batches = list(batches)
    return (
        np.concatenate([batch.ids for batch in batches]),
        np.concatenate([batch.lengths for batch in batches]),
        sum(batch.text_bytes for batch in batches),
    )


@pytest.fixture
def two_processes(monkeypatch):
    """Makes 40 short documents a large corpus."""
    monkeypatch.setattr(encoding, "BATCH_BYTES", 100)
    monkeypatch.setattr(encoding, "LARGE_BYTES", 300)
    monkeypatch.setattr(encoding, "available_cores", lambda: 2)


def test_documents_come_in_order_each_with_its_end(tokenizer):
    ids, lengths, size = joined(encode_documents(TEXTS, tokenizer))
    assert lengths.tolist() == [len(tokenizer.encode(text)) + 1 for text in TEXTS]
    assert ids.tolist() == [i for text in TEXTS for i in [*tokenizer.encode(text), tokenizer.eos_id]]
    assert size == sum(len(text.encode()) for text in TEXTS)


@pytest.mark.parametrize("algorithm", ["unigram", "bpe"])
def test_the_shards_are_the_same_bytes_on_any_number_of_cores(algorithm, tmp_path, two_processes, monkeypatch):
    train_sentencepiece(TEXTS, tmp_path, vocab_size=290, algorithm=algorithm, seed=0)
    tokenizer = Tokenizer.load(tmp_path)

    def written(cores):
        monkeypatch.setattr(encoding, "available_cores", lambda: cores)
        write_tokens(tmp_path / str(cores), tokenizer, train=TEXTS, heldout=TEXTS[:2], shard_tokens=150)
        files = (tmp_path / str(cores)).rglob("*")
        return {str(file.relative_to(tmp_path / str(cores))): file.read_bytes() for file in files if file.is_file()}

    one = written(1)
    assert len([name for name in one if name.startswith("train/")]) > 3
    assert written(2) == written(encoding.MOST_THREADS + 1) == one


def test_threads_do_it_where_the_tokenizer_lets_them_and_are_gone_afterwards(tmp_path, two_processes):
    train_sentencepiece(TEXTS, tmp_path, vocab_size=290, algorithm="unigram", seed=0)
    before = threading.active_count()
    used = [
        (threading.active_count() - before, len(multiprocessing.active_children()))
        for _ in encode_documents(TEXTS, Tokenizer.load(tmp_path))
    ]
    assert max(used) == (2, 0)
    assert threading.active_count() == before


def test_processes_are_used_only_where_there_is_memory_for_them(tokenizer, two_processes, monkeypatch):
    used = [len(multiprocessing.active_children()) for _ in encode_documents(TEXTS, tokenizer)]
    assert max(used) == 2
    monkeypatch.setattr(encoding, "memory_limit", lambda: 2 * encoding.PROCESS_BYTES - 1)
    used = [len(multiprocessing.active_children()) for _ in encode_documents(TEXTS, tokenizer)]
    assert max(used) == 0


def test_a_process_that_is_killed_is_told_in_one_line(tokenizer, two_processes):
    def killing():
        yield from TEXTS[:30]
        os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
        yield from TEXTS * 10

    with pytest.raises(InputError, match="one of 2 processes that encode text was killed, most likely because memory"):
        list(encode_documents(killing(), tokenizer))


# A script that does not ask whether it is the main module, as one that is imported again by its processes must.
_SCRIPT = """
import json, multiprocessing, os, signal, sys
from pathlib import Path
from modelcore.data import encoding
from modelcore.tokenizers import Tokenizer

encoding.BATCH_BYTES, encoding.LARGE_BYTES, encoding.available_cores = 100, 300, lambda: 2
batches = encoding.encode_documents(["some words of a document "] * 100, Tokenizer.load(sys.argv[1]))
print(sum(len(batch.lengths) for _, batch in zip(range(20), batches)))
print(json.dumps([child.pid for child in multiprocessing.active_children()]), flush=True)
if sys.argv[2] == "die":
    os.kill(os.getpid(), signal.SIGKILL)
print(sum(len(batch.lengths) for batch in batches))
"""


def run_script(tokenizer, tmp_path, how):
    (tmp_path / "script.py").write_text(_SCRIPT)
    command = [sys.executable, str(tmp_path / "script.py"), str(tokenizer.model_file), how]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    first, children, *rest = done.stdout.splitlines() or pytest.fail(done.stderr)
    return int(first), json.loads(children), rest, done.returncode


def test_a_scripts_main_module_is_not_run_again_by_the_processes(tokenizer, tmp_path):
    first, children, (rest,), code = run_script(tokenizer, tmp_path, "live")
    assert len(children) == 2
    assert first + int(rest) == 100
    assert code == 0


def test_no_process_is_left_when_the_first_is_killed(tokenizer, tmp_path):
    _, children, _, code = run_script(tokenizer, tmp_path, "die")
    assert code == -signal.SIGKILL
    left = [psutil.Process(child) for child in children if psutil.pid_exists(child)]
    assert psutil.wait_procs(left, timeout=30)[1] == []


def test_the_corpus_is_not_read_far_ahead(tokenizer, monkeypatch):
    monkeypatch.setattr(encoding, "BATCH_BYTES", 100)
    read = []
    batches = encode_documents((read.append(text) or text for text in TEXTS), tokenizer)
    next(batches)
    assert len(read) < 10


def test_no_document_gives_no_batch(tokenizer):
    assert list(encode_documents([], tokenizer)) == []
