"""A run begins only where it has a folder of its own, and says in one line what stands in the way."""

import pytest

from modelcore.errors import InputError
from pipelines import run_folder

NAMES = (
    "",
    ".",
    "..",
    "a/b",
    "/tmp/x",
    "a b",
    "-x",
    "a;b",
    "$(x)",
    "ü",
    "x" * 101,
    "latest",
    "mlflow.db",
    "mlartifacts",
)


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_is_none_for_a_folder_is_refused(tmp_path, name):
    with pytest.raises(InputError, match=r"run name .* is not usable; take up to 100 letters"):
        run_folder.check(tmp_path, name)


@pytest.mark.parametrize("name", ["1", "v1.0", "Big_model-2", "x" * 100])
def test_letters_digits_and_a_few_marks_make_a_name(tmp_path, name):
    run_folder.check(tmp_path / "runs", name)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("place", ["runs", "runs/night", "runs/night/.work"])
def test_a_file_where_a_folder_belongs_is_named(tmp_path, place):
    file = tmp_path / place
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("x")
    with pytest.raises(InputError, match=rf"cannot be written: .*{place} is a file"):
        run_folder.check(tmp_path / "runs", "night")
    assert file.read_text() == "x"


def test_a_folder_of_other_things_is_left_alone(tmp_path):
    (tmp_path / "night" / "data" / "train").mkdir(parents=True)
    with pytest.raises(InputError, match="night holds something else than a run; it is left as it is"):
        run_folder.check(tmp_path, "night")


@pytest.mark.parametrize("left", [".work/kfp/x", ".work/lock", "pipeline.log"])
def test_what_a_stopped_run_left_is_gone_on_with(tmp_path, left):
    (tmp_path / "night" / left).parent.mkdir(parents=True)
    (tmp_path / "night" / left).touch()
    run_folder.check(tmp_path, "night")


def test_latest_may_dangle_but_must_be_a_link(tmp_path):
    (tmp_path / "latest").symlink_to("a-run-since-deleted")
    run_folder.check(tmp_path, "night")
    run_folder.point_latest(tmp_path, "night")
    assert (tmp_path / "latest").readlink().name == "night"
    (tmp_path / "latest").unlink()
    (tmp_path / "latest").mkdir()
    with pytest.raises(InputError, match="latest should be a link to the newest run and is none; move it away"):
        run_folder.check(tmp_path, "night")


def test_two_at_once_in_one_folder_do_not_work(tmp_path):
    with run_folder.only_one(tmp_path / "night"):
        with pytest.raises(InputError, match="run 'night' is under way in another process"):
            with run_folder.only_one(tmp_path / "night"):
                pass
    with run_folder.only_one(tmp_path / "night"):
        pass


def test_the_first_stage_that_left_no_summary_is_told(tmp_path):
    for stage in run_folder.STAGES:
        summary = tmp_path / "gpt-2026" / stage.replace("_", "-") / "summary"
        summary.parent.mkdir(parents=True)
        summary.touch()
    assert run_folder.first_without_summary(tmp_path) is None
    for stage in ("evaluate", "tokenize_corpus"):
        (tmp_path / "gpt-2026" / stage.replace("_", "-") / "summary").unlink()
    assert run_folder.first_without_summary(tmp_path) == "tokenize_corpus"
