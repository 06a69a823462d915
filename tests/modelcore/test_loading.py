"""Importing what is heavy: quicker without the garbage collector, and counted apart."""

import gc

import pytest

from modelcore.loading import loading, loading_seconds


def test_garbage_is_not_collected_meanwhile_and_is_afterwards():
    with loading():
        assert not gc.isenabled()
        with loading():
            pass
        assert not gc.isenabled()
    assert gc.isenabled()


def test_who_had_switched_the_collector_off_finds_it_off():
    gc.disable()
    try:
        with loading():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_the_time_is_added_up_once_however_deep_and_also_where_an_import_fails(monkeypatch):
    clock = iter([10, 11, 30, 50, 55])  # the outer block, the inner one, the outer one's end; the failed import
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    before = loading_seconds()
    with loading(), loading():
        pass
    assert loading_seconds() - before == 30 - 10
    with pytest.raises(ModuleNotFoundError), loading():
        raise ModuleNotFoundError
    assert loading_seconds() - before == 20 + 55 - 50
