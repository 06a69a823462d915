"""What is tracked reaches a real MLflow server once, however often it is away, slow, or silent about what it did."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from modelcore import delivery, tracking
from modelcore.errors import InputError
from modelcore.relay import Relay, RelayedRun
from modelcore.stages.stage import Stage
from tests.modelcore.mlflow_server import Proxy, Server

STEPS = 30


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("server")).start()
    yield server
    server.kill()


@pytest.fixture
def proxy(server):
    proxy = Proxy(server.port)
    yield proxy
    proxy.release.set()
    proxy.refuse()


@pytest.fixture
def client(server, proxy, monkeypatch, request):
    """A client that speaks to the server directly; what is tested goes through the proxy."""
    import mlflow

    monkeypatch.setenv("MLFLOW_TRACKING_URI", proxy.url)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", request.node.name)
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "1000")
    monkeypatch.setattr(delivery, "FIRST_DELAY", 0.01)
    monkeypatch.setattr(delivery, "LONGEST_DELAY", 0.05)
    return mlflow.MlflowClient(server.url)


@pytest.fixture
def no_patience(monkeypatch):
    monkeypatch.setattr(delivery, "END_SECONDS", 0.1)
    monkeypatch.setattr(delivery, "STOP_SECONDS", 0.1)


def track(run, folder):
    """Every kind of call; returns nothing, for all of it is known to :func:`check`."""
    (folder / "docs").mkdir(exist_ok=True)
    (folder / "docs" / "index.html").write_text("<p>")
    run.log_params({"rate": 0.5, "steps": STEPS})
    for step in range(STEPS):
        run.log_metrics({"loss": 2.0, "bits": 1 / (1 + step)}, step)
    run.set_tags({"gate": "open", "colour": "green"})
    run.log_text("Grüße", "texts/hello.txt")
    run.log_chart("curve.png", "loss_curve", {"step": [1, 2], "loss": [2.0, 1.5]}, {"step": []})
    run.log_path(folder / "docs", "docs")
    run.log_dataset(name="novels", source="s3://b/novels", digest="ab" * 32, rows=3, context="training")


def runs_of(client, name):
    experiment = client.get_experiment_by_name(os.environ["MLFLOW_EXPERIMENT_NAME"])
    runs = client.search_runs([experiment.experiment_id]) if experiment is not None else []
    return [run for run in runs if run.info.run_name == name]


def check(client, name="demo", status="FINISHED"):
    """Asserts that all of :func:`track` is in the one run ``name``, each thing once."""
    (run,) = runs_of(client, name)
    run_id = run.info.run_id
    assert run.info.status == status
    assert (run.data.params["rate"], run.data.params["steps"]) == ("0.5", str(STEPS))
    for key, value in (("loss", lambda step: 2.0), ("bits", lambda step: 1 / (1 + step))):
        points = [(point.step, point.value) for point in client.get_metric_history(run_id, key)]
        assert sorted(points) == [(step, value(step)) for step in range(STEPS)]
    assert (run.data.tags["gate"], run.data.tags["colour"]) == ("open", "green")
    paths = {item.path for folder in (None, "texts", "docs") for item in client.list_artifacts(run_id, folder)}
    assert {"texts/hello.txt", "curve.png", "docs/index.html"} <= paths
    (dataset,) = run.inputs.dataset_inputs
    assert (dataset.dataset.name, dataset.tags[0].value) == ("novels", "training")
    assert run.info.start_time <= run.info.end_time
    return run


def once(what):
    """The first time that a request is made it comes to this end."""
    return lambda method, path, times: what if times == 0 else None


@pytest.mark.parametrize("what", ["cut", "lose", 503])
def test_when_every_request_fails_once_all_arrives_once(client, proxy, tmp_path, monkeypatch, what):
    """With ``lose`` the server has done what it does not answer to: what is then made twice must not be there twice."""
    monkeypatch.setenv("KFP_RUN_ID", "night")
    proxy.trouble = once(what)
    with Stage("demo", {}) as stage:
        track(stage.run, tmp_path)
    run = check(client)
    (parent,) = runs_of(client, "night")
    assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
    writes = [path for method, path in proxy.seen if method == "POST" and "search" not in path]
    assert len(writes) >= 2 * len(set(writes))


def test_a_run_that_a_request_makes_late_is_taken_away(client, proxy, tmp_path, monkeypatch):
    """The request was given up, made again, and then does arrive: no key of the database prevents that."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    proxy.trouble = lambda method, path, times: "hold" if path.endswith("runs/create") and times == 0 else None
    run = tracking.start_stage("demo")
    track(run, tmp_path)
    assert run.known_id(60)
    assert len(runs_of(client, "demo")) == 1
    proxy.release.set()
    for _ in range(3000):
        if len(runs_of(client, "demo")) == 2:
            break
        threading.Event().wait(0.01)
    run.end()
    assert check(client).info.run_id == run.run_id


def test_calls_return_while_the_server_keeps_silent(client, proxy, tmp_path):
    """The server answers none of the requests before all calls have returned."""
    proxy.trouble = lambda method, path, times: "hold" if path.endswith(("log-batch", "log-inputs")) else None
    with Relay():
        run = tracking.start_stage("demo")
        assert isinstance(run, RelayedRun)
        run.log_metrics({"first": 1.0})
        assert proxy.held.wait(60)
        track(run, tmp_path)
        assert not proxy.release.is_set()
        proxy.release.set()
        run.end()
    check(client)


def said(capsys):
    """The lines that were logged, but those on how a stage went, and that it takes a while to deliver all."""
    lines = capsys.readouterr().err.splitlines()
    return [line for line in lines if "stage=" not in line and "tracked calls wait for" not in line]


def test_a_server_that_is_away_at_the_start_gets_it_all_when_it_is_back(client, proxy, tmp_path, capsys):
    proxy.refuse()
    with Stage("demo", {}) as stage:
        assert stage.run.run_id is None
        track(stage.run, tmp_path)
        assert not runs_of(client, "demo")
        proxy.accept()
    check(client)
    away, back = said(capsys)
    assert "cannot be reached: [Errno 111] Connection refused; what is tracked is kept in" in away
    assert "MLflow answers again" in back


def test_what_a_stage_could_not_deliver_stays_beside_its_output_until_a_command_delivers_it(
    client, proxy, tmp_path, no_patience, capsys, monkeypatch
):
    from modelcore.cli import main
    from modelcore.stages.outputs import Output

    out = tmp_path / "out"
    proxy.refuse()
    with Stage("demo", {}, outputs={out: Output("thing", "a.txt")}) as stage:
        track(stage.run, tmp_path)
        out.mkdir()
        (out / "a.txt").write_text("a")
    assert [path.name for path in out.iterdir()] == ["a.txt"]
    left = tmp_path / ".out.tracking"
    assert f"stay in {left}, deliver them later with: modelcore deliver-tracking {left}" in said(capsys)[-1]
    assert main(["deliver-tracking", str(out)]) == 1
    assert not runs_of(client, "demo")
    proxy.accept()
    monkeypatch.delenv("MLFLOW_TRACKING_URI")  # the journal knows
    assert main(["deliver-tracking", str(out)]) == 0
    check(client)
    assert not (tmp_path / ".out.tracking").exists()
    assert main(["deliver-tracking", str(out)]) == 1


def test_in_a_pod_it_travels_inside_the_output(client, proxy, tmp_path, no_patience, monkeypatch):
    from modelcore.stages.outputs import Output

    monkeypatch.setenv("KFP_POD_NAME", "gpt-pretrain-1")
    out = tmp_path / "out"
    proxy.refuse()
    with Stage("demo", {}, outputs={out: Output("thing", "a.txt")}) as stage:
        track(stage.run, tmp_path)
        out.mkdir()
    proxy.accept()
    moved = out.rename(tmp_path / "downloaded")
    assert delivery.deliver_left(moved)[0] > STEPS
    check(client)
    assert not list(moved.iterdir())


@pytest.mark.parametrize(
    ("answer", "told"),
    [(401, "error code 401"), (403, "error code 403"), (404, "error code 404")],
    ids=["no password", "host not allowed", "another web server"],
)
def test_a_server_that_refuses_at_the_start_is_one_line_and_leaves_nothing(client, proxy, tmp_path, answer, told):
    from modelcore.stages.outputs import Output

    proxy.trouble = lambda method, path, times: answer
    with pytest.raises(InputError, match=rf"MLflow at {proxy.url} .* cannot be used: .*{told}") as caught:
        with Stage("demo", {}, outputs={tmp_path / "out": Output("thing", "a.txt")}):
            pass
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_an_experiment_that_was_deleted_is_said_at_once(client, proxy):
    client.delete_experiment(client.create_experiment(os.environ["MLFLOW_EXPERIMENT_NAME"]))
    with pytest.raises(InputError, match=r"cannot be used: .*must be in the 'active' state"), Stage("demo", {}):
        pass


def test_a_password_that_is_taken_away_in_the_middle_holds_the_calls_back(client, proxy, tmp_path, no_patience):
    run = tracking.start_stage("demo")
    proxy.trouble = lambda method, path, times: 401
    track(run, tmp_path)
    run.end()
    folder = run._sender.journal.folder
    with pytest.raises(InputError, match=r"error code 401.* tracked calls stay in"):
        delivery.deliver_left(folder)
    proxy.trouble = lambda method, path, times: None
    delivery.deliver_left(folder)
    check(client)


def test_a_call_that_the_server_refuses_is_left_out_and_said(client, proxy, tmp_path, capsys):
    with Stage("demo", {}) as stage:
        proxy.trouble = lambda method, path, times: "cut" if not proxy.release.is_set() else None
        stage.run.log_metrics({"a\nb": 1.0}, 1)  # together with those that follow
        track(stage.run, tmp_path)
        proxy.release.set()
    check(client)
    (line,) = [line for line in said(capsys) if "left out" in line]
    assert "MLflow refuses log_metrics, which is left out: INVALID_PARAMETER_VALUE: Invalid value" in line


def test_a_run_that_the_server_does_not_know_is_kept_and_said(client, proxy, tmp_path, no_patience):
    """As when the calls belong to another server, or somebody deleted the run."""
    run = tracking.start_stage("demo")
    run_id = run.known_id(30)
    proxy.trouble = lambda method, path, times: 503
    track(run, tmp_path)
    run.end()
    proxy.trouble = lambda method, path, times: None
    folder = run._sender.journal.folder
    client.delete_run(run_id)
    with pytest.raises(InputError, match=r"must be in the 'active' state.* tracked calls stay in"):
        delivery.deliver_left(folder)
    client.restore_run(run_id)
    lines = (folder / "journal.jsonl").read_text()
    (folder / "journal.jsonl").write_text(lines.replace(run_id, "0" * 32))
    with pytest.raises(InputError, match=r"not found.* tracked calls stay in"):
        delivery.deliver_left(folder)
    (folder / "journal.jsonl").write_text(lines)
    assert delivery.deliver_left(folder)[1] == 0
    check(client)


def test_what_a_deleted_run_had_left_does_not_keep_others_waiting(
    client, proxy, tmp_path, no_patience, monkeypatch, caplog
):
    monkeypatch.setenv("KFP_RUN_NAME", "monday")
    run = tracking.start_pipeline("monday", {}, tmp_path / "runs" / "monday")
    run_id = run.known_id(30)
    proxy.trouble = lambda method, path, times: 503
    run.log_metrics({"loss": 1.0}, 1)
    run.end()
    run.deliver(complete=True)
    proxy.trouble = lambda method, path, times: None
    client.delete_run(run_id)
    under_way = tracking.start_pipeline("tuesday", {}, tmp_path / "runs" / "tuesday")
    delivery.deliver_earlier(tmp_path / "runs")
    under_way.end()
    under_way.deliver(complete=True)
    assert not [line for line in caplog.messages if "the earlier run tuesday" in line]
    (line,) = [line for line in caplog.messages if "the earlier run monday" in line]
    assert "was not delivered" in line
    assert "tracked calls stay in" in line
    with pytest.raises(InputError, match=r"wait in .*monday.* which may be deleted"):
        tracking.start_pipeline("monday", {}, tmp_path / "runs" / "monday")


def test_an_entry_that_nobody_wrote_ends_the_delivery_with_one_line(client, proxy, tmp_path, no_patience):
    run = tracking.start_stage("demo")
    run.known_id(30)
    proxy.trouble = lambda method, path, times: 503
    run._tell("log_text", text="late", file="late.txt")
    run._tell("log_metrics", values=5, step=1)
    run.end()
    proxy.trouble = lambda method, path, times: None
    with pytest.raises(InputError, match=r"cannot be delivered: .* tracked calls stay in"):
        delivery.deliver_left(run._sender.journal.folder)


def test_what_a_killed_process_had_tracked_is_delivered_by_the_next(client, proxy, tmp_path, monkeypatch):
    """Killed with nothing delivered; then as if killed with all of it delivered, and no mark of that on the disk."""
    monkeypatch.setenv("KFP_RUN_ID", "night")
    monkeypatch.setenv("KFP_RUN_NAME", "monday")
    code = (
        "import sys; from pathlib import Path; from modelcore import tracking\n"
        "from tests.modelcore.test_delivery import track\n"
        "run = tracking.start_pipeline('night', {'lora': 4}, Path(sys.argv[1]))\n"
        "stage = run.start_stage('demo')\n"
        "track(stage, Path(sys.argv[1])); stage.end()\n"
        "print('tracked', flush=True); sys.stdin.read()\n"
    )
    proxy.refuse()
    process = subprocess.Popen(
        [sys.executable, "-c", code, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "tracked\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    file = tmp_path / delivery.FOLDER / "journal.jsonl"
    before = file.read_bytes()
    proxy.accept()
    delivery.deliver_left(tmp_path)
    check(client)

    file.parent.mkdir()
    file.write_bytes(before[:-5])  # and the last line torn
    again = tracking.start_pipeline("night", {"lora": 4}, tmp_path)
    assert again.known_id(60)
    again.end()
    again.deliver(complete=True)
    (run,) = runs_of(client, "demo")
    assert len(client.get_metric_history(run.info.run_id, "loss")) == STEPS
    (parent,) = runs_of(client, "monday")
    assert (parent.info.status, parent.data.params) == ("FINISHED", {"lora": "4"})
    assert not file.exists()


def test_the_next_run_delivers_what_earlier_ones_left_for_its_server(client, proxy, tmp_path, no_patience, monkeypatch):
    runs = tmp_path / "runs"
    proxy.refuse()
    for name in ("monday", "tuesday"):
        monkeypatch.setenv("KFP_RUN_NAME", name)
        run = tracking.start_pipeline(name, {"lora": 4}, runs / name)
        stage = run.start_stage(f"stage of {name}")
        track(stage, tmp_path)
        stage.end()
        run.end()
        run.deliver(complete=True)
    other = runs / "tuesday" / delivery.FOLDER / "journal.jsonl"
    other.write_text(other.read_text().replace(proxy.url, "http://127.0.0.1:1"))
    proxy.accept()
    monkeypatch.setattr(delivery, "END_SECONDS", 60)
    tracking.deliver_earlier(runs)
    check(client, "stage of monday")
    assert not (runs / "monday" / delivery.FOLDER).exists()
    assert other.exists()
    assert not runs_of(client, "tuesday")


def test_a_driver_that_starts_while_the_server_is_away_begins_the_pipeline(client, proxy, tmp_path, monkeypatch):
    monkeypatch.setenv("KFP_RUN_ID", "night")
    proxy.refuse()
    tracked = tracking.start_pipeline("night", {"lora": 4}, tmp_path)
    with Relay(tracked.start_stage), Stage("demo", {}) as stage:
        track(stage.run, tmp_path)
        assert stage.run.known_id(0) is None
    proxy.accept()
    assert tracked.known_id(60)
    tracked.end()
    tracked.deliver(complete=True)
    run = check(client)
    assert run.data.tags["mlflow.parentRunId"] == tracked.run_id
    assert client.get_run(tracked.run_id).info.status == "FINISHED"


def test_system_metrics_go_on_over_a_time_without_the_server(client, proxy, monkeypatch):
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.05")
    sampled = threading.Event()
    append = delivery.Sender.append

    def count(self, run, method, arguments):
        n = append(self, run, method, arguments)
        if method == "log_metrics" and arguments["step"] == 3:
            sampled.set()
        return n

    monkeypatch.setattr(delivery.Sender, "append", count)
    with Stage("demo", {}):
        proxy.refuse()
        assert sampled.wait(60)
        proxy.accept()
    (run,) = runs_of(client, "demo")
    steps = [point.step for point in client.get_metric_history(run.info.run_id, "system/cpu_utilization_percentage")]
    assert sorted(steps) == list(range(len(steps)))
    assert len(steps) >= 4


def test_a_journal_holds_no_password(client, proxy, tmp_path, no_patience, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", proxy.url.replace("//", "//me:tops3cret@"))
    proxy.refuse()
    tracked = tracking.start_pipeline("night", {}, tmp_path)
    tracked.end()
    tracked.deliver(complete=True)
    written = (tmp_path / delivery.FOLDER / "journal.jsonl").read_text()
    assert proxy.url in written
    assert "tops3cret" not in written


@pytest.fixture
def unregistered(tmp_path):
    """What register_model reads and writes, for a model that never comes into the registry."""
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "config.json").write_text("{}")
    (tmp_path / "evaluation.json").write_text('{"bits_per_byte": 2.0, "heldout_digest": "aa"}')
    return {
        "export": tmp_path / "export",
        "evaluation": tmp_path,
        "out": tmp_path / "registration.json",
        "model_name": "gpt",
    }


def test_the_last_stages_of_a_run_on_this_machine_do_without_a_registry_that_stays_away(
    client, proxy, tmp_path, unregistered, no_patience, monkeypatch, capsys
):
    from modelcore.stages import register_model

    monkeypatch.setattr(register_model, "PATIENCE_SECONDS", 0.1)
    proxy.refuse()
    tracked = tracking.start_pipeline("night", {}, tmp_path / "run")
    with Relay(tracked.start_stage):
        results = register_model.register_model(**unregistered).results
    tracked.end()
    tracked.deliver(complete=True)
    assert (results["version"], results["champion"]) == (None, False)
    assert '"version": null' in unregistered["out"].read_text()
    assert "model=gpt not registered: MLflow did not answer" in capsys.readouterr().err


def test_elsewhere_a_model_that_cannot_be_registered_is_an_error(client, proxy, unregistered, no_patience, monkeypatch):
    from modelcore.stages import register_model

    monkeypatch.setattr(register_model, "PATIENCE_SECONDS", 0.1)
    proxy.refuse()
    with pytest.raises(InputError, match=r"did not answer .*; `modelcore register` registers the model later"):
        register_model.register_model(**unregistered)
    assert not unregistered["out"].exists()
