"""Token folders: what is written is what is read, and a folder that is not whole is refused by name."""

import json
import mmap
from types import SimpleNamespace

import numpy as np
import pytest

from modelcore.data.shards import open_split, write_tokens
from modelcore.errors import InputError
from modelcore.tokenizers import Tokenizer

TRAIN = ["A first document.\nOf two lines.\n", "", "Die zweite: größer, 日本語 🙂", "third " * 50]
HELDOUT = ["Kept apart.\n"]


@pytest.fixture
def folder(tmp_path, tokenizer):
    write_tokens(tmp_path / "tokens", tokenizer, train=TRAIN, heldout=HELDOUT)
    return tmp_path / "tokens"


def test_the_tokens_of_each_document_decode_to_its_text(folder, tokenizer):
    split = open_split(folder, "train")
    bounds = split.document_bounds()
    assert bounds.shape == (len(TRAIN) + 1,)
    assert bounds.dtype == np.int64
    assert bounds[-1] == split.n_tokens
    for text, start, end in zip(TRAIN, bounds, bounds[1:], strict=False):
        ids = split.window(start, end - start)
        assert ids.dtype == np.int64
        assert ids[-1] == tokenizer.eos_id
        assert tokenizer.decode(ids[:-1].tolist()) == text


def test_counts_are_of_documents_tokens_and_utf8_bytes(folder, tokenizer):
    split = open_split(folder, "train")
    assert split.n_documents == len(TRAIN)
    assert split.n_tokens == sum(len(tokenizer.encode(text)) + 1 for text in TRAIN)
    assert split.n_bytes == sum(len(text.encode()) for text in TRAIN)
    assert split.vocab_size == tokenizer.vocab_size
    assert open_split(folder, "heldout").n_documents == 1


def test_the_tokenizer_travels_with_the_tokens(folder, tokenizer):
    assert Tokenizer.load(folder).digest == tokenizer.digest
    assert open_split(folder, "train", tokenizer.digest).tokenizer_digest == tokenizer.digest


@pytest.mark.parametrize("shard_tokens", [1, 7, 64])
def test_a_window_is_the_same_however_the_split_is_cut_into_files(tmp_path, tokenizer, shard_tokens):
    texts = ["ab", "", "größer 🙂"]
    write_tokens(tmp_path / "cut", tokenizer, train=texts, heldout=HELDOUT, shard_tokens=shard_tokens)
    split = open_split(tmp_path / "cut", "train")
    whole = np.array([i for text in texts for i in [*tokenizer.encode(text), tokenizer.eos_id]])
    assert len(list((tmp_path / "cut" / "train").glob("*.bin"))) == -(-len(whole) // shard_tokens)
    for start in range(len(whole) + 1):
        for end in range(start, len(whole) + 1):
            split.prefetch(start, end - start)
            assert np.array_equal(split.window(start, end - start), whole[start:end])


@pytest.mark.parametrize(("start", "length"), [(-1, 2), (0, 10**6), (10**6, 1)])
def test_a_window_beyond_the_ends_is_refused(folder, start, length):
    split = open_split(folder, "train")
    for ask in (split.window, split.prefetch):
        with pytest.raises(IndexError):
            ask(start, length)


def test_no_more_is_read_ahead_than_a_window_lies_in(tmp_path, tokenizer, monkeypatch):
    write_tokens(tmp_path / "long", tokenizer, train=["word " * 20_000], heldout=HELDOUT)
    split, asked = open_split(tmp_path / "long", "train"), []
    (content,) = split._maps
    monkeypatch.setattr(split, "_maps", [SimpleNamespace(madvise=lambda *advice: asked.append(advice))])
    split.prefetch(10_000, 100)
    ((advice, begin, size),) = asked
    assert advice == mmap.MADV_WILLNEED
    assert begin % mmap.PAGESIZE == 0
    assert begin <= 20_000 < begin + mmap.PAGESIZE
    assert begin + size == 20_200
    content.madvise(advice, begin, size)  # which the system accepts


def test_the_bounds_are_the_file_that_numpy_saves(folder, tokenizer, tmp_path):
    lengths = [len(tokenizer.encode(text)) + 1 for text in TRAIN]
    np.save(tmp_path / "bounds.npy", np.cumsum([0, *lengths]))
    assert (folder / "train" / "bounds.npy").read_bytes() == (tmp_path / "bounds.npy").read_bytes()


def test_ids_beyond_two_bytes_take_four(tmp_path, tokenizer):
    class LargeVocabulary:
        digest, adds_bos, releases_gil, vocab_size = tokenizer.digest, False, False, 100_000
        save = tokenizer.save

        def encode_batch(self, texts, *, bos, eos):
            return np.array([99_999, 1, 2], dtype=np.uint32), np.array([3])

    write_tokens(tmp_path / "tokens", LargeVocabulary(), train=["a"], heldout=["b"])
    assert open_split(tmp_path / "tokens", "train").window(0, 3).tolist() == [99_999, 1, 2]


def test_the_digest_is_of_the_content(tmp_path, tokenizer, folder):
    write_tokens(tmp_path / "same", tokenizer, train=TRAIN, heldout=HELDOUT)
    write_tokens(tmp_path / "other", tokenizer, train=[*TRAIN, "x"], heldout=HELDOUT)
    digest = open_split(folder, "train").digest
    assert open_split(tmp_path / "same", "train").digest == digest
    assert open_split(tmp_path / "other", "train").digest != digest


def test_a_truncated_shard_is_refused_by_name(folder):
    shard = folder / "train" / "00000.bin"
    shard.write_bytes(shard.read_bytes()[:-2])
    with pytest.raises(InputError, match=r"train/00000\.bin has \d+ bytes and should have \d+.*truncated"):
        open_split(folder, "train")
    open_split(folder, "heldout")  # which is whole


def test_an_id_outside_the_vocabulary_is_refused_where_it_is_read(folder):
    shard = folder / "train" / "00000.bin"
    content = bytearray(shard.read_bytes())
    content[2:4] = b"\xff\xff"
    shard.write_bytes(content)
    with pytest.raises(InputError, match=r"train holds the id 65535 near token 0.* tokenize the corpus again"):
        open_split(folder, "train").window(0, 4)


def test_changed_bounds_are_refused_by_name(folder):
    file = folder / "train" / "bounds.npy"
    file.write_bytes(b"x" + file.read_bytes()[1:])
    with pytest.raises(InputError, match=r"train/bounds\.npy does not have the SHA-256 sum in meta\.json"):
        open_split(folder, "train").document_bounds()


def test_a_missing_shard_is_refused_by_name(folder):
    (folder / "heldout" / "00000.bin").unlink()
    with pytest.raises(InputError, match=r"heldout/00000\.bin is missing"):
        open_split(folder, "heldout")


def test_tokens_of_another_tokenizer_are_refused(folder):
    with pytest.raises(InputError, match="made with another tokenizer"):
        open_split(folder, "train", tokenizer_digest="0" * 64)


def test_a_folder_that_holds_no_tokens_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"is no token folder: it has no meta\.json"):
        open_split(tmp_path, "train")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "is not of the format 'modelcore-tokens'"),
        ({"version": 2}, "version 1"),
        ({"dtype": "object"}, "data type 'object'"),
        ({"surprise": 1}, "must have exactly the fields"),
        ({"splits": {"train": {}}}, "does not describe the split 'train'"),
    ],
)
def test_a_description_that_is_not_understood_is_refused(folder, change, message):
    file = folder / "meta.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(InputError, match=message):
        open_split(folder, "train")


def test_a_description_that_is_no_json_is_refused(folder):
    (folder / "meta.json").write_text("{")
    with pytest.raises(InputError, match=r"meta\.json is no JSON"):
        open_split(folder, "train")


def test_a_failure_half_way_leaves_the_earlier_folder_as_it_was(folder, tokenizer):
    def broken():
        yield "one document"
        raise InputError("the second one cannot be read")

    before = open_split(folder, "train").digest
    with pytest.raises(InputError, match="second one"):
        write_tokens(folder, tokenizer, train=broken(), heldout=HELDOUT)
    assert open_split(folder, "train").digest == before
    assert [path.name for path in folder.parent.iterdir()] == ["tokens"], "nothing is left lying about"


def test_a_split_without_a_document_is_refused(tmp_path, tokenizer):
    with pytest.raises(InputError, match="the heldout corpus holds no document"):
        write_tokens(tmp_path / "tokens", tokenizer, train=TRAIN, heldout=[])
    assert not (tmp_path / "tokens").exists()
