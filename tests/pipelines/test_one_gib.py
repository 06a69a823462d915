"""The whole default pipeline, as `make pipeline` runs it, in 1 GiB of memory and the time of one processor.

Alone, and with the tracking server beside it, as on the free tier's machine: there the database and the storage are
elsewhere.
"""

import os
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest

from tests.control_groups import control_group
from tests.servers.postgres import Postgres
from tests.servers.tracking import TrackingServer

pytestmark = pytest.mark.slow

LIMIT = 1 << 30
MIB = 1 << 20
REPOSITORY = Path(__file__).parents[2]


class Peaks(threading.Thread):
    """Watches what a group holds, stage by stage, while a run's log says which one is at work."""

    def __init__(self, group, log):
        super().__init__(daemon=True)
        self.group, self.log, self.by_stage, self.ended = group, log, Counter(), threading.Event()

    def run(self):
        while not self.ended.wait(0.1):
            stage = self.stage()
            self.by_stage[stage] = max(self.by_stage[stage], self.group.held())

    def stage(self):
        text = self.log.read_text() if self.log.exists() else ""
        started = [line for line in text.splitlines() if line.endswith("status=started") and "stage=" in line]
        return started[-1].partition("stage=")[2].split()[0] if started else "start"

    def table(self):
        return "\n".join(f"{stage:<20}{held / MIB:8.0f} MiB" for stage, held in self.by_stage.items())


def run_default_pipeline(group, runs, *words, **environment):
    """Runs it in the group, and gives what it printed and the table of peaks."""
    command = [sys.executable, "-m", "pipelines.local", "--runs", runs, "--name", "small", *words]
    peaks = Peaks(group, runs / "small" / "pipeline.log")
    with open(runs / "output", "w+") as output:
        # As many threads as the group has processors, whatever this test process has.
        settings = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
        process = group.start(command, cwd=REPOSITORY, env=settings, stdout=output, stderr=output)
        peaks.start()
        status = process.wait()
        peaks.ended.set()
        peaks.join()
        output.seek(0)
        printed = output.read()
    assert status == 0, printed[-3000:]
    assert group.killed() == 0
    return printed, peaks.table()


def test_the_default_pipeline_fits(tmp_path, record_property):
    with control_group(memory=LIMIT, cores=1) as group:
        printed, table = run_default_pipeline(group, tmp_path)
    record_property("the default pipeline in 1 GiB and one processor, all its processes together", table)
    assert "registered    aic-gpt version 1" in printed
    assert (tmp_path / "small" / "export" / "model.safetensors").exists()
    assert table.count("MiB") == 10, table


def test_it_fits_with_the_tracking_server_beside_it(tmp_path, s3_server, record_property):
    import mlflow

    with Postgres() as postgres, control_group(memory=LIMIT, cores=1) as group:
        s3 = s3_server.environment
        s3["MLFLOW_S3_ENDPOINT_URL"] = s3.pop("AWS_ENDPOINT_URL")
        server = TrackingServer(postgres.make_database("small"), "s3://one-gib/artifacts", s3, tmp_path)
        made = server.run("create-bucket")
        assert made.returncode == 0, made.stderr
        user = {"MLFLOW_TRACKING_USERNAME": "admin", "MLFLOW_TRACKING_PASSWORD": server.password}
        server.start(group.start)
        try:
            # Memory is what counts here, and training has taken all of it long before its default number of steps.
            shorter = ("--steps", "120", "--lora-steps", "30")
            _, table = run_default_pipeline(group, tmp_path, *shorter, MLFLOW_TRACKING_URI=server.uri, **user)
            with pytest.MonkeyPatch.context() as patch:
                for name, value in user.items():
                    patch.setenv(name, value)
                client = mlflow.MlflowClient(server.uri)
                experiment = client.get_experiment_by_name("aic-ai-poc-gpt")
                runs = client.search_runs([experiment.experiment_id])
        finally:
            server.stop()
    record_property("the same, the tracking server included", table)
    assert len(runs) == 10
    assert {run.info.status for run in runs} == {"FINISHED"}
