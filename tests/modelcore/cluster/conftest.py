"""A cluster that is a stand-in, a workspace, and somebody who plays Kubeflow Trainer."""

import logging
import threading
from pathlib import Path

import pytest
import yaml

from modelcore.cluster.connection import Cluster
from modelcore.stages.pretrain_distributed import pretrain_distributed
from tests.servers.kubernetes_api import KubernetesAPI
from tests.servers.train_jobs import Trainer

OVERLAY = Path(__file__).parents[3] / "manifests" / "overlays" / "enterprise" / "trainer"
WORKFLOW = {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "metadata": {"name": "run-x"}}


def documents(file):
    return list(yaml.safe_load_all((OVERLAY / file).read_text(encoding="utf-8")))


@pytest.fixture
def api(tmp_path, monkeypatch):
    """The API server, with the overlay's runtime, the run's workflow, and the pod of the stage, which may do what the
    overlay's roles and KFP's allow."""
    with KubernetesAPI().running() as server:
        monkeypatch.setenv("KUBECONFIG", str(server.write_kubeconfig(tmp_path / "kubeconfig")))
        monkeypatch.setenv("KFP_POD_NAME", "run-x-pretrain-1")
        monkeypatch.setattr(Cluster, "first_wait", 0.01)
        monkeypatch.setattr(Cluster, "longest_wait", 0.05)
        server.create(documents("runtime.yaml")[0])
        workflow = server.create(dict(WORKFLOW))
        owner = {key: WORKFLOW[key] for key in ("apiVersion", "kind")} | {"name": "run-x", "controller": True}
        owner |= {"uid": workflow["metadata"]["uid"], "blockOwnerDeletion": True}
        labels = {"pipeline/runid": "0f8c2a6e-run"}
        task = {"workflows.argoproj.io/node-name": "run-x.root.pretrain-distributed.executor(0)"}
        metadata = {"name": "run-x-pretrain-1", "labels": labels, "annotations": task, "ownerReferences": [owner]}
        server.create({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "status": {"phase": "Running"}})
        server.rules = [rule for each in documents("pipeline-runner.yaml") for rule in each.get("rules", [])]
        yield server


@pytest.fixture
def trainer(api):
    return Trainer(api)


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    folder = tmp_path / "workspace"
    folder.mkdir()
    monkeypatch.setenv("MODELCORE_WORKSPACE", str(folder))
    return folder


@pytest.fixture
def tokens(tmp_path):
    folder = tmp_path / "tokens"
    folder.mkdir()
    (folder / "shard").write_text("tokens")
    return folder


@pytest.fixture
def train(workspace, tokens, tmp_path):
    """Runs a stage on small arguments."""

    def run(**changes):
        given = {"tokens": tokens, "out": tmp_path / "out", "preset": "llama-nano", "summary": tmp_path / "summary"}
        return pretrain_distributed(**given | changes)

    return run


@pytest.fixture
def meanwhile(api):
    """``meanwhile(script)`` runs ``script`` beside the test; what fails in it fails the test."""
    threads, errors = [], []

    def begin(script):
        def run():
            try:
                script()
            except BaseException as error:
                errors.append(error)
                api.down = False
                for job in api.all("TrainJob"):  # so that the stage does not wait for ever
                    api.delete("TrainJob", job["metadata"]["name"])

        threads.append(threading.Thread(target=run))
        threads[-1].start()

    yield begin
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


@pytest.fixture
def said(api):
    """``said()`` gives the messages that were logged; who waits for something at the server looks at it again."""
    records = []

    def emit(record):
        with api.changed:
            records.append(record)
            api.changed.notify_all()

    handler = logging.Handler()
    handler.emit = emit
    logger = logging.getLogger("modelcore")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield lambda: [record.getMessage() for record in records]
    logger.removeHandler(handler)


@pytest.fixture
def told(api, said):
    """``told(text)`` waits until a message with ``text`` was logged."""
    return lambda text: api.wait_for(lambda: any(text in line for line in said()))
