"""A server that is not there, or is another, is told in one line, before KFP's client tries again and again."""

import re
import socket
import threading

import kfp_server_api
import pytest

from modelcore.errors import InputError
from pipelines.endpoint import check_endpoint, connect
from tests.servers.kfp import KFP, Server

PAGE = "<html><body>Welcome to nginx!</body></html>"


@pytest.fixture(autouse=True)
def _home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))  # kfp's client keeps a file there


class Other(Server):
    """A server that answers everything alike."""

    def __init__(self, *answer):
        self.answer = lambda *asked: answer


@pytest.mark.parametrize("address", ["http://127.0.0.1:{}", "http://127.0.0.1:{}/"])
def test_a_server_of_kfps_is_fine(address):
    with KFP() as server:
        check_endpoint(address.format(server.port))
        with connect(address.format(server.port), "this") as client:
            assert client.create_experiment("an experiment with 'spaces' and \"quotes\"").experiment_id


def test_where_nobody_listens_one_line_names_the_address():
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
    with pytest.raises(InputError, match=rf"^no server answers at {re.escape(address)} \(.*\); is it running") as error:
        check_endpoint(address)
    assert str(error.value).count("\n") == 0


@pytest.mark.parametrize(
    "address", ["", "http://", "http://here:port", "http://here:99999999", "ftp://here", "::", "http://here:0"]
)
def test_what_is_no_address_is_refused(address):
    with pytest.raises(InputError, match="give the address of KFP's API"):
        check_endpoint(address)


def test_a_host_without_a_name_that_can_be_one_is_not_reached():
    with pytest.raises(InputError, match="no server answers"):
        check_endpoint(f"http://{'x' * 300}.invalid")


def test_without_a_scheme_it_is_https_as_for_kfp_and_the_line_says_so():
    with (
        KFP() as server,
        pytest.raises(InputError, match=r"^no server answers at https://127.* http:// or https://\?$"),
    ):
        check_endpoint(f"127.0.0.1:{server.port}")


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((500, PAGE), "^KFP at {} answers 500 Internal Server Error; its API server is not well$"),
        ((503, {"code": 14}), "^KFP at {} answers 503 Service Unavailable"),
        ((200, PAGE), r"^what answers at {} is not KFP's API \(200, text/html\); give the address"),
        ((200, [1]), "^what answers at {} is not KFP's API"),
        ((404, {"detail": "Not found"}), "^what answers at {} is not KFP's API"),
    ],
)
def test_what_is_there_but_cannot_serve_is_told_at_once(answer, message):
    with Other(*answer) as server, pytest.raises(InputError, match=message.format(server.address)):
        check_endpoint(server.address)


def test_what_speaks_no_http_is_no_server():
    with socket.create_server(("127.0.0.1", 0)) as server:

        def greet():
            connection, _ = server.accept()
            with connection:
                connection.recv(1 << 16)
                connection.sendall(b"SSH-2.0-OpenSSH_9.2p1\r\n")

        thread = threading.Thread(target=greet)
        thread.start()
        with pytest.raises(InputError, match=r"^no server answers"):
            check_endpoint(f"http://127.0.0.1:{server.getsockname()[1]}")
        thread.join()


@pytest.mark.parametrize("status", [302, 401, 403])
def test_whoever_has_to_sign_in_is_left_to_kfps_client(status):
    with Other(status, PAGE) as server:
        check_endpoint(server.address)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ('{"code": 3, "message": "Schedule cron is none\\nmore", "details": []}', "400 Schedule cron is none"),
        (PAGE, "400 Bad Gateway"),
        ('"a text"', "400 Bad Gateway"),
        (None, "400 Bad Gateway"),
    ],
)
def test_what_the_server_says_is_told_in_one_line(body, told):
    error = kfp_server_api.ApiException(400, "Bad Gateway")
    error.body = body
    with (
        KFP() as server,
        pytest.raises(InputError, match=f"^KFP at {server.address} did not take the wish: {told}$"),
        connect(server.address, "the wish"),
    ):
        raise error
