"""A real MLflow server, and a proxy before it that refuses, loses, cuts off and holds up what goes through."""

import contextlib
import hashlib
import http.client
import os
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.request import urlopen

from tests.servers.ports import free_ports


class Server:
    """``mlflow server`` with a SQLite store in a folder; may be killed and started again."""

    def __init__(self, folder):
        self.folder, (self.port,) = folder, free_ports(1)
        self.url = f"http://127.0.0.1:{self.port}"
        self._process = None

    def start(self):
        environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        environment.pop("MLFLOW_TRACKING_URI", None)
        with open(self.folder / "server.log", "ab") as log:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "mlflow", "server", "--workers", "1", "--host", "127.0.0.1"),
                    *("--port", str(self.port), "--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db"),
                    *("--artifacts-destination", str(self.folder / "artifacts")),
                ],
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
            )
        for _ in range(600):
            if self._process.poll() is not None:
                break
            with contextlib.suppress(OSError), urlopen(f"{self.url}/health"):
                return self
            time.sleep(0.1)
        raise RuntimeError((self.folder / "server.log").read_text())

    def kill(self):
        """Kills it and its worker, as the kernel does when memory is short."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, 9)
            self._process.wait()
            self._process = None


class Proxy:
    """Passes requests on to a server.

    ``trouble(method, path, times)`` says what happens to a request that was seen ``times`` times before: None (it is
    passed on), ``cut`` (the connection is closed, the server hears nothing), ``lose`` (the server does it, the
    connection is closed instead of an answer), ``hold`` (it is passed on when :attr:`release` is set), or a number: the
    status of an answer that the proxy gives itself.
    """

    def __init__(self, port):
        self.trouble = lambda method, path, times: None
        self.release, self.held = threading.Event(), threading.Event()
        self.seen = []
        self._times = {}
        self._upstream = port
        self._listen(0)

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def refuse(self):
        """Connections are refused from now on."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def accept(self):
        if self._server is None:
            self._listen(self.port)

    def _listen(self, port):
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *arguments):
                pass

        for method in ("GET", "POST", "PUT", "PATCH", "DELETE"):
            setattr(Handler, f"do_{method}", lambda handler: proxy._pass(handler))
        ThreadingHTTPServer.allow_reuse_address = True
        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def _pass(self, handler):
        if self._server is None:  # a connection from before it refused
            handler.close_connection = True
            return
        body = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        key = hashlib.sha256(f"{handler.command} {handler.path}\n".encode() + body).hexdigest()
        self._times[key] = self._times.get(key, 0) + 1
        self.seen.append((handler.command, handler.path))
        what = self.trouble(handler.command, handler.path, self._times[key] - 1)
        handler.close_connection = True  # one request a connection: what is cut off is that request alone
        if what == "cut":
            return
        if what == "hold":
            self.held.set()
            self.release.wait(60)
        if isinstance(what, int):
            self._answer(handler, what, {"Content-Type": "text/html"}, b"<html>no</html>")
            return
        upstream = http.client.HTTPConnection("127.0.0.1", self._upstream)
        with contextlib.closing(upstream):
            upstream.request(handler.command, handler.path, body, dict(handler.headers))
            response = upstream.getresponse()
            answer = response.read()
        if what != "lose":
            self._answer(handler, response.status, dict(response.getheaders()), answer)

    @staticmethod
    def _answer(handler, status, headers, body):
        with contextlib.suppress(OSError):  # a client that did not wait
            handler.send_response_only(status)
            for key, value in headers.items():
                if key.lower() not in ("connection", "transfer-encoding", "content-length"):
                    handler.send_header(key, value)
            handler.send_header("Content-Length", str(len(body)))
            handler.send_header("Connection", "close")
            handler.end_headers()
            handler.wfile.write(body)
