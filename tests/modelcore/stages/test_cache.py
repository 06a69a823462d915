"""The cache of stage outputs goes by content, never by name or time."""

import pytest

from modelcore.files import content_digest
from modelcore.stages.cache import StageCache
from modelcore.stages.stage import Stage


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MODELCORE_CACHE", str(tmp_path / "cache"))
    return StageCache.from_environment()


def upper(source, out, **parameters):
    """A pure stage for the tests: writes its input in capitals, and counts how often it really works."""
    with Stage("upper", parameters) as stage:
        if not stage.restore({"out": out}, inputs=[source]):
            upper.worked += 1
            out.mkdir(parents=True)
            (out / "text").write_text(source.read_text().upper())
            stage.results["length"] = len(source.read_text())
            stage.keep({"out": out})
    return stage.summary


upper.worked = 0


def test_the_same_content_at_another_path_is_a_hit_with_the_same_output_and_results(tmp_path, cache):
    before = upper.worked
    for name in ("a", "b"):
        (tmp_path / name).write_text("hello")
    first = upper(tmp_path / "a", tmp_path / "run1" / "out", k=1)
    second = upper(tmp_path / "b", tmp_path / "run2" / "out", k=1)
    assert upper.worked == before + 1
    assert (tmp_path / "run2" / "out" / "text").read_text() == "HELLO"
    assert (first.cached, second.cached) == (False, True)
    assert second.results == first.results == {"length": 5}


@pytest.mark.parametrize("change", ["content", "parameter"])
def test_changed_content_at_the_same_path_or_another_parameter_is_a_miss(tmp_path, cache, change):
    source = tmp_path / "a"
    source.write_text("hello")
    upper(source, tmp_path / "run1", k=1)
    before = upper.worked
    if change == "content":
        source.write_text("other")
    upper(source, tmp_path / "run2", k=1 if change == "content" else 2)
    assert upper.worked == before + 1


def test_without_a_cache_every_run_works(tmp_path, monkeypatch):
    monkeypatch.delenv("MODELCORE_CACHE", raising=False)
    (tmp_path / "a").write_text("hello")
    before = upper.worked
    assert not upper(tmp_path / "a", tmp_path / "1").cached
    assert not upper(tmp_path / "a", tmp_path / "2").cached
    assert upper.worked == before + 2


def test_deleting_a_restored_output_leaves_the_cached_one(tmp_path, cache):
    source = tmp_path / "a"
    source.write_text("hello")
    upper(source, tmp_path / "run1")
    upper(source, tmp_path / "run2")
    (tmp_path / "run2" / "text").unlink()
    assert (tmp_path / "run1" / "text").exists()
    upper(source, tmp_path / "run3")
    assert (tmp_path / "run3" / "text").read_text() == "HELLO"


def test_the_digest_of_a_folder_covers_names_and_bytes(tmp_path):
    (tmp_path / "d" / "sub").mkdir(parents=True)
    (tmp_path / "d" / "sub" / "x").write_text("1")
    first = content_digest(tmp_path / "d")
    (tmp_path / "d" / "sub" / "x").rename(tmp_path / "d" / "sub" / "y")
    renamed = content_digest(tmp_path / "d")
    (tmp_path / "d" / "sub" / "y").write_text("2")
    assert len({first, renamed, content_digest(tmp_path / "d")}) == 3
