"""Sharded checkpoints, written by real processes and read by another number of them, or by one."""

import json
import logging
import os
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from modelcore import storage
from modelcore.convert import convert
from modelcore.errors import InputError
from modelcore.gptx import pad_vocabulary
from modelcore.stages.convert_checkpoint import convert_checkpoint
from modelcore.training import state as whole_state
from modelcore.training.averaging import WeightAverage
from modelcore.training.checkpoint_files import CheckpointFiles, find_fault
from modelcore.training.checkpoint_list import latest_checkpoint
from modelcore.training.mirror import pull_checkpoint
from modelcore.training.optimizer import Optimizer
from modelcore.training.parallel import Ranks
from modelcore.training.spikes import SpikeRule
from tests.modelcore.training.test_parallel import make_model, make_settings, on_ranks

IDENTITY = {"model": make_model().config.to_dict()}
CPU = torch.device("cpu")


def make_run(ranks, strategy, padding=1):
    """A model, laid over the ranks by ``strategy``, and what a checkpoint holds beside it, after a step."""
    model = pad_vocabulary(make_model(), padding)
    if strategy != "whole":
        mesh = init_device_mesh("cpu", (2, ranks.size // 2), mesh_dim_names=("replicate", "shard"))
        mesh = mesh["replicate", "shard"] if strategy == "hsdp" else init_device_mesh("cpu", (ranks.size,))
        for module in (*model.blocks, model):
            fully_shard(module, mesh=mesh)
    parts = {
        "optimizer": Optimizer(model, make_settings()),
        "average": WeightAverage(dict(model.named_parameters()), 0.9),
        "spikes": SpikeRule(3.0, CPU),
    }
    return model, parts


def step(parts, model):
    """Gives the parts something to hold: of each number in it, what it is tells where it is."""
    parts["spikes"].is_spike(torch.tensor(2.0), torch.tensor(3.0), torch.tensor(1.0))
    for number, parameter in enumerate(model.parameters()):
        count = torch.tensor(float(number))
        parts["optimizer"].adamw.state[parameter] = {
            "step": count,
            "exp_avg": parameter.detach() * 3,
            "exp_avg_sq": parameter.detach() * 5,
        }


def whole(tensor):
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def content(model, parts):
    """Everything that a checkpoint holds, as whole tensors without padding."""
    tensors = {"model": dict(model.named_parameters())} | {name: part.state_tensors() for name, part in parts.items()}
    found = {}
    for part, named in tensors.items():
        for name, tensor in named.items():
            tensor = whole(tensor.detach())
            padded = tensor.dim() == 2 and name.endswith(("embedding.weight", "head.weight"))
            found[f"{part}/{name}"] = (tensor[:61] if padded else tensor).clone()
    return found


def saved_by(ranks, place, scratch, strategy, padding, steps=(1,), environment=None):
    from modelcore.training.sharded_state import ShardedCheckpoints

    os.environ |= environment or {}
    model, parts = make_run(ranks, strategy, padding)
    step(parts, model)
    with ShardedCheckpoints(place, scratch, IDENTITY, 2) as checkpoints:
        for number in steps:
            checkpoints.save(number, model, parts, progress={"curve": [number]}, random={})
        checkpoints.finish()
    return content(model, parts) if ranks.first else content(model, parts) and None


def loaded_by(ranks, place, scratch, strategy, padding=1, environment=None):
    """Content after the load, state, and the warnings of this rank."""
    from modelcore.training.sharded_state import ShardedCheckpoints

    os.environ |= environment or {}
    warnings = []
    logger = logging.getLogger("modelcore.training")
    logger.handlers = [handler := logging.Handler()]
    handler.emit = lambda record: warnings.append(record.getMessage())
    model, parts = make_run(ranks, strategy, padding)
    for parameter in model.parameters():
        parameter.detach().zero_()
    if strategy == "whole":
        state = whole_state.resume(Path(place), model, parts, identity=IDENTITY, ranks=ranks)
    else:
        with ShardedCheckpoints(place, scratch, IDENTITY, 2) as checkpoints:
            state = checkpoints.resume(model, parts)
    return content(model, parts), state, warnings


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A folder with a checkpoint of two processes under FSDP, with a padded vocabulary, and what it holds."""
    folder = tmp_path_factory.mktemp("two")
    expected, _ = on_ranks(2, saved_by, str(folder), folder, "fsdp", 64, steps=(1, 2, 3))
    return folder, expected


# --- resharding -------------------------------------------------------------------------------------------------------


def test_each_process_writes_its_pieces_and_the_index_says_where_they_are(two):
    folder, expected = two
    path = folder / "step-00000003"
    assert sorted(file.name for file in path.iterdir()) == [
        "index.json",
        "manifest.json",
        "shard-00000-of-00002.safetensors",
        "shard-00001-of-00002.safetensors",
        "state.json",
        "whole.safetensors",
    ]
    described = json.loads((path / "index.json").read_text())["tensors"]
    assert described.keys() == expected.keys()
    assert described["model/embedding.weight"] == {
        "dtype": "float32",
        "shape": [61, 32],  # without the padding
        "pieces": [
            {
                "offset": [first, 0],
                "shape": [rows, 32],
                "file": f"shard-0000{rank}-of-00002.safetensors",
                "key": f"model/embedding.weight@{first},0",
            }
            for rank, first, rows in ((0, 0, 32), (1, 32, 29))
        ],
    }
    sizes = [(path / f"shard-0000{rank}-of-00002.safetensors").stat().st_size for rank in (0, 1)]
    assert max(sizes) < 0.6 * sum(sizes)


def test_the_newest_are_kept_and_nothing_else_is_left(two):
    folder, _ = two
    assert sorted(path.name for path in folder.iterdir()) == ["step-00000002", "step-00000003"]


@pytest.mark.parametrize(
    ("size", "strategy", "padding"),
    [(1, "whole", 1), (2, "fsdp", 128), pytest.param(4, "hsdp", 64, marks=pytest.mark.slow)],
)
def test_it_comes_back_bit_for_bit_on_another_number_of_processes(two, tmp_path, size, strategy, padding):
    folder, expected = two
    for found, state, warnings in on_ranks(size, loaded_by, str(folder), tmp_path, strategy, padding):
        assert_same(found, expected)
        assert (state["step"], state["progress"], warnings) == (3, {"curve": [3]}, warnings[:1])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(("size", "strategy"), [(4, "fsdp"), (4, "hsdp")])
def test_what_four_processes_wrote_is_read_by_two_and_by_one(tmp_path, size, strategy):
    expected, *_ = on_ranks(size, saved_by, str(tmp_path), tmp_path, strategy, 1)
    for found, _, _ in on_ranks(2, loaded_by, str(tmp_path), tmp_path, "fsdp") + on_ranks(
        1, loaded_by, str(tmp_path), tmp_path, "whole"
    ):
        assert_same(found, expected)


def test_a_run_in_pieces_resumes_what_one_process_wrote(tmp_path):
    model, parts = make_run(Ranks(), "whole", 64)
    step(parts, model)
    whole_state.save_checkpoint(tmp_path, 5, model, parts, identity=IDENTITY, progress={}, random={}, keep=1)
    for found, state, _ in on_ranks(2, loaded_by, str(tmp_path), tmp_path, "fsdp"):
        assert_same(found, content(model, parts))
        assert state["step"] == 5


def test_a_checkpoint_of_another_run_is_refused_by_the_name_of_what_differs(two, tmp_path):
    folder, _ = two
    model, parts = make_run(Ranks(), "whole")
    with pytest.raises(InputError, match=r"of another run: model.n_layers was 2, is now 3"):
        whole_state.resume(folder, model, parts, identity={"model": IDENTITY["model"] | {"n_layers": 3}}, ranks=Ranks())


def test_torchs_own_planner_loads_it_through_our_reader(two, tmp_path):
    """The format is one of torch.distributed.checkpoint: any planner of it reads our storage."""
    import torch.distributed.checkpoint as dcp

    from modelcore.training.sharded_storage import Reader

    folder, expected = two
    state = {name: torch.zeros_like(tensor) for name, tensor in expected.items()}
    files = CheckpointFiles(str(folder / "step-00000003"), tmp_path)
    with pytest.warns(UserWarning, match="single process"):
        dcp.load(state, storage_reader=Reader(files))
    assert_same(state, expected)


# --- conversion -------------------------------------------------------------------------------------------------------


def weights(folder):
    return (folder / "model.safetensors").read_bytes()


def assert_is_the_average(folder, expected):
    found = load_file(folder / "model.safetensors")
    assert found.keys() == {name.removeprefix("average/") for name in expected if name.startswith("average/")}
    for name, tensor in found.items():
        assert torch.equal(tensor, expected[f"average/{name}"]), name


def test_it_is_converted_to_one_file_without_a_process_group(two, tmp_path):
    folder, expected = two
    done = convert(folder / "step-00000003", tmp_path / "native", "native")
    assert (done.source_format, done.files) == ("checkpoint", ("config.json", "model.safetensors"))
    assert_is_the_average(tmp_path / "native", expected)
    assert convert(folder / "step-00000003", tmp_path / "hf", "huggingface").verified_by == "transformers"


def test_of_a_runs_checkpoints_the_newest_complete_one_is_converted(copied, tmp_path, caplog):
    model, parts = make_run(Ranks(), "whole")
    whole_state.save_checkpoint(copied, 4, model, parts, identity=IDENTITY, progress={}, random={}, keep=9)
    (copied / "step-00000004" / "manifest.json").unlink()  # as one that is being removed
    with caplog.at_level(logging.INFO, "modelcore.convert"):
        assert convert(copied, tmp_path / "native", "native").source_format == "checkpoint"
    convert(copied / "step-00000003", tmp_path / "named", "native")
    assert weights(tmp_path / "native") == weights(tmp_path / "named")
    (line,) = (record.getMessage() for record in caplog.records if "newest" in record.getMessage())
    assert line == f"{copied} holds the checkpoints of a run: the newest complete one is step-00000003"


def test_where_no_checkpoint_is_complete_nothing_is_converted(copied, tmp_path):
    for path in copied.iterdir():
        (path / "manifest.json").unlink()
    with pytest.raises(InputError, match=r"no checkpoint in .* is complete; step-00000003, step-00000002 cannot be"):
        convert(copied, tmp_path / "native", "native")


def test_what_is_damaged_is_not_converted(copied, tmp_path):
    flip(copied / "step-00000003" / "shard-00001-of-00002.safetensors")
    with pytest.raises(InputError, match=r"step-00000003 is damaged: shard-00001-of-00002.safetensors does"):
        convert(copied / "step-00000003", tmp_path / "native", "native")


# --- damage -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def copied(two, tmp_path):
    for name in ("step-00000002", "step-00000003"):
        storage.upload_directory(two[0] / name, tmp_path / "run" / name)
    return tmp_path / "run"


def flip(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


DAMAGES = {
    "shard-00001-of-00002.safetensors does not have the SHA-256 sum in manifest.json": lambda path: flip(
        path / "shard-00001-of-00002.safetensors"
    ),
    "shard-00000-of-00002.safetensors is missing": lambda path: (path / "shard-00000-of-00002.safetensors").unlink(),
    "manifest.json is missing": lambda path: (path / "manifest.json").unlink(),
}


@pytest.mark.parametrize(
    "fault", [*list(DAMAGES)[:1], *(pytest.param(f, marks=pytest.mark.slow) for f in list(DAMAGES)[1:])]
)
def test_a_damaged_checkpoint_is_passed_over_by_all_and_named_by_the_first(copied, fault):
    DAMAGES[fault](copied / "step-00000003")
    first, second = on_ranks(2, loaded_by, str(copied), copied, "fsdp")
    assert first[1]["step"] == second[1]["step"] == 2
    assert first[2][0] == f"checkpoint {copied}/step-00000003 is passed over: {fault}"
    assert second[2] == []


@pytest.mark.parametrize("fault", DAMAGES)
def test_one_process_passes_over_what_is_damaged_too(copied, fault):
    DAMAGES[fault](copied / "step-00000003")
    assert find_fault(copied / "step-00000003") == fault
    ((_, state, _),) = on_ranks(1, loaded_by, str(copied), copied, "whole")
    assert state["step"] == 2


def refused(ranks, place, scratch):
    with pytest.raises(InputError) as raised:
        loaded_by(ranks, place, scratch, "fsdp")
    return str(raised.value)


def test_where_all_are_damaged_no_process_starts_anew(copied):
    for path in copied.iterdir():
        flip(path / "shard-00001-of-00002.safetensors")
    said = on_ranks(2, refused, str(copied), copied)
    assert said[0] == said[1]
    assert said[0].startswith(f"every checkpoint in {copied} is damaged, step-00000003 because shard-00001")


# --- behind the steps -------------------------------------------------------------------------------------------------


def changed_while_it_is_written(ranks, place):
    """The writing begins when the weights have long changed: what is saved is what they were."""
    from modelcore.training import sharded_storage
    from modelcore.training.sharded_state import ShardedCheckpoints

    model, parts = make_run(ranks, "fsdp")
    step(parts, model)
    expected, go_on = content(model, parts), threading.Event()
    save_file = sharded_storage.save_file
    sharded_storage.save_file = lambda *arguments: go_on.wait() and save_file(*arguments)
    try:
        with ShardedCheckpoints(place, Path(place), IDENTITY, 2) as checkpoints:
            checkpoints.save(1, model, parts, progress={}, random={})
            for parameter in model.parameters():
                parameter.detach().zero_()
            nothing_yet = not Path(place, "step-00000001").exists()
            go_on.set()
            checkpoints.finish()
    finally:
        sharded_storage.save_file = save_file
    return expected, nothing_yet


def test_a_step_waits_for_the_copy_alone(tmp_path):
    (expected, nothing_yet), _ = on_ranks(2, changed_while_it_is_written, str(tmp_path))
    assert nothing_yet
    ((found, _, _),) = on_ranks(1, loaded_by, str(tmp_path), tmp_path, "whole")
    assert_same(found, expected)


def failing_on_the_second_rank(ranks, place, failing):
    from modelcore.training import sharded_storage
    from modelcore.training.sharded_state import ShardedCheckpoints

    model, parts = make_run(ranks, "fsdp")
    warnings, save_file = [], sharded_storage.save_file
    logger = logging.getLogger("modelcore.training.sharded_state")
    logger.handlers = [handler := logging.Handler()]
    handler.emit = lambda record: warnings.append(record.getMessage())

    def maybe_full(tensors, path):
        if ranks.rank == 1 and path.parent.name in {f".step-0000000{number}.sharding.tmp" for number in failing}:
            raise OSError(28, "No space left on device")
        save_file(tensors, path)

    sharded_storage.save_file, error = maybe_full, ""
    try:
        with ShardedCheckpoints(place, Path(place), IDENTITY, 2) as checkpoints:
            for number in (1, 2, 3):
                checkpoints.save(number, model, parts, progress={}, random={})
            checkpoints.finish()
    except InputError as raised:
        error = str(raised)
    finally:
        sharded_storage.save_file = save_file
    return error, [warning for warning in warnings if "could not" in warning]


def test_one_that_cannot_be_written_is_told_in_one_line_and_the_next_makes_up_for_it(tmp_path):
    results = on_ranks(2, failing_on_the_second_rank, str(tmp_path), (2,))
    line = (
        f"checkpoint {tmp_path}/step-00000002 could not be written: [Errno 28] No space left on device (rank 1); "
        "training goes on"
    )
    assert results == [("", [line]), ("", [])]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000001", "step-00000003"]
    assert find_fault(tmp_path / "step-00000003") is None


def test_without_the_last_one_the_end_is_an_error_on_all(tmp_path):
    (error, _), (other, _) = on_ranks(2, failing_on_the_second_rank, str(tmp_path), (3,))
    assert error == other
    assert error.startswith("training is complete, but its last checkpoint step-00000003 could not be written: [Errno")
    assert latest_checkpoint(tmp_path).name == "step-00000002"


def refused_to_remove(ranks, place):
    from modelcore import storage
    from modelcore.training.sharded_state import ShardedCheckpoints

    def refuse(address):
        raise InputError(f"{address} cannot be removed")

    model, parts = make_run(ranks, "fsdp")
    delete, storage.delete_directory = storage.delete_directory, refuse
    try:
        with ShardedCheckpoints(place, Path(place), IDENTITY, 1) as checkpoints:
            for number in (1, 2):
                checkpoints.save(number, model, parts, progress={}, random={})
            checkpoints.finish()
    finally:
        storage.delete_directory = delete


def test_old_ones_that_cannot_be_removed_take_no_new_one_with_them(tmp_path):
    on_ranks(2, refused_to_remove, str(tmp_path))
    assert latest_checkpoint(tmp_path).name == "step-00000002"
    assert find_fault(tmp_path / "step-00000002") is None


# --- S3 ---------------------------------------------------------------------------------------------------------------


def test_on_s3_each_sends_its_own_files_and_fetches_what_it_needs(tmp_path, s3_bucket, s3_server):
    place = f"s3://{s3_bucket}/run"
    environment = dict(s3_server.environment)
    expected, _ = on_ranks(2, saved_by, place, tmp_path, "fsdp", 1, steps=(1, 2, 3), environment=environment)
    assert storage.list_children(place) == ["step-00000002", "step-00000003"]
    assert list(tmp_path.iterdir()) == []
    for found, state, _ in on_ranks(2, loaded_by, place, tmp_path, "fsdp", environment=environment):
        assert_same(found, expected)
        assert state["step"] == 3
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_what_two_processes_sent_to_s3_is_resumed_by_four_and_by_one(tmp_path, s3_bucket, s3_server):
    place = f"s3://{s3_bucket}/run"
    environment = dict(s3_server.environment)
    expected, _ = on_ranks(2, saved_by, place, tmp_path, "fsdp", 1, environment=environment)
    for found, _, _ in on_ranks(4, loaded_by, place, tmp_path, "fsdp", environment=environment):
        assert_same(found, expected)
    for source in (place, f"{place}/step-00000001"):
        convert_checkpoint(checkpoint=source, out=tmp_path / "native", to="native")
        assert_is_the_average(tmp_path / "native", expected)
    pull_checkpoint(place, tmp_path)
    ((found, _, _),) = on_ranks(1, loaded_by, str(tmp_path), tmp_path, "whole")
    assert_same(found, expected)
