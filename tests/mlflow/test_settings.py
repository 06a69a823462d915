"""The tracking server's settings come from the environment; what is missing or wrong is one line without a secret."""

import io
from types import SimpleNamespace

import pytest

from tests.servers.ports import free_ports
from tracking_server.__main__ import main
from tracking_server.errors import OperatorError, one_line
from tracking_server.settings import Stores, check_server_settings

COMPLETE = {
    "MLFLOW_BACKEND_STORE_URI": "postgresql://mlflow:hidden-word@db.example.org:5432/mlflow",
    "MLFLOW_ARTIFACTS_DESTINATION": "s3://bucket/some/prefix",
    "MLFLOW_AUTH_ADMIN_PASSWORD": "twelve-or-more",
    "MLFLOW_FLASK_SERVER_SECRET_KEY": "0123456789abcdef0123456789abcdef",
    "MLFLOW_SERVER_ALLOWED_HOSTS": "mlflow.example.org",
}
KEYS = {
    "AWS_ACCESS_KEY_ID": "key",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_MAX_ATTEMPTS": "1",
}


def test_a_complete_environment_is_taken():
    stores = check_server_settings(COMPLETE)
    assert (stores.bucket, stores.prefix) == ("bucket", "some/prefix/")


@pytest.mark.parametrize(
    ("address", "prefix"), [("s3://b", ""), ("s3://b/", ""), ("s3://b/p", "p/"), ("s3://b/p/", "p/")]
)
def test_the_prefix_ends_in_a_slash_or_is_empty(address, prefix):
    assert Stores("postgresql://h/d", address).prefix == prefix


@pytest.mark.parametrize("name", COMPLETE)
@pytest.mark.parametrize("value", [None, "", "  "])
def test_a_missing_or_empty_variable_is_named(name, value):
    given = COMPLETE | {name: value} if value is not None else {key: COMPLETE[key] for key in COMPLETE if key != name}
    with pytest.raises(OperatorError, match=f"^not set: {name}; "):
        check_server_settings(given)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("MLFLOW_BACKEND_STORE_URI", "sqlite:///hidden-word.db", "postgresql://user:password@host/name"),
        ("MLFLOW_ARTIFACTS_DESTINATION", "/srv/artifacts", '"/srv/artifacts"; give s3://bucket'),
        ("MLFLOW_ARTIFACTS_DESTINATION", "s3:///prefix", '"s3:///prefix"; give s3://bucket'),
        ("MLFLOW_AUTH_ADMIN_PASSWORD", "hidden-word", "has 11 characters; it needs 12 or more"),
        ("MLFLOW_FLASK_SERVER_SECRET_KEY", "hidden-word", "has 11 characters; it needs 32 or more"),
    ],
)
def test_a_wrong_value_is_refused_in_one_line_that_holds_no_secret(name, value, said):
    with pytest.raises(OperatorError) as refusal:
        check_server_settings(COMPLETE | {name: value})
    assert name in str(refusal.value)
    assert said in str(refusal.value)
    assert "hidden-word" not in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "address",
    [
        "postgresql://mlflow:hidden-word@[broken/mlflow",
        "postgresql://mlflow:hidden%word@db/mlflow",
        "postgresql://mlflow:hidden-word@127.0.0.1:1/mlflow",
        "postgresql://mlflow:hidden/word@127.0.0.1:1/mlflow",
    ],
)
def test_a_database_that_cannot_be_used_ends_the_server_with_one_line_that_holds_no_secret(address, monkeypatch):
    for name, value in (COMPLETE | {"MLFLOW_BACKEND_STORE_URI": address}).items():
        monkeypatch.setenv(name, value)
    for name in ("PGHOST", "PGPORT", "PGDATABASE", "PGUSER", "PGPASSWORD"):
        monkeypatch.setenv(name, "")  # so that what is exported ends with the test
    with pytest.raises(SystemExit) as end:
        main(["serve"])
    assert str(end.value).startswith("error: ")
    assert "MLFLOW_BACKEND_STORE_URI" in str(end.value)
    assert "hidden" not in str(end.value)
    assert "\n" not in str(end.value)


ADDRESSES = [  # of a server that is not there
    "http://me:hidden-word@127.0.0.1:1",
    "http://me:hidden-word@here@127.0.0.1:1",
    "http://me:hidden/word@127.0.0.1:1",
    "http://me:12/hidden@127.0.0.1:1",
]


@pytest.mark.parametrize("address", [*ADDRESSES, "notaurl", "http://", "ftp://host", "http://host:port"])
@pytest.mark.parametrize("name", ["MLFLOW_S3_ENDPOINT_URL", "AWS_ENDPOINT_URL"])
def test_an_endpoint_that_cannot_be_used_is_one_line_that_holds_no_password(name, address, monkeypatch):
    for variable, value in (COMPLETE | KEYS | {name: address}).items():
        monkeypatch.setenv(variable, value)
    with pytest.raises(SystemExit) as end:
        main(["create-bucket"])
    assert str(end.value).startswith("error: ")
    assert "hidden" not in str(end.value)
    assert "\n" not in str(end.value)
    if address not in ADDRESSES:
        assert str(end.value).startswith(f'error: {name} is "{address}"; give http://host:port or https://host')


@pytest.mark.parametrize("address", [*ADDRESSES, "notaurl"])
def test_a_tracking_server_that_cannot_be_used_is_one_line_that_holds_no_password(address, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "unused")
    monkeypatch.setattr("sys.stdin", io.StringIO("a-long-password\n"))
    with pytest.raises(SystemExit) as end:
        main(["user", "add", "somebody"])
    assert str(end.value).startswith("error: ")
    assert "hidden" not in str(end.value)
    assert "\n" not in str(end.value)


COMMANDS = {
    "serve": "MLFLOW_PORT",
    "health": "MLFLOW_PORT",
    "user delete ada": "MLFLOW_PORT",
    "user grant ada experiment thing EDIT": "MLFLOW_HTTP_REQUEST_MAX_RETRIES",
    "user grant ada model thing EDIT": "MLFLOW_HTTP_REQUEST_TIMEOUT",
    "create-bucket": "AWS_MAX_ATTEMPTS",
    "backup folder": "AWS_MAX_ATTEMPTS",
    "restore folder": "AWS_METADATA_SERVICE_TIMEOUT",
    "upgrade folder": "AWS_METADATA_SERVICE_NUM_ATTEMPTS",
}


@pytest.mark.parametrize("value", ["abc", "tcp://10.0.0.1:5000", "1.5"])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_number_that_is_none_is_one_line_that_names_its_variable(command, value, operate, monkeypatch):
    (port,) = free_ports(1)
    settings = COMPLETE | {"MLFLOW_PORT": str(port), "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    monkeypatch.setenv(COMMANDS[command], value)
    said = operate(SimpleNamespace(environment=settings | {COMMANDS[command]: value}), *command.split())
    assert said.startswith("error: ")
    assert COMMANDS[command] in said
    assert value in said
    assert "\n" not in said


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://me:hidden/word@host:1", "http://host:1"),
        ("http://me:1/hidden@host", "http://…@host"),
        ("http://host:5000/a@b", "http://…@b"),
        ("http://host/a@b", "http://host/a@b"),
    ],
)
def test_where_a_password_may_be_a_port_and_a_path_dots_stand_for_both(text, shown):
    assert one_line(text) == shown


@pytest.mark.parametrize("port", ["0", "-1", "65536", ""])
def test_a_port_out_of_range_is_none(port):
    with pytest.raises(OperatorError, match=f'^MLFLOW_PORT is "{port}"; give a number from 1 to 65535$'):
        check_server_settings(COMPLETE | {"MLFLOW_PORT": port})


def test_the_environment_of_the_image_and_of_the_tests_ask_for_the_same_packages(pytestconfig):
    import re
    import tomllib

    from packaging.requirements import Requirement

    root = pytestconfig.rootpath
    lines = (root / "mlflow" / "requirements.txt").read_text().splitlines()
    image = {line for line in lines if line and not line.startswith("#")}
    extra = tomllib.loads((root / "pyproject.toml").read_text())["project"]["optional-dependencies"]["server"]
    assert {re.sub(r"[<>=].*", "", text) for text in extra} == image
    assert all(Requirement(text).specifier for text in extra)


@pytest.mark.parametrize("kind", ["model", "experiment"])
def test_a_server_that_is_down_is_one_line_whatever_is_granted(operate, monkeypatch, kind):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    (port,) = free_ports(1)
    server = SimpleNamespace(environment={"MLFLOW_PORT": str(port), "MLFLOW_AUTH_ADMIN_PASSWORD": "twelve-chars-"})
    said = operate(server, "user", "grant", "ada", kind, "thing", "EDIT")
    assert said.startswith(f"error: http://127.0.0.1:{port}: ")
    assert "\n" not in said
