import logging

import pytest
import torch

from modelcore import storage
from modelcore.training.mirror import pull_checkpoint, push_checkpoint
from modelcore.training.optimizer import Optimizer
from modelcore.training.parallel import Ranks
from modelcore.training.state import find_fault, latest_checkpoint, random_state, save_checkpoint


@pytest.fixture
def save(make_model, make_settings):
    model = make_model()
    parts = {"optimizer": Optimizer(model, make_settings())}
    random = random_state(torch.device("cpu"), Ranks())

    def save(folder, step):
        return save_checkpoint(folder, step, model, parts, identity={}, progress={}, random=random, keep=9)

    return save


@pytest.fixture(params=["folder", "s3"])
def address(request, tmp_path):
    if request.param == "folder":
        return str(tmp_path / "there")
    return f"s3://{request.getfixturevalue('s3_bucket')}/run/"


def test_a_pushed_checkpoint_comes_back_whole_and_only_the_newest_are_kept(save, tmp_path, address):
    for step in (1, 2, 3):
        push_checkpoint(save(tmp_path / "here", step), address, keep=2)
    elsewhere = tmp_path / "elsewhere"
    pull_checkpoint(address, elsewhere)
    assert latest_checkpoint(elsewhere).name == "step-00000003"
    assert find_fault(elsewhere / "step-00000003") is None
    assert storage.list_children(address) == ["step-00000002", "step-00000003"]


def test_where_nothing_was_pushed_nothing_comes(tmp_path, address):
    pull_checkpoint(address, tmp_path / "elsewhere")
    assert latest_checkpoint(tmp_path / "elsewhere") is None


def test_an_incomplete_checkpoint_is_passed_over_for_the_one_before(save, tmp_path, caplog):
    there = tmp_path / "there"
    for step in (1, 2):
        push_checkpoint(save(tmp_path / "here", step), str(there), keep=2)
    (there / "step-00000002" / "manifest.json").unlink()
    with caplog.at_level(logging.WARNING, "modelcore"):
        pull_checkpoint(str(there), tmp_path / "elsewhere")
    assert "step-00000002 is passed over: manifest.json is missing" in caplog.text
    assert latest_checkpoint(tmp_path / "elsewhere").name == "step-00000001"


def test_a_checkpoint_that_is_here_already_is_not_fetched_again(save, tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    push_checkpoint(save(here, 1), str(there), keep=2)
    before = (here / "step-00000001" / "manifest.json").stat().st_mtime_ns
    pull_checkpoint(str(there), here)
    assert (here / "step-00000001" / "manifest.json").stat().st_mtime_ns == before
