"""A server that is not there is told in one line, before KFP's client tries again and again."""

import socket
import subprocess
import sys

import pytest

from modelcore.errors import InputError
from pipelines.endpoint import check_endpoint


@pytest.fixture
def port():
    """A port on which somebody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.mark.parametrize("address", ["http://127.0.0.1:{}", "http://127.0.0.1:{}/pipeline/", "127.0.0.1:{}"])
def test_a_server_that_answers_is_fine(port, address):
    check_endpoint(address.format(port))


def test_where_nobody_listens_one_line_names_the_address():
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
    line = [sys.executable, "-m", "pipelines.endpoint", address]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"error: no server answers at {address} (")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("address", ["", "http://", "http://here:port", "http://here:99999999", "ftp://here", "::"])
def test_what_is_no_address_is_refused(address):
    with pytest.raises(InputError, match="give the address of KFP's API"):
        check_endpoint(address)


def test_a_host_without_a_name_that_can_be_one_is_not_reached():
    with pytest.raises(InputError, match="no server answers"):
        check_endpoint(f"http://{'x' * 300}.invalid")
