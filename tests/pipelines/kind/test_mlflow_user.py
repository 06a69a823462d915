"""The runs' user in MLflow, made on a real server with basic authentication."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.kind.installation import ensure_user
from pipelines.kind.programs import ProgramError

ADMIN = "administrators-password"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    (folder / "auth.ini").write_text(
        f"[mlflow]\ndefault_permission = READ\ndatabase_uri = sqlite:///{folder}/auth.db\nadmin_username = admin\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    environment = os.environ | {
        "MLFLOW_AUTH_CONFIG_PATH": str(folder / "auth.ini"),
        "MLFLOW_AUTH_ADMIN_PASSWORD": ADMIN,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "0" * 32,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_BACKEND_STORE_URI": f"sqlite:///{folder}/mlflow.db",
    }
    program = Path(sys.executable).with_name("mlflow")
    options = ["--app-name", "basic-auth", "--workers", "1", "--port", "0", "--artifacts-destination", str(folder)]
    process = subprocess.Popen(
        [program, "server", *options], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    with process:
        address = next(m[1] for line in process.stdout if (m := re.search(r"running on (http://[\d.:]+)", line)))
        yield address
        process.terminate()


@pytest.mark.slow
def test_it_is_made_given_another_password_and_may_track_runs(server, monkeypatch):
    from mlflow import MlflowClient

    for password in ("first-password-of-it", "second-password-of-it"):
        ensure_user(server, ADMIN, "pipelines", password)
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "pipelines")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)
        client = MlflowClient(server)
        client.create_run(client.create_experiment(password))


@pytest.mark.slow
def test_whoever_is_no_administrator_makes_none(server):
    with pytest.raises(ProgramError, match="MLflow does not make the user pipelines: HTTP Error 40"):
        ensure_user(server, "not-the-password", "pipelines", "a-password-of-its-own")
