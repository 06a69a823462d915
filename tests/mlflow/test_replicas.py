"""Several tracking servers of one database, as replicas in a cluster are: each has a file system of its own."""

import re
import urllib.parse
import urllib.request
from base64 import b64encode
from concurrent.futures import ThreadPoolExecutor
from http.cookiejar import CookieJar

import psycopg
import pytest

from tests.mlflow.conftest import s3_settings
from tests.mlflow.test_server import SEARCH, status
from tests.servers.tracking import TrackingServer

pytestmark = pytest.mark.slow  # two servers start


@pytest.fixture(scope="module")
def replicas(postgres, s3, tmp_path_factory):
    """Two of them, both started at once on an empty database, behind one name."""
    database = postgres.make_database("replicas")
    servers = []
    for number in range(2):
        folder = tmp_path_factory.mktemp(f"replica-{number}")
        server = TrackingServer(database, "s3://replicas/artifacts", s3_settings(s3), folder)
        server.environment["TMPDIR"] = str(folder)
        if servers:
            server.password = servers[0].password
            for name in ("MLFLOW_AUTH_ADMIN_PASSWORD", "MLFLOW_FLASK_SERVER_SECRET_KEY"):
                server.environment[name] = servers[0].environment[name]
        servers.append(server)
    try:
        with ThreadPoolExecutor(len(servers)) as pool:
            list(pool.map(TrackingServer.start, servers))
        yield servers
    finally:
        for server in servers:
            server.stop()


def test_they_may_begin_at_once_on_an_empty_database(replicas, postgres):
    for server in replicas:
        assert status(server, SEARCH, ("admin", server.password)) == 200
    with psycopg.connect(postgres.uri("replicas")) as connection:
        assert connection.execute("SELECT count(*) FROM users").fetchone() == (1,)
        assert connection.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'").fetchone() == (0,)


def test_a_user_made_at_one_is_known_to_the_other(replicas):
    made = replicas[0].run("user", "add", "ada", input="a long enough one\n")
    assert made.returncode == 0, made.stderr
    assert [status(server, SEARCH, ("ada", "a long enough one")) for server in replicas] == [200, 200]


def test_a_form_given_out_by_one_is_taken_by_another(replicas):
    """The key that signs it, and the cookie it belongs to, is the same for both."""
    first, second = replicas
    browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(CookieJar()))
    login = "Basic " + b64encode(f"admin:{first.password}".encode()).decode()
    browser.addheaders = [("Authorization", login)]
    page = browser.open(f"{first.uri}/signup", timeout=30).read().decode()
    token = re.search(r'name="csrf_token"\s+value="([^"]+)"', page)[1]
    form = {"csrf_token": token, "username": "grace", "password": "another long one"}
    browser.open(f"{second.uri}/api/2.0/mlflow/users/create-ui", urllib.parse.urlencode(form).encode(), timeout=30)
    assert status(first, SEARCH, ("grace", "another long one")) == 200
