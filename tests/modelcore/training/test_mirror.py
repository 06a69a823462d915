import logging

import pytest
import torch

from modelcore import storage
from modelcore.errors import InputError
from modelcore.s3.client import client
from modelcore.training.checkpoint_files import find_fault
from modelcore.training.checkpoint_list import latest_checkpoint
from modelcore.training.mirror import Mirror, pull_checkpoint, push_checkpoint, push_newest
from modelcore.training.optimizer import Optimizer
from modelcore.training.parallel import Ranks
from modelcore.training.random_state import random_state
from modelcore.training.state import save_checkpoint
from tests.servers.faulty_proxy import Answer


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


class TestSomethingElseThatIsNamedLikeACheckpoint:
    @pytest.fixture(params=["a file", "an empty folder", "a folder of something else"])
    def foreign(self, request, address, tmp_path):
        """It stands at the address, under the highest number."""
        name = "step-99999995"
        key = {"a file": name, "an empty folder": f"{name}/", "a folder of something else": f"{name}/cat.jpg"}
        bucket, _, prefix = address.removeprefix("s3://").partition("/")
        if storage.is_remote(address):  # whose consoles make empty folders by an empty object with a slash
            client().put_object(Bucket=bucket, Key=prefix + key[request.param], Body=b"")
        else:
            path = tmp_path / "there" / key[request.param]
            path.parent.mkdir(parents=True)
            path.mkdir() if request.param == "an empty folder" else path.write_bytes(b"")
        return name

    def test_is_named_and_passed_over(self, save, foreign, tmp_path, address, caplog):
        push_checkpoint(save(tmp_path / "here", 1), address, keep=2)
        with caplog.at_level(logging.WARNING, "modelcore"):
            pull_checkpoint(address, tmp_path / "elsewhere")
        if foreign in storage.list_children(address):  # an empty folder on S3 is not
            assert f"checkpoint {address.rstrip('/')}/{foreign} is passed over: manifest.json is missing" in caplog.text
        assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == ["step-00000001"]

    def test_pushes_no_checkpoint_out(self, save, foreign, tmp_path, address):
        for step in (1, 2):
            push_checkpoint(save(tmp_path / "here", step), address, keep=1)
        assert {*storage.list_children(address)} - {foreign} == {"step-00000002"}

    def test_stays_where_it_is_no_folder(self, save, tmp_path):
        (tmp_path / "there").mkdir()
        (tmp_path / "there" / "step-00000001").write_text("notes")
        push_checkpoint(save(tmp_path / "here", 2), str(tmp_path / "there"), keep=1)
        assert storage.list_children(tmp_path / "there") == ["step-00000001", "step-00000002"]


def test_a_checkpoint_that_is_here_already_is_not_fetched_again(save, tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    push_checkpoint(save(here, 1), str(there), keep=2)
    before = (here / "step-00000001" / "manifest.json").stat().st_mtime_ns
    pull_checkpoint(str(there), here)
    assert (here / "step-00000001" / "manifest.json").stat().st_mtime_ns == before


def test_an_older_copy_is_not_fetched_beside_a_newer_checkpoint(save, tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    push_checkpoint(save(here, 1), str(there), keep=2)
    storage.delete_directory(here / "step-00000001")
    save(here, 2)
    pull_checkpoint(str(there), here)
    assert [path.name for path in here.iterdir()] == ["step-00000002"]


class TestWhatIsHereAloneWhenARunMovesToTheAddress:
    def test_the_newest_complete_one_is_copied(self, save, tmp_path, address, caplog):
        here = tmp_path / "here"
        push_checkpoint(save(here, 1), address, keep=2)
        save(here, 2)
        (save(here, 3) / "state.json").unlink()
        with caplog.at_level(logging.INFO, "modelcore.training.mirror"):
            push_newest(here, address, keep=2)
            push_newest(here, address, keep=2)
        assert storage.list_children(address) == ["step-00000001", "step-00000002"]
        (record,) = (each for each in caplog.records if each.name == "modelcore.training.mirror")
        assert "checkpoint step-00000002 was on this machine alone: it is copied to" in record.getMessage()

    def test_what_is_there_stays_where_it_is_as_new(self, save, tmp_path, address):
        here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
        push_checkpoint(save(elsewhere, 2), address, keep=2)
        before = [(elsewhere / "step-00000002" / "state.json").read_text()]
        save(here, 1)
        save(here, 2)
        (here / "step-00000002" / "state.json").write_text("of another run")
        push_newest(here, address, keep=1)
        pull_checkpoint(address, tmp_path / "back")
        assert storage.list_children(address) == ["step-00000002"]
        assert [(tmp_path / "back" / "step-00000002" / "state.json").read_text()] == before

    def test_half_a_copy_there_is_none(self, save, tmp_path, address):
        push_checkpoint(save(tmp_path / "here", 2), address, keep=1)
        storage.delete_directory(address)
        half = save(tmp_path / "half", 2)
        (half / "manifest.json").unlink()
        storage.upload_directory(half, f"{address.rstrip('/')}/step-00000002")
        push_newest(tmp_path / "here", address, keep=1)
        pull_checkpoint(address, tmp_path / "back")
        assert find_fault(tmp_path / "back" / "step-00000002") is None

    def test_without_any_nothing_is_asked_for(self, tmp_path, address):
        push_newest(tmp_path / "none", address, keep=1)
        assert storage.list_children(address) == []


class TestAServerThatIsAwayForAWhile:
    @pytest.fixture
    def mirror(self, s3_bucket, s3_proxy):
        return Mirror(f"s3://{s3_bucket}/run", keep=2)

    def test_the_next_copy_makes_up_for_the_one_that_failed(self, save, mirror, s3_proxy, tmp_path, caplog):
        mirror.start(tmp_path)
        s3_proxy.down = True
        with caplog.at_level(logging.WARNING, "modelcore.training"):
            mirror.save(save(tmp_path, 1))
        (line,) = [record.getMessage() for record in caplog.records if record.name == "modelcore.training.mirror"]
        assert line.startswith("checkpoint step-00000001 is on this machine alone: s3://")
        assert line.endswith("training goes on")
        s3_proxy.down = False
        mirror.save(save(tmp_path, 2))
        mirror.finish(tmp_path)
        assert storage.list_children(mirror.uri) == ["step-00000002"]

    def test_the_last_copy_is_made_at_the_end_if_it_could_not_be_before(self, save, mirror, s3_proxy, tmp_path):
        s3_proxy.down = True
        mirror.save(save(tmp_path, 1))
        s3_proxy.down = False
        mirror.finish(tmp_path)
        assert storage.list_children(mirror.uri) == ["step-00000001"]

    def test_without_the_last_copy_the_end_is_an_error_and_a_later_start_makes_it(
        self, save, mirror, s3_proxy, tmp_path
    ):
        path = save(tmp_path, 1)
        s3_proxy.down = True
        mirror.save(path)
        with pytest.raises(
            InputError, match=rf"its last checkpoint is only in {path}: s3://.*; start again with the same"
        ):
            mirror.finish(tmp_path)
        s3_proxy.down = False
        again = Mirror(mirror.uri, keep=2)
        again.start(tmp_path)
        again.finish(tmp_path)
        pull_checkpoint(mirror.uri, tmp_path / "elsewhere")
        assert find_fault(tmp_path / "elsewhere" / path.name) is None

    def test_what_was_copied_is_not_copied_again_at_the_end(self, save, mirror, s3_proxy, tmp_path):
        mirror.save(save(tmp_path, 1))
        s3_proxy.forget()
        mirror.finish(tmp_path)
        assert s3_proxy.requests == []

    def test_a_copy_that_was_interrupted_goes_on(self, save, mirror, s3_proxy, tmp_path):
        path = save(tmp_path, 1)
        s3_proxy.fail(
            *[Answer(503, "SlowDown")] * 4, when=lambda request: "PUT" in request.method and "state" in request.path
        )
        mirror.save(path)
        s3_proxy.forget()
        mirror.finish(tmp_path)
        sent = [request.path.rpartition("/")[2] for request in s3_proxy.requests if request.method == "PUT"]
        assert sent == ["state.json", "manifest.json"]


def test_a_place_that_cannot_be_written_is_found_out_before_training(s3_bucket, s3_server, s3_environment, tmp_path):
    s3_environment.setenv("AWS_ACCESS_KEY_ID", s3_server.reader[0])
    s3_environment.setenv("AWS_SECRET_ACCESS_KEY", s3_server.reader[1])
    with pytest.raises(InputError, match=r"access refused \(AccessDenied\); check the credentials"):
        Mirror(f"s3://{s3_bucket}/run", keep=2).start(tmp_path)
