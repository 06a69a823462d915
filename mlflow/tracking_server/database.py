"""The server's PostgreSQL database. MLflow's tables and the users' lie in it together, so one dump is one moment."""

import os

import psycopg
from psycopg.pq import Conninfo

from tracking_server.errors import OperatorError
from tracking_server.settings import BACKEND_STORE, Stores


def export(stores: Stores) -> None:
    """Gives the database's address to this process and its children as libpq's own variables, ``PGHOST`` and its kin.

    So the password stands in no file and no command line: basic_auth.ini names a database without an address, and
    pg_dump and psql need no arguments.
    https://www.postgresql.org/docs/current/libpq-envars.html

    Raises:
        OperatorError: If the address cannot be read.
    """
    try:
        options = Conninfo.parse(stores.database.encode())
    except psycopg.Error:  # its text may quote the address
        raise OperatorError(
            f"{BACKEND_STORE} cannot be read; special characters in it must be percent-encoded"
        ) from None
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
        reason = " ".join(str(error).split())
        raise OperatorError(f"the database ({BACKEND_STORE}) cannot be used: {reason}") from None
