import hashlib

import numpy as np
import pytest

from modelcore.atomic import write_json
from modelcore.data.shards import FORMAT, VERSION


@pytest.fixture
def tokens(tmp_path):
    """A token folder of a vocabulary of 61, written as modelcore.data.shards lays it out."""
    folder = tmp_path / "tokens"
    generator = np.random.default_rng(0)
    folder.mkdir()
    (folder / "tokenizer.model").write_bytes(b"a tokenizer")
    splits = {}
    for split, length in (("train", 2000), ("heldout", 300)):
        (folder / split).mkdir()
        content = {
            f"{split}/00000.bin": generator.integers(0, 61, length).astype("<u2").tobytes(),
            f"{split}/bounds.npy": None,
        }
        np.save(folder / split / "bounds.npy", np.array([0, *range(40, length, 70), length], dtype=np.int64))
        (folder / split / "00000.bin").write_bytes(content[f"{split}/00000.bin"])
        described = [
            {
                "name": name,
                "size": (folder / name).stat().st_size,
                "sha256": hashlib.sha256((folder / name).read_bytes()).hexdigest(),
            }
            for name in content
        ]
        splits[split] = {
            "documents": len(range(40, length, 70)) + 1,
            "tokens": length,
            "text_bytes": 3 * length,
            "shards": described[:1],
            "bounds": described[1],
        }
    meta = {
        "format": FORMAT,
        "version": VERSION,
        "dtype": "<u2",
        "vocab_size": 61,
        "tokenizer_digest": hashlib.sha256(b"a tokenizer").hexdigest(),
        "splits": splits,
    }
    write_json(folder / "meta.json", meta)
    return folder
