"""A corpus of any size goes through the data stages in the same memory: ten times the text, not a few MiB more."""

import json
import random
import subprocess
import sys

import pytest

from modelcore.tokenizers.training import train_sentencepiece

pytestmark = pytest.mark.slow

# Runs the stage as on two cores, whatever the machine has; prints the peak of resident memory of each process, in KiB.
_TOKENIZE = """
import json, multiprocessing, re, sys
from pathlib import Path
from modelcore.data import encoding
from modelcore.stages.tokenize_corpus import tokenize_corpus

def peak(pid):
    return int(re.search(r"VmHWM:\\s*(\\d+) kB", Path(f"/proc/{pid}/status").read_text())[1])

def watched(*arguments):
    for batch in encode_in_processes(*arguments):
        children.update({child.pid: peak(child.pid) for child in multiprocessing.active_children()})
        yield batch

children = {}
encode_in_processes, encoding._encode_in_processes = encoding._encode_in_processes, watched
encoding.available_cores, encoding.MOST_THREADS = lambda: 2, int(sys.argv[1])
corpus, heldout, tokenizer, out = sys.argv[2:]
results = tokenize_corpus(corpus=corpus, heldout=heldout, tokenizer=tokenizer, out=out).results
print(json.dumps([results["train_bytes"], peak("self"), *children.values()]))
"""


@pytest.fixture(scope="module")
def text():
    """A million characters in documents of some 2,000, of words as varied as those of a language."""
    rng = random.Random(0)
    words = ["".join(rng.choices("etaoinshrdlu", k=rng.randint(1, 9))) for _ in range(20_000)]
    return [" ".join(rng.choices(words, k=400)) + "\n" for _ in range(500)]


def write_corpus(folder, text, megabytes):
    folder.mkdir()
    lines = "".join(json.dumps({"text": document}) + "\n" for document in text)
    with open(folder / "corpus.jsonl", "w") as file:
        for _ in range(megabytes):
            file.write(lines)
    return folder


@pytest.mark.parametrize(("threads", "processes"), [(2, 0), (0, 2)])
def test_tokenizing_ten_times_the_text_takes_no_more_memory(tmp_path, text, threads, processes):
    train_sentencepiece(text, tmp_path, vocab_size=600, algorithm="unigram", seed=0)
    heldout = write_corpus(tmp_path / "heldout", text, 1)

    def peaks(megabytes):
        corpus = write_corpus(tmp_path / f"{megabytes}", text, megabytes)
        arguments = map(str, (threads, corpus, heldout, tmp_path / "tokenizer.model", tmp_path / f"{megabytes}.tokens"))
        done = subprocess.run([sys.executable, "-c", _TOKENIZE, *arguments], capture_output=True, text=True, check=True)
        size, *peaks = json.loads(done.stdout)
        assert size > 0.9e6 * megabytes
        assert len(peaks) == 1 + processes
        return peaks

    small, large = peaks(15), peaks(150)
    print(f"peak resident memory, MiB, of 15 and 150 MB: {[[kib >> 10 for kib in each] for each in (small, large)]}")
    assert max(large) - max(small) < 16 << 10
    assert min(large) - min(small) < 16 << 10


# Not getrusage's peak: that of the process which started this one counts in it.
_VALIDATE = """
import json, re, sys
from pathlib import Path
from modelcore.stages.validate_data import validate_data

outputs = {f"{name}_out": f"{sys.argv[2]}/{name}" for name in ("train", "heldout", "quarantine", "docs")}
documents = validate_data(corpus=sys.argv[1], engine=sys.argv[3], **outputs).results["documents"]
peak = int(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1])
print(json.dumps([documents, peak]))
"""


# Tables of facts hold 65,536 documents, and two are there at a time: the smaller corpus has more than two.
@pytest.mark.parametrize("engine", ["local", "spark"])
def test_validating_takes_few_bytes_a_document_of_the_process_that_judges(tmp_path, engine):
    def peak(documents):
        corpus = tmp_path / f"{documents}.jsonl"
        corpus.write_text("".join(f'{{"text": "this is document number {row}"}}\n' for row in range(documents)))
        command = [sys.executable, "-c", _VALIDATE, str(corpus), str(tmp_path / str(documents)), engine]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        validated, kib = json.loads(done.stdout)
        assert validated == documents
        return kib << 10

    few, many = 140_000, 340_000
    small, large = peak(few), peak(many)
    print(f"peak resident memory, MiB, of {few:,} and {many:,} documents: {small >> 20}, {large >> 20}")
    assert large - small < (many - few) * 40 + (16 << 20)
