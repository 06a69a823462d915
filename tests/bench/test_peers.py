"""Peers that are no packages are found where the user says, or refused in one line."""

import pytest

from bench.peers import PEERS, find_peers
from modelcore.errors import InputError


@pytest.mark.parametrize("name", PEERS)
def test_a_folder_that_holds_what_is_needed_is_taken(tmp_path, name):
    for file in PEERS[name]:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    assert find_peers([f"{name}={tmp_path}"]) == {name: tmp_path}


@pytest.mark.parametrize("name", PEERS)
def test_a_folder_without_what_is_needed_is_one_clear_line(tmp_path, name):
    with pytest.raises(InputError) as error:
        find_peers([f"{name}={tmp_path}"])
    assert f"{name} is not in '{tmp_path}': there is no {PEERS[name][0]}" in str(error.value)
    assert "\n" not in str(error.value)


def test_an_empty_path_is_not_the_working_folder(tmp_path, monkeypatch):
    (tmp_path / "model.py").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="nanogpt is not in ''"):
        find_peers(["nanogpt="])


@pytest.mark.parametrize("text", ["nanogpt", "megatron=/x"])
def test_an_unknown_peer_is_refused_with_the_names_that_are_known(text):
    with pytest.raises(InputError, match="NAME one of: nanogpt, litgpt, gptfast, llamacpp"):
        find_peers([text])
