"""A database of an older MLflow is refused with what to do: `upgrade`, after a backup that leads back."""

import psycopg
import pytest

from tests.mlflow.conftest import as_user
from tests.mlflow.test_server import SEARCH, status

pytestmark = pytest.mark.slow

# Some migrations before the newest one, in MLflow's own history of its tables.
MIGRATIONS_BACK = 5


def make_old_database(uri):
    """MLflow's tables as an older version made them, with a run in them; returns the revision."""
    import sqlalchemy
    from alembic import command
    from alembic.script import ScriptDirectory
    from mlflow.store.db.utils import _get_alembic_config
    from mlflow.store.tracking.dbmodels.initial_models import Base

    config = _get_alembic_config(uri)
    history = [script.revision for script in ScriptDirectory.from_config(config).walk_revisions()]
    engine = sqlalchemy.create_engine(uri)
    Base.metadata.create_all(engine)
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, history[MIGRATIONS_BACK])
    with engine.begin() as connection:
        connection.execute(
            sqlalchemy.text(
                "INSERT INTO experiments (name, artifact_location, lifecycle_stage)"
                " VALUES ('old', 'mlflow-artifacts:/0', 'active')"
            )
        )
    engine.dispose()
    return history[MIGRATIONS_BACK]


def revision(uri):
    with psycopg.connect(uri) as connection:
        return connection.execute("SELECT version_num FROM alembic_version").fetchone()[0]


def test_an_old_database_is_upgraded_after_a_backup_and_can_be_taken_back(new_server, tmp_path, monkeypatch):
    from mlflow.store.db.utils import _get_latest_schema_revision

    import mlflow

    server = new_server("upgraded")
    uri = server.environment["MLFLOW_BACKEND_STORE_URI"]
    assert server.run("create-bucket").returncode == 0
    old, new = make_old_database(uri), _get_latest_schema_revision()
    assert old != new

    refused = server.run("serve")
    assert (refused.returncode, refused.stderr) == (
        1,
        f"error: the database is at revision {old} and this MLflow needs {new}; `upgrade` changes it, after a backup\n",
    )
    upgraded = server.run("upgrade", tmp_path / "before")
    assert (upgraded.returncode, upgraded.stdout) == (0, f"backed up to {tmp_path / 'before'}; upgraded\n"), (
        upgraded.stderr
    )
    assert revision(uri) == new
    with server:
        as_user(monkeypatch, server, "admin", server.password)
        assert mlflow.MlflowClient().get_experiment_by_name("old") is not None
        assert status(server, SEARCH, ("admin", server.password)) == 200
        assert "stop the server first" in server.run("upgrade", tmp_path / "running").stderr
        assert not (tmp_path / "running").exists()

    back = server.run("restore", tmp_path / "before", "--replace")
    assert back.returncode == 0, back.stderr
    assert revision(uri) == old
    again = server.run("upgrade", tmp_path / "again")
    assert again.returncode == 0, again.stderr
    assert revision(uri) == new
    assert server.run("upgrade", tmp_path / "thrice").stdout.endswith("the database was up to date\n")
