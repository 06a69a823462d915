"""A network between a client and an S3 server that does what networks and servers do on bad days."""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Request:
    """A request as it came.

    Attributes:
        method: GET, HEAD, PUT, POST or DELETE.
        path: Path and query.
        range: The value of the header Range, or "".
        size: Bytes of its body.
    """

    method: str
    path: str
    range: str
    size: int


@dataclass(frozen=True)
class Answer:
    """An error instead of the server's answer; the server is not asked."""

    status: int
    code: str


@dataclass(frozen=True)
class CutOff:
    """The connection ends after so many bytes of the answer's body."""

    after: int


@dataclass(frozen=True)
class Lost:
    """The server does what it is asked, and the connection ends without an answer."""


@dataclass(frozen=True)
class Silence:
    """The answer never comes; the connection stays open."""


@dataclass(frozen=True)
class Corruption:
    """One byte of the body, the request's or the answer's, is another."""

    of: str  # "request" or "answer"
    at: int = 0


Fault = Answer | CutOff | Lost | Silence | Corruption


class FaultyProxy:
    """What goes through it is counted, and fails where a test says so.

    Attributes:
        endpoint: Its address, to be used in the place of the server's.
        requests: Every request that came.
        received: Bytes of bodies that clients sent.
        sent: Bytes of bodies that clients were sent.
        down: While it is true, connections end before anything is answered.
    """

    def __init__(self, server: str) -> None:
        self.server = urlsplit(server).netloc
        self.requests: list[Request] = []
        self.received = self.sent = 0
        self.down = False
        self.lock, self.closing = threading.Lock(), threading.Event()
        self._faults: list[tuple[Fault, Callable[[Request], bool]]] = []
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"proxy": self}))
        self._http.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._http.server_address[1]}"

    def fail(self, *faults: Fault, when: Callable[[Request], bool] = lambda request: True) -> None:
        """Each of ``faults``, in their order, comes over one request that ``when`` is true of."""
        self._faults += [(fault, when) for fault in faults]

    @property
    def pending(self) -> int:
        """How many faults have not come over a request yet."""
        return len(self._faults)

    def forget(self) -> None:
        """Begins to count anew, without faults; connections that were silent end."""
        self.closing.set()
        self.closing = threading.Event()
        self.requests, self.received, self.sent, self._faults, self.down = [], 0, 0, [], False

    @contextlib.contextmanager
    def running(self) -> Iterator[FaultyProxy]:
        """Runs while the block does."""
        thread = threading.Thread(target=self._http.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield self
        finally:
            self.closing.set()
            self._http.shutdown()
            self._http.server_close()
            thread.join()

    def fault_for(self, request: Request) -> Fault | None:
        """Takes the fault that comes over a request."""
        with self.lock:
            self.requests.append(request)
            self.received += request.size
            for entry in self._faults:
                if entry[1](request):
                    self._faults.remove(entry)
                    return entry[0]
        return None


class _Handler(BaseHTTPRequestHandler):
    proxy: FaultyProxy
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def _forward(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        request = Request(self.command, self.path, self.headers.get("Range", ""), len(body))
        closing, fault = self.proxy.closing, self.proxy.fault_for(request)
        if self.proxy.down:
            self._hang_up()
            return
        if isinstance(fault, Answer):
            text = f"<Error><Code>{fault.code}</Code><Message>as the test wants it</Message></Error>".encode()
            self._answer(fault.status, {"Content-Type": "application/xml", "Content-Length": str(len(text))}, text)
            return
        if isinstance(fault, Silence):
            closing.wait()
            self._hang_up()
            return
        if isinstance(fault, Corruption) and fault.of == "request":
            body = _corrupt(body, fault.at)
        connection = http.client.HTTPConnection(self.proxy.server, timeout=60)
        headers = {name: value for name, value in self.headers.items() if name.lower() != "expect"}
        connection.request(self.command, self.path, body, headers)
        response = connection.getresponse()
        content = response.read()
        connection.close()
        if isinstance(fault, Lost):
            self._hang_up()
            return
        if isinstance(fault, Corruption) and fault.of == "answer":
            content = _corrupt(content, fault.at)
        kept = {n: v for n, v in response.getheaders() if n.lower() not in ("transfer-encoding", "connection")}
        if self.command != "HEAD":
            kept = {n: v for n, v in kept.items() if n.lower() != "content-length"} | {"Content-Length": len(content)}
        cut = fault.after if isinstance(fault, CutOff) else None
        self._answer(response.status, kept, content[:cut])
        if cut is not None:
            self._hang_up()

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _forward  # noqa: N815

    def _answer(self, status: int, headers: dict[str, object], content: bytes) -> None:
        with contextlib.suppress(ConnectionError):  # the client was killed
            self.send_response_only(status)
            for name, value in headers.items():
                self.send_header(name, str(value))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)
                self.wfile.flush()
                with self.proxy.lock:
                    self.proxy.sent += len(content)

    def _hang_up(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)


def _corrupt(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]
