"""The server's PostgreSQL database. MLflow's tables and its users' lie in it together: one dump is one moment."""

import os

import psycopg
from psycopg.pq import Conninfo

from tracking_server.errors import OperatorError, one_line
from tracking_server.settings import BACKEND_STORE, Stores


def export(stores: Stores) -> None:
    """Gives the database's address to this process and its children as libpq's own variables, ``PGHOST`` and its kin.

    So the password stands in no file and no command line: basic_auth.ini names a database without an address, and
    pg_dump and psql need no arguments.
    https://www.postgresql.org/docs/current/libpq-envars.html

    Raises:
        OperatorError: If the address cannot be read.
    """
    unreadable = OperatorError(f"{BACKEND_STORE} cannot be read; percent-encode special characters in it")
    try:
        options = Conninfo.parse(stores.database.encode())
    except psycopg.Error:  # its text may quote the address
        raise unreadable from None
    ports = [option.val for option in options if option.keyword == b"port" and option.val is not None]
    if any(not port.isdigit() for port in b",".join(ports).split(b",") if port):  # half a password with a slash in it
        raise unreadable
    for option in options:
        if option.val is not None and option.envvar is not None:
            os.environ[option.envvar.decode()] = option.val.decode()


def connect() -> psycopg.Connection:
    """Connects to the database that :func:`export` named.

    Raises:
        OperatorError: If there is none, it cannot be reached, or refuses the user.
    """
    try:
        return psycopg.connect("", connect_timeout=10)
    except psycopg.OperationalError as error:
        raise OperatorError(f"the database ({BACKEND_STORE}) cannot be used: {one_line(error)}") from None


_TURN = 0x6D6C666C6F77  # of this server's, among the advisory locks of the database: "mlflow"


def take_turn(connection: psycopg.Connection) -> None:
    """Waits until no other server prepares the database; the turn is over when the connection is.

    https://www.postgresql.org/docs/current/explicit-locking.html#ADVISORY-LOCKS
    """
    connection.autocommit = True  # no transaction stays open meanwhile
    connection.execute("SELECT pg_advisory_lock(%s)", (_TURN,))


def tables(connection: psycopg.Connection) -> list[str]:
    """The names of the tables there are."""
    found = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = current_schema() ORDER BY 1")
    return [name for (name,) in found]


def revisions(connection: psycopg.Connection) -> dict[str, str]:
    """The revision of MLflow's tables and of its users', by the name of the table that holds it; empty in a new one."""
    names = [name for name in tables(connection) if name in ("alembic_version", "alembic_version_auth")]
    found = {}
    for name in names:
        row = connection.execute(psycopg.sql.SQL("SELECT version_num FROM {}").format(psycopg.sql.Identifier(name)))
        found[name] = str(next(iter(row))[0])
    return found


def require_alone(connection: psycopg.Connection) -> None:
    """Makes sure that nobody else uses the database.

    Raises:
        OperatorError: If a server, or anybody, is connected.
    """
    others = connection.execute(
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
    )
    if count := next(iter(others))[0]:
        raise OperatorError(f"{count} other connections use the database; stop the server first")
