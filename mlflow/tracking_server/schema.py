"""The tables' form, which changes with MLflow's versions."""

from pathlib import Path

from tracking_server import database
from tracking_server.backup import backup
from tracking_server.errors import OperatorError, one_line
from tracking_server.settings import Stores


def require_current() -> None:
    """Makes sure that the database that :func:`tracking_server.database.export` named is new or of this MLflow's form.

    Raises:
        OperatorError: If it is another version's, or keeps text in an encoding that MLflow cannot use.
    """
    from mlflow.store.db.utils import _get_latest_schema_revision

    with database.connect() as connection:
        if (encoding := connection.info.parameter_status("server_encoding")) != "UTF8":
            raise OperatorError(
                f"the database keeps text as {encoding}; make one with ENCODING 'UTF8' TEMPLATE template0"
            )
        found = database.revisions(connection).get("alembic_version")
    if found not in (None, wanted := _get_latest_schema_revision()):
        raise OperatorError(
            f"the database is at revision {found} and this MLflow needs {wanted}; `upgrade` changes it, after a backup"
        )


def upgrade(stores: Stores, folder: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Backs the database up to ``folder`` and brings it to this MLflow's form; the server must be stopped.

    Returns:
        The revisions before and after.

    Raises:
        OperatorError: If the database is empty or in use, the backup cannot be made, or the change fails.
    """
    database.export(stores)
    with database.connect() as connection:
        database.require_alone(connection)
    before = backup(stores, folder, with_artifacts=False)["revisions"]
    import mlflow.db
    import mlflow.server.auth.db.cli

    try:
        # Called here, for as commands they would show the password to everybody who lists processes.
        mlflow.db.commands.main(["upgrade", stores.database], standalone_mode=False)
        mlflow.server.auth.db.cli.commands.main(["upgrade", "--url", stores.database], standalone_mode=False)
    except Exception as error:
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise OperatorError(f"the upgrade failed; `restore --replace {folder}` takes it back: {reason}") from error
    with database.connect() as connection:
        return before, database.revisions(connection)
