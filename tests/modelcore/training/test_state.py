import json
import logging
import random
import re

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from modelcore.errors import InputError
from modelcore.training.checkpoint_files import find_fault
from modelcore.training.checkpoint_list import latest_checkpoint, remove_checkpoints
from modelcore.training.optimizer import Optimizer
from modelcore.training.parallel import Ranks
from modelcore.training.random_state import random_state, restore_random_state
from modelcore.training.state import load_checkpoint, save_checkpoint

CPU = torch.device("cpu")
IDENTITY = {"training": {"steps": 20, "seed": 1, "betas": [0.9, 0.95]}, "tokens": "abc"}


@pytest.fixture
def run(make_model, make_settings):
    """A model and an optimizer that have taken one step."""
    model = make_model()
    optimizer = Optimizer(model, make_settings(optimizer="muon"))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step(1.0, torch.tensor(1.0))
    return model, optimizer


def parts(model, optimizer):
    return model, {"optimizer": optimizer}


@pytest.fixture
def save(tmp_path, run):
    def save(step, keep=3):
        return save_checkpoint(
            tmp_path,
            step,
            *parts(*run),
            identity=IDENTITY,
            progress={"steps": step},
            random=random_state(CPU, Ranks()),
            keep=keep,
        )

    return save


@pytest.fixture
def fresh(make_model, make_settings):
    model = make_model()
    return model, Optimizer(model, make_settings(optimizer="muon"))


def test_a_checkpoint_is_four_files_and_the_head_is_stored_once(save, run):
    path = save(5)
    assert path.name == "step-00000005"
    assert {file.name for file in path.iterdir()} == {
        "model.safetensors",
        "optimizer.safetensors",
        "state.json",
        "manifest.json",
    }
    assert "head.weight" not in load_file(path / "model.safetensors")
    assert find_fault(path) is None


def test_weights_and_optimizer_state_come_back_bit_for_bit(save, run, fresh):
    state = load_checkpoint(save(5), *parts(*fresh), identity=IDENTITY)
    assert state["step"] == 5
    assert state["progress"] == {"steps": 5}
    for (name, before), after in zip(run[0].named_parameters(), fresh[0].parameters(), strict=True):
        assert torch.equal(before, after), name
    for name, tensor in run[1].state_tensors().items():
        assert torch.equal(fresh[1].state_tensors()[name], tensor), name


def test_random_generators_go_on_where_they_were(save, fresh):
    torch.manual_seed(3)
    random.seed(4)
    np.random.seed(5)
    path = save(5)

    def draw():
        return torch.rand(3).tolist(), random.random(), random.gauss(0, 1), np.random.rand(3).tolist()

    expected = draw()
    draw()
    state = load_checkpoint(path, *parts(*fresh), identity=IDENTITY)
    restore_random_state(state, seed=0, device=CPU, ranks=Ranks())
    assert draw() == expected


def test_the_newest_checkpoints_are_kept_and_older_ones_removed(save, tmp_path):
    for step in (1, 2, 10):
        save(step, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000002", "step-00000010"]
    assert latest_checkpoint(tmp_path).name == "step-00000010"


def test_without_checkpoints_there_is_none(tmp_path):
    assert latest_checkpoint(tmp_path) is None
    assert latest_checkpoint(tmp_path / "never-made") is None


def damage_truncated(path):
    content = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(content[:-1])


def damage_flipped(path):
    content = bytearray((path / "optimizer.safetensors").read_bytes())
    content[-1] ^= 1
    (path / "optimizer.safetensors").write_bytes(content)


def damage_missing(path):
    (path / "state.json").unlink()


def damage_no_manifest(path):
    (path / "manifest.json").unlink()


def damage_manifest(path):
    (path / "manifest.json").write_text("{")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (damage_truncated, "model.safetensors has .* bytes and should have"),
        (damage_flipped, "optimizer.safetensors does not have the SHA-256 sum"),
        (damage_missing, "state.json is missing"),
        (damage_no_manifest, "manifest.json is missing"),
        (damage_manifest, "manifest.json cannot be read"),
    ],
)
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(save, tmp_path, caplog, damage, said):
    save(5)
    damage(save(6))
    with caplog.at_level(logging.WARNING, "modelcore"):
        found = latest_checkpoint(tmp_path)
    assert found.name == "step-00000005"
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert re.search(f"step-00000006 is passed over: {said}", record.getMessage())


def same_json(a, b):
    try:
        return json.loads(a) == json.loads(b)
    except ValueError:
        return False


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_flipped_bit_and_any_truncation_of_any_file_is_found(save, tmp_path, data):
    path = tmp_path / "step-00000005" if (tmp_path / "step-00000005").is_dir() else save(5)
    file = path / data.draw(st.sampled_from(sorted(file.name for file in path.iterdir())))
    content = file.read_bytes()
    place = data.draw(st.integers(0, len(content) - 1))
    damaged = bytearray(content)
    damaged[place] ^= 1 << data.draw(st.integers(0, 7))
    for bad in (bytes(damaged), content[:place]):
        if file.name == "manifest.json" and same_json(bad, content):
            continue  # a space for a line end, or the last line end is missing: nothing is lost
        file.write_bytes(bad)
        fault = find_fault(path)
        assert fault is not None
        assert "\n" not in fault
    file.write_bytes(content)
    assert find_fault(path) is None


def test_where_every_checkpoint_is_damaged_the_run_is_not_begun_anew_in_silence(save, tmp_path):
    """Weeks may lie in them: somebody is to decide."""
    for step in (5, 6):
        damage_flipped(save(step))
    with pytest.raises(InputError) as caught:
        latest_checkpoint(tmp_path)
    assert re.search(
        r"every checkpoint in .* is damaged, step-00000006 because optimizer.safetensors does not have .*; "
        "put back a good one, or remove the folder to start anew",
        str(caught.value),
    )
    assert "\n" not in str(caught.value)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_checkpoint_whose_removal_or_upload_was_cut_short_is_none(save, tmp_path):
    """Its manifest goes first and comes last; a run that finds nothing else starts from the beginning."""
    damage_no_manifest(save(5))
    assert latest_checkpoint(tmp_path) is None


def test_a_file_that_the_manifest_does_not_know_is_no_fault_but_one_it_should_know_is(save):
    path = save(5)
    (path / "notes.txt").write_text("a good one")
    assert find_fault(path) is None
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest["model.safetensors"]
    (path / "manifest.json").write_text(json.dumps(manifest))
    assert find_fault(path) == "manifest.json does not list model.safetensors"


def test_damaged_checkpoints_ahead_do_not_push_out_good_ones(save, tmp_path):
    save(5, keep=1)
    damage_flipped(save(8, keep=2))
    save(6, keep=1)
    assert latest_checkpoint(tmp_path).name == "step-00000006"


@pytest.mark.parametrize("name", ["step-00000001", "step-99999995"])
def test_a_file_named_like_a_checkpoint_is_none_and_stays(save, tmp_path, name, caplog):
    (tmp_path / name).write_text("notes")
    assert latest_checkpoint(tmp_path) is None
    assert f"{name} is passed over: manifest.json is missing" in caplog.text
    for step in (5, 6):
        save(step, keep=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["step-00000006", name])


def test_checkpoints_are_removed_the_newest_last(save, tmp_path, monkeypatch):
    removed = []
    monkeypatch.setattr("modelcore.storage.delete_directory", lambda path: removed.append(path.name))
    for step in (1, 3, 2):
        save(step, keep=9)
    remove_checkpoints(tmp_path)
    assert removed == ["step-00000001", "step-00000002", "step-00000003"]
    assert not tmp_path.exists()


def test_a_rank_that_a_checkpoint_knows_nothing_of_draws_by_itself_and_always_the_same(save, fresh):
    state = load_checkpoint(save(5), *parts(*fresh), identity=IDENTITY)

    def draw(rank, state):
        torch.manual_seed(0)
        restore_random_state(state, seed=3, device=CPU, ranks=Ranks(rank=rank, size=3))
        return torch.rand(4).tolist()

    drawn = [draw(rank, state) for rank in range(3)] + [draw(rank, None) for rank in (1, 2)]
    assert len({tuple(values) for values in drawn}) == 5
    assert drawn == [draw(rank, state) for rank in range(3)] + [draw(rank, None) for rank in (1, 2)]


def test_what_a_killed_process_left_half_written_is_no_checkpoint_and_is_removed(save, tmp_path):
    save(5)
    rest = tmp_path / ".step-00000006.abcdefg_.tmp"
    rest.mkdir()
    (rest / "model.safetensors").write_bytes(b"half")
    assert latest_checkpoint(tmp_path).name == "step-00000005"
    assert not rest.exists()


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (
            {"training": {"steps": 20, "seed": 2, "betas": [0.9, 0.95]}, "tokens": "abc"},
            "training.seed was 1, is now 2",
        ),
        (
            {"training": {"steps": 30, "seed": 2, "betas": [0.9, 0.95]}, "tokens": "xyz"},
            "training.steps was 20, is now 30",
        ),
        ({**IDENTITY, "tokens": "xyz"}, "tokens was 'abc', is now 'xyz'"),
        ({**IDENTITY, "model": {"d_model": 8}}, "model.d_model was None, is now 8"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused_by_the_first_setting_that_differs(save, fresh, other, said):
    path = save(5)
    before = fresh[0].embedding.weight.clone()
    with pytest.raises(InputError) as caught:
        load_checkpoint(path, *parts(*fresh), identity=other)
    assert said in str(caught.value)
    assert str(path) in str(caught.value)
    assert torch.equal(fresh[0].embedding.weight, before)


def test_a_checkpoint_of_a_newer_version_is_refused(save, fresh):
    path = save(5)
    state = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps(state | {"version": 99}))
    with pytest.raises(InputError, match="version 99"):
        load_checkpoint(path, *parts(*fresh), identity=IDENTITY)
