"""The command line: ``python -m tracking_server serve``. Each command loads only what it needs."""

import argparse
import os
import sys
import warnings
from pathlib import Path

from tracking_server.errors import OperatorError


def main(arguments: list[str] | None = None) -> None:
    """Runs one command; what is the operator's to mend is one line and exit status 1."""
    given = _parser().parse_args(arguments)
    if not sys.warnoptions:  # what libraries warn each other of is nothing an operator can mend
        warnings.simplefilter("ignore")
        os.environ.setdefault("PYTHONWARNINGS", "ignore")
    try:
        _run(given)
    except OperatorError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("error: interrupted")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tracking_server", description="The tracking server and its operator's tools")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("serve", help="start the server")
    commands.add_parser("health", help="tell whether the server in this container answers")
    commands.add_parser("create-bucket", help="make the artifacts' bucket, if there is none")

    backup = commands.add_parser("backup", help="copy database and artifacts to a new folder")
    backup.add_argument("folder", type=Path)
    backup.add_argument("--database-only", action="store_true", help="leave the artifacts out")
    restore = commands.add_parser("restore", help="put a backup in place; stop the server first")
    restore.add_argument("folder", type=Path)
    restore.add_argument("--replace", action="store_true", help="replace what the database holds")
    upgrade = commands.add_parser("upgrade", help="bring the database to this MLflow's form; stop the server first")
    upgrade.add_argument("folder", type=Path, help="where the database is backed up to before")

    user = commands.add_parser("user", help="users and what they may do")
    does = user.add_subparsers(dest="does", required=True, metavar="WHAT")
    add = does.add_parser("add", help="make a user; the password is asked for, or read from standard input")
    add.add_argument("name")
    add.add_argument("--admin", action="store_true", help="who may do everything")
    for name, text in (("password", "change a password"), ("delete", "delete a user; their runs stay")):
        does.add_parser(name, help=text).add_argument("name")
    grant = does.add_parser("grant", help="set what a user may do with an experiment or a registered model")
    grant.add_argument("name")
    grant.add_argument("kind", choices=("experiment", "model"))
    grant.add_argument("thing", help="the experiment's or the model's name")
    grant.add_argument("permission", choices=("READ", "USE", "EDIT", "MANAGE", "NO_PERMISSIONS"))
    return parser


def _run(given: argparse.Namespace) -> None:
    from tracking_server.settings import Stores

    match given.command:
        case "serve":
            from tracking_server.serve import serve

            serve()
        case "health":
            from tracking_server.health import check_health

            check_health()
        case "create-bucket":
            from tracking_server.artifacts import create_bucket

            stores = Stores.from_environment()
            print(f"bucket {stores.bucket}: {'made' if create_bucket(stores) else 'was there'}")
        case "backup":
            from tracking_server.backup import backup

            made = backup(Stores.from_environment(), given.folder, with_artifacts=not given.database_only)
            print(f"{given.folder}: the database and {_artifacts(made['artifacts'])}")
        case "restore":
            from tracking_server.backup import restore

            made = restore(Stores.from_environment(), given.folder, replace=given.replace)
            print(f"restored what was backed up at {made['made']}: the database and {_artifacts(made['artifacts'])}")
        case "upgrade":
            from tracking_server.schema import upgrade

            before, after = upgrade(Stores.from_environment(), given.folder)
            print(f"backed up to {given.folder}; " + ("upgraded" if before != after else "the database was up to date"))
        case "user":
            _run_user(given)


def _artifacts(count: int | None) -> str:
    return "no artifacts" if count is None else f"{count} artifacts"


def _run_user(given: argparse.Namespace) -> None:
    from tracking_server.users import Users

    users = Users()
    match given.does:
        case "add":
            users.add(given.name, admin=given.admin)
        case "password":
            users.set_password(given.name)
        case "delete":
            users.delete(given.name)
        case "grant":
            users.grant(given.name, given.kind, given.thing, given.permission)


if __name__ == "__main__":
    main()
