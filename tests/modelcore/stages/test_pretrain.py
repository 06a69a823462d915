import json
import re
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from modelcore import storage
from modelcore.errors import InputError
from modelcore.models import load_model
from modelcore.stages.pretrain import pretrain
from modelcore.stages.stage import StageSummary
from modelcore.training.checkpoint_list import claim
from tests.servers.faulty_proxy import Lost

RECIPE = """
model: llama-nano
overrides: {n_layers: 2, d_model: 32, n_heads: 4, d_ff: 48, dropout: 0.1}
training:
  steps: 24
  batch_size: 4
  sequence_length: 16
  learning_rate: 3.0e-3
  optimizer: muon
  warmup_steps: 4
  eval_every: 10
  eval_tokens: 100
  checkpoint_every: 5
  log_every: 3
"""


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(RECIPE)
    return path


def weights(folder):
    return load_file(folder / "model.safetensors")


def equal(ours, theirs):
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_outcome_is_a_model_folder_with_tokenizer_recipe_and_curves(tokens, recipe, tmp_path):
    out = tmp_path / "run" / "checkpoint"
    summary = pretrain(tokens=tokens, out=out, preset=str(recipe), summary=tmp_path / "summary.json")

    model = load_model(out)
    assert model.config.vocab_size == 61
    assert model.config.context_length == 16
    assert (out / "tokenizer.model").read_bytes() == b"a tokenizer"
    training = json.loads((out / "training.json").read_text())
    assert training["recipe"]["training"]["steps"] == 24
    assert training["loss_curve"] == summary.series["loss_curve"]

    results = summary.results
    assert results["parameters"] == model.config.num_params()
    assert results["tokens"] == 24 * 4 * 16
    assert results["skipped_steps"] == 0
    assert 0 < results["heldout_bits_per_byte"] < 4
    assert results["train_seconds"] > 0
    assert summary.series["loss_curve"]["step"] == list(range(3, 25, 3))
    assert summary.series["heldout_curve"]["step"] == [10, 20, 24]
    assert StageSummary.load(tmp_path / "summary.json") == summary
    assert [path.name for path in out.parent.iterdir()] == ["checkpoint"]  # nothing is left beside it


def test_a_vocabulary_padded_for_speed_shows_nowhere(tokens, recipe, tmp_path):
    plain = pretrain(tokens=tokens, out=tmp_path / "plain", preset=str(recipe))
    recipe.write_text(RECIPE + "  pad_vocab_to_multiple: 64\n")
    padded = pretrain(tokens=tokens, out=tmp_path / "padded", preset=str(recipe))
    assert padded.results["parameters"] == plain.results["parameters"]
    assert padded.results["loss"] == pytest.approx(plain.results["loss"], abs=1e-4)
    assert load_model(tmp_path / "padded").config == load_model(tmp_path / "plain").config
    expected = weights(tmp_path / "plain")
    for name, tensor in weights(tmp_path / "padded").items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=1e-4)


def test_what_the_caller_gives_goes_before_the_recipe(tokens, recipe, tmp_path):
    pretrain(
        tokens=tokens,
        out=tmp_path / "out",
        preset=str(recipe),
        steps=12,
        batch_size=6,
        sequence_length=8,
        learning_rate=6e-3,
        optimizer="adamw",
        seed=5,
        device="cpu",
    )
    training = json.loads((tmp_path / "out" / "training.json").read_text())["recipe"]["training"]
    expected = {
        "steps": 12,
        "warmup_steps": 1,
        "batch_size": 6,
        "sequence_length": 8,
        "learning_rate": 6e-3,
        "muon_learning_rate": 0.04,
        "optimizer": "adamw",
        "seed": 5,
    }
    assert {key: training[key] for key in expected} == expected
    assert load_model(tmp_path / "out").config.context_length == 8


def test_the_settings_of_a_recipe_reach_the_run(tokens, recipe, tmp_path):
    """Each of them changes the model, but for recomputing, which must not."""
    settings = {
        "plain": "",
        "separate": "  separate_documents: true\n",
        "average": "  ema_decay: 0.9\n",
        "spikes": "  spike_deviations: 0.1\n",
        "recomputed": "  recompute: blocks\n",
    }
    found, results = {}, {}
    for name, line in settings.items():
        recipe.write_text(RECIPE + line)
        steps = 80 if name == "spikes" else 6  # the rule begins after 64
        results[name] = pretrain(tokens=tokens, out=tmp_path / name, preset=str(recipe), steps=steps).results
        found[name] = weights(tmp_path / name)
    assert equal(found["recomputed"], found["plain"])
    assert not equal(found["separate"], found["plain"])
    assert not equal(found["average"], found["plain"])
    assert results["spikes"]["spike_steps"] > 0
    assert {name: result["weights"] for name, result in results.items() if name in ("plain", "average")} == {
        "plain": "last",
        "average": "average",
    }
    assert json.loads((tmp_path / "average" / "training.json").read_text())["weights"] == "average"


def test_a_run_that_diverges_is_no_success_and_what_was_there_stays(tokens, recipe, tmp_path):
    pretrain(tokens=tokens, out=tmp_path / "out", preset=str(recipe), steps=2)
    before = weights(tmp_path / "out")
    with pytest.raises(InputError, match=r"training has diverged; a smaller learning_rate than 1e\+30"):
        pretrain(tokens=tokens, out=tmp_path / "out", preset=str(recipe), steps=2, learning_rate=1e30)
    assert equal(weights(tmp_path / "out"), before)


def test_the_seed_decides_the_outcome(tokens, recipe, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        pretrain(tokens=tokens, out=tmp_path / name, preset=str(recipe), steps=3, seed=seed)
    assert equal(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert not equal(weights(tmp_path / "a"), weights(tmp_path / "c"))


def test_checkpoints_at_an_address_of_ones_own_stay_and_are_gone_on_from(tokens, recipe, tmp_path):
    place = tmp_path / "checkpoints"
    for name in ("first", "second"):
        pretrain(tokens=tokens, out=tmp_path / name, preset=str(recipe), checkpoint_uri=str(place))
    assert sorted(path.name for path in place.iterdir()) == ["step-00000020", "step-00000024"]
    assert equal(weights(tmp_path / "first"), weights(tmp_path / "second"))


def test_a_storage_that_goes_away_does_not_end_training_and_the_same_call_finishes(
    tokens, recipe, tmp_path, s3_bucket, s3_proxy, capsys
):
    arguments = {"tokens": tokens, "preset": str(recipe), "checkpoint_uri": f"s3://{s3_bucket}/run"}

    def goes_away(request):
        s3_proxy.down |= request.method == "PUT" and "step-00000010" in request.path
        return False

    s3_proxy.fail(Lost(), when=goes_away)
    with pytest.raises(InputError, match=r"training is complete, but its last checkpoint is only in .*step-00000024"):
        pretrain(**arguments, out=tmp_path / "out")
    warned = re.findall(
        r"WARNING checkpoint (\S+) is on this machine alone: .*; training goes on", capsys.readouterr().err
    )
    assert warned == [f"step-{step:08d}" for step in (10, 15, 20, 24)]
    assert load_model(tmp_path / "out")
    s3_proxy.down = False
    pretrain(**arguments, out=tmp_path / "out")
    assert "resumes from" in capsys.readouterr().err
    assert storage.list_children(f"s3://{s3_bucket}/run") == ["step-00000005", "step-00000024"]
    assert not (tmp_path / ".out.training").exists()
    pretrain(tokens=tokens, preset=str(recipe), out=tmp_path / "undisturbed")
    assert equal(weights(tmp_path / "out"), weights(tmp_path / "undisturbed"))


@pytest.mark.slow
def test_a_checkpoint_that_is_on_this_machine_alone_goes_along_when_the_run_moves_to_shards(
    tokens, recipe, tmp_path, s3_bucket, s3_proxy
):
    place = f"s3://{s3_bucket}/run"
    arguments = {"tokens": tokens, "out": tmp_path / "out", "preset": str(recipe), "steps": 9, "checkpoint_uri": place}

    lost = []

    def goes_away(request):
        if not lost and request.method == "PUT" and "step-00000009" in request.path:
            lost.append(request)
            s3_proxy.down = True
        return False

    s3_proxy.fail(Lost(), when=goes_away)
    with pytest.raises(InputError, match="its last checkpoint is only in"):
        pretrain(**arguments, optimizer="adamw")
    s3_proxy.down = False
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "modelcore.cli", "pretrain", "--optimizer", "adamw", "--parallel", "fsdp"]
    for name, value in arguments.items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    launched = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"step-00000009 was on this machine alone: it is copied to {place}" in launched.stderr
    assert f"resumes from {place}/step-00000009" in launched.stderr
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".out")] == []


def test_local_checkpoints_are_where_unfinished_work_is_kept(tokens, recipe, tmp_path, monkeypatch, s3_bucket):
    monkeypatch.setenv("MODELCORE_WORK", str(tmp_path / "work"))
    (tmp_path / "work").mkdir()
    with claim(tmp_path / "work" / ".out.training"):
        with pytest.raises(
            InputError, match=r"another process is training with the checkpoints in .*/work/.out.training"
        ):
            pretrain(tokens=tokens, out=tmp_path / "out", preset=str(recipe), checkpoint_uri=f"s3://{s3_bucket}/run")


@pytest.mark.parametrize("place", ["out", "out/checkpoints"])
def test_checkpoints_are_not_put_where_the_model_would_replace_them(tokens, recipe, tmp_path, place):
    with pytest.raises(InputError, match=rf"checkpoint_uri .*{place} lies in .*out, which the model replaces"):
        pretrain(tokens=tokens, out=tmp_path / "out", preset=str(recipe), checkpoint_uri=str(tmp_path / place))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("place", ["", "checkpoints"])
def test_a_second_process_with_the_same_checkpoints_is_refused(tokens, recipe, tmp_path, place):
    uri = str(tmp_path / place) if place else ""
    arguments = {"tokens": tokens, "out": tmp_path / "out", "preset": str(recipe), "checkpoint_uri": uri}
    with claim(tmp_path / (place or ".out.training")):
        with pytest.raises(InputError, match=r"another process is training with the checkpoints in"):
            pretrain(**arguments)
    assert not (tmp_path / (place or ".out.training")).exists()
    pretrain(**arguments)


def test_checkpoints_of_another_run_are_refused_by_the_setting_that_differs(tokens, recipe, tmp_path):
    place = str(tmp_path / "checkpoints")
    pretrain(tokens=tokens, out=tmp_path / "out", preset=str(recipe), checkpoint_uri=place)
    before = weights(tmp_path / "out")
    with pytest.raises(InputError, match=r"is of another run: training\.seed was 0, is now 1"):
        pretrain(tokens=tokens, out=tmp_path / "out", preset=str(recipe), checkpoint_uri=place, seed=1)
    assert equal(weights(tmp_path / "out"), before)


def test_an_earlier_model_is_replaced(tokens, recipe, tmp_path):
    out = tmp_path / "out"
    pretrain(tokens=tokens, out=out, preset=str(recipe), steps=1)
    pretrain(tokens=tokens, out=out, preset=str(recipe), steps=2)
    assert json.loads((out / "training.json").read_text())["totals"]["steps"] == 2
    assert load_model(out)


@pytest.mark.slow
def test_torchrun_starts_processes_of_which_one_writes_and_speaks(tokens, recipe, tmp_path):
    """As a user types it; the model is that of a single process, but for the order in which sums are made."""
    recipe.write_text(RECIPE.replace("dropout: 0.1", "dropout: 0.0") + "  precision: fp32\n")
    out = tmp_path / "several" / "model"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = ["-m", "modelcore.cli", "pretrain", "--tokens", tokens, "--out", out, "--preset", recipe, "--steps", "9"]
    launched = subprocess.run(
        [*torchrun, *command],
        capture_output=True,
        text=True,
        check=True,
    )
    assert launched.stdout.count("out=") == launched.stdout.count("heldout_bits_per_byte=") == 1
    assert launched.stderr.count("stage=pretrain status=done") == 1
    assert [path.name for path in out.parent.iterdir()] == ["model"]
    pretrain(tokens=tokens, out=tmp_path / "single", preset=str(recipe), steps=9)
    theirs = weights(tmp_path / "single")
    for name, tensor in weights(out).items():
        torch.testing.assert_close(tensor, theirs[name], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"preset": "gpt5"}, "unknown recipe 'gpt5'; known: "),
        ({"batch_size": 4000}, "corpus is too small"),
        ({"sequence_length": 5000}, "corpus is too small"),
        ({"steps": -1}, "steps is -1"),
        ({"learning_rate": -1.0}, "learning_rate is -1.0"),
        ({"optimizer": "sgd"}, "optimizer is 'sgd'; it must be one of: adamw, muon"),
        ({"device": "cuda:9"}, "device 'cuda:9' cannot be used"),
        ({"device": "abacus"}, "device 'abacus' cannot be used"),
        ({"checkpoint_uri": "ftp://host/x"}, "ftp:// is not supported"),
    ],
)
def test_what_the_caller_gives_wrong_is_said_in_one_line_and_what_was_there_stays(
    tokens, recipe, tmp_path, arguments, said
):
    out = tmp_path / "out"
    out.mkdir()
    (out / "config.json").write_text('{"format": "modelcore", "of": "before"}')
    with pytest.raises(InputError) as caught:
        pretrain(**({"tokens": tokens, "out": out, "preset": str(recipe)} | arguments))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [path.read_text() for path in out.iterdir()] == ['{"format": "modelcore", "of": "before"}']


def test_a_missing_token_folder_is_named(tmp_path, recipe):
    with pytest.raises(InputError, match="nowhere"):
        pretrain(tokens=tmp_path / "nowhere", out=tmp_path / "out", preset=str(recipe))


def test_the_tokenizer_of_other_tokens_is_refused(tokens, recipe, tmp_path):
    (tokens / "tokenizer.model").write_bytes(b"another tokenizer")
    with pytest.raises(InputError, match="is not the tokenizer that made the tokens beside it"):
        pretrain(tokens=tokens, out=tmp_path / "out", preset=str(recipe))


def test_a_tracked_run_has_its_curves_step_by_step(tokens, recipe, tmp_path, mlflow_client):
    pretrain(tokens=tokens, out=tmp_path / "out", preset=str(recipe), steps=6)
    experiment = mlflow_client.search_experiments()[0]
    (run,) = mlflow_client.search_runs([experiment.experiment_id])
    for name in ("loss", "bits_per_byte", "learning_rate", "gradient_norm", "tokens_per_second", "mfu"):
        steps = [point.step for point in mlflow_client.get_metric_history(run.info.run_id, name)]
        assert {3, 6} <= set(steps), name
    assert run.data.params["recipe.steps"] == "6"
    assert run.data.params["model.d_model"] == "32"
    assert {file.path for file in mlflow_client.list_artifacts(run.info.run_id)} >= {"loss_curve.png"}


def test_prometheus_can_follow_it(tokens, recipe, tmp_path, monkeypatch):
    """Each point of the curves is read over HTTP at the moment it is reported."""
    from urllib.request import urlopen

    from modelcore.metrics_endpoint import MetricsEndpoint

    pages, show = [], MetricsEndpoint.show

    def show_and_read(endpoint, step, figures):
        show(endpoint, step, figures)
        with urlopen(f"http://127.0.0.1:{endpoint.port}/metrics", timeout=10) as answer:
            pages.append(answer.read().decode())

    monkeypatch.setenv("MODELCORE_METRICS_PORT", "0")
    monkeypatch.setattr(MetricsEndpoint, "show", show_and_read)
    summary = pretrain(tokens=tokens, out=tmp_path / "checkpoint", preset=str(recipe))
    read = [dict(re.findall(r'^(modelcore_\w+)\{stage="pretrain"\} (\S+)$', page, re.MULTILINE)) for page in pages]
    curve = summary.series["loss_curve"]
    for name in ("loss", "tokens_per_second", "mfu", "learning_rate", "gradient_norm", "bits_per_byte"):
        followed = {float(page["modelcore_step"]): float(page[f"modelcore_{name}"]) for page in read}
        assert [followed[step] for step in curve["step"]] == curve[name], name
    heldout = summary.series["heldout_curve"]
    assert float(read[-1]["modelcore_heldout_bits_per_byte"]) == heldout["bits_per_byte"][-1]
