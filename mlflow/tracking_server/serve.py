"""Starts MLflow's server, and turns what cannot work into one line first."""

import os
import sys
from pathlib import Path
from typing import Any, NoReturn

from tracking_server import database, schema
from tracking_server.settings import DEFAULT_PORT, check_server_settings


def serve() -> None:
    """Becomes ``mlflow server``: one process, basic-auth, artifacts through the server.

    ``MLFLOW_HOST`` and ``MLFLOW_PORT`` may name another address than 0.0.0.0:5000.

    Raises:
        OperatorError: If a setting is missing or wrong, or the database cannot be used or is another version's.
    """
    database.export(check_server_settings())
    # Kept until this process becomes the server, which closes it: of several replicas that start at once one makes the
    # tables and the first user, and the others find them. MLflow's own lock is a file, which pods do not share.
    turn = database.connect()
    database.take_turn(turn)
    schema.require_current()
    os.environ["MLFLOW_AUTH_CONFIG_PATH"] = str(Path(__file__).with_name("basic_auth.ini"))
    os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"  # with it, 15 processes and 2 GiB
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    os.environ.setdefault("MLFLOW_HOST", "0.0.0.0")  # noqa: S104 (a container's own address)
    os.environ.setdefault("MLFLOW_PORT", str(DEFAULT_PORT))
    import mlflow.server
    from mlflow.cli import cli

    # MLflow's command makes the tables and the first user, starts the server and then only waits for it, with all it
    # has loaded in memory. Here it becomes the server: half the memory, and signals reach whom they are meant for.
    assert mlflow.server._exec_cmd  # noqa: S101 (a later MLflow may call it otherwise)
    mlflow.server._exec_cmd = _become
    # Addresses and secrets stay in the environment: everybody on the machine may read a command line.
    # Without the ASGI lifespan, which only clears away containers of an assistant that nobody uses here.
    cli.main(["server", "--app-name", "basic-auth", "--workers", "1", "--uvicorn-opts", "--lifespan off"], "mlflow")


def _become(command: list[str], *, extra_env: dict[str, str], **_: Any) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(command[0], command, os.environ | extra_env)  # noqa: S606 (no shell is wanted)
