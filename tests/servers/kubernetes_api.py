"""A stand-in for a Kubernetes API server: :mod:`kubernetes_objects`, and what clients ask of them over HTTP.

Where a test gives it the rules of roles, it refuses what those do not allow. There are no controllers: a test plays
them, with ``create``, ``change`` and ``delete``; and bad days, with ``fail``, ``cut``, ``expire``, ``down`` and
``impatient``.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml

from tests.servers.kubernetes_objects import (
    RESOURCES,
    Object,
    Objects,
    RefusedError,
    Resource,
    by_kind,
    merge,
    selected,
    terms,
)

PATIENCE = 20.0  # seconds after which a test waits in vain


@dataclass(frozen=True)
class Request:
    """A request as it came; ``body`` is its JSON, ``verb`` what a role would call it, ``cuts`` how many there were."""

    verb: str
    resource: Resource
    name: str
    subresource: str
    body: Any
    query: dict[str, str]
    token: str
    cuts: int


@dataclass(frozen=True)
class Answer:
    """An error in the place of what was asked for, which is not done."""

    status: int
    reason: str


class Lost:
    """What was asked for is done, and the connection ends without an answer."""


@dataclass(frozen=True)
class Page:
    """Something in the place of what was asked for, which is not done, with the status of success."""

    content: str


Fault = Answer | Lost | Page


class KubernetesAPI(Objects):
    """An API server.

    Attributes:
        requests: Every request that was understood.
        rules: The rules of the roles that clients have; None: they may do everything.
        down: While it is true, connections end before anything is answered.
        impatient: While it is true, a watch ends when it has told what there is.
    """

    def __init__(self, namespace: str = "kubeflow") -> None:
        super().__init__(namespace)
        self.requests: list[Request] = []
        self.rules: list[Object] | None = None
        self.down = self.impatient = False
        self.closing, self.cuts, self.oldest = False, 0, 0
        self._logs: dict[str, list[tuple[str, str]]] = {}
        self._faults: list[tuple[Fault, Callable[[Request], bool]]] = []
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"api": self}))
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"

    @contextlib.contextmanager
    def running(self) -> Iterator[KubernetesAPI]:
        """Runs while the block does."""
        thread = threading.Thread(target=self._http.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield self
        finally:
            with self.changed:
                self.closing = True
                self.changed.notify_all()
            self._http.shutdown()
            self._http.server_close()
            thread.join()

    def write_kubeconfig(self, path: Path) -> Path:
        """The file by which clients find the server; its token is ``first``."""
        configuration = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "stand-in", "cluster": {"server": self.url}}],
            "users": [{"name": "stand-in", "user": {"token": "first"}}],
            "contexts": [
                {"name": "c", "context": {"cluster": "stand-in", "user": "stand-in", "namespace": self.namespace}}
            ],
            "current-context": "c",
        }
        path.write_text(yaml.safe_dump(configuration), encoding="utf-8")
        return path

    # What a test does.

    def log(self, pod: str, *lines: str) -> None:
        """A pod's container writes lines."""
        with self.changed:
            for line in lines:
                now = datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds").replace("+00:00", "000Z")
                self._logs.setdefault(pod, []).append((now, line))
            self.changed.notify_all()

    def spoil_log(self, pod: str, line: str) -> None:
        """Who reads a pod's log for its readers says something in it, which has no time."""
        with self.changed:
            self._logs.setdefault(pod, []).append(("", line))
            self.changed.notify_all()

    def wait_for(self, holds: Callable[[], Any]) -> Any:
        """Waits until ``holds()`` is true after some change or request, and returns what it gives."""
        with self.changed:
            self.changed.wait_for(holds, PATIENCE)
            found = holds()
        assert found, "what the test waits for did not come"
        return found

    def count(self, verb: str, plural: str, subresource: str = "") -> int:
        """How many requests of a kind there were."""
        with self.changed:
            return sum(
                (each.verb, each.resource.plural, each.subresource) == (verb, plural, subresource)
                for each in self.requests
            )

    # Bad days.

    def fail(self, *faults: Fault, when: Callable[[Request], bool] = lambda request: True) -> None:
        """Each of ``faults``, in their order, comes over one request that ``when`` is true of."""
        with self.changed:
            self._faults += [(fault, when) for fault in faults]

    def recover(self) -> None:
        """No fault comes any more."""
        with self.changed:
            self._faults.clear()

    @property
    def pending(self) -> int:
        """How many faults have not come over a request yet."""
        return len(self._faults)

    def cut(self) -> None:
        """Ends every watch and every log that is followed, in the middle."""
        with self.changed:
            self.cuts += 1
            self.changed.notify_all()

    def expire(self) -> None:
        """Forgets what changed until now: a watch from an earlier version is told 410 Gone."""
        with self.changed:
            self.version += 1
            self.oldest = self.version
            self.cut()

    # What requests do.

    def do(self, request: Request) -> Object:
        """Does what a request asks, and gives the answer's body."""
        with self.changed:
            resource, name = request.resource, request.name
            match request.verb:
                case "list":
                    items = [each for each in self.all(resource.kind) if selected(each, request.query)]
                    kind = {"apiVersion": resource.api_version, "kind": f"{resource.kind}List"}
                    return kind | {"metadata": {"resourceVersion": str(self.version)}, "items": items}
                case "get":
                    return self.get(resource, name)
                case "create":
                    return self.add(resource, request.body, check=True)
                case "patch":
                    return self.put(resource, name, lambda each: merge(each, request.body), check=True)
                case "update":
                    return self.put(resource, name, lambda each: each.update(request.body), check=True)
                case "delete":
                    found = self.get(resource, name)
                    wanted = ((request.body or {}).get("preconditions") or {}).get("uid")
                    if wanted not in (None, found["metadata"]["uid"]):
                        raise RefusedError(409, "Conflict", f"the UID in the precondition ({wanted}) does not match")
                    self.remove(resource, name)
                    return {"kind": "Status", "apiVersion": "v1", "status": "Success"}
        raise RefusedError(405, "MethodNotAllowed", request.verb)

    def fault_for(self, request: Request) -> Fault | None:
        """Notes a request, and takes the fault that comes over it."""
        with self.changed:
            self.requests.append(request)
            self.changed.notify_all()
            for entry in self._faults:
                if entry[1](request):
                    self._faults.remove(entry)
                    return entry[0]
        return None

    def check_allowed(self, request: Request) -> None:
        """Refuses what no rule allows."""
        resource = request.resource
        # a list or a watch of one name is judged by that name
        name = request.name or dict(terms(request.query)).get("metadata.name", "")
        plural = f"{resource.plural}/{request.subresource}" if request.subresource else resource.plural
        for rule in self.rules if self.rules is not None else [{"apiGroups": [resource.group], "resources": [plural]}]:
            verbs, names = rule.get("verbs", [request.verb]), rule.get("resourceNames", [name])
            if (
                resource.group in rule["apiGroups"]
                and plural in rule["resources"]
                and request.verb in verbs
                and name in names
            ):
                return
        who = f"system:serviceaccount:{self.namespace}:pipeline-runner"
        where = f' in the namespace "{self.namespace}"' if resource.namespaced else " at the cluster scope"
        full = f"{resource.plural}.{resource.group}".rstrip(".")
        what = f'cannot {request.verb} resource "{plural}" in API group "{resource.group}"'
        raise RefusedError(403, "Forbidden", f'{full} "{name}" is forbidden: User "{who}" {what}{where}')

    def check_log(self, request: Request) -> None:
        """Refuses the log of a pod that is not there, or whose containers wait."""
        pod = self.get(request.resource, request.name)
        if pod.get("status", {}).get("phase", "Pending") == "Pending":
            container = request.query.get("container", "")
            message = f'container "{container}" in pod "{request.name}" is waiting to start: ContainerCreating'
            raise RefusedError(400, "BadRequest", message)

    def changes(self, request: Request) -> Iterator[Object]:
        """The events of a watch, until it is cut or its time is over."""
        since = int(request.query.get("resourceVersion") or self.version)
        deadline = time.monotonic() + float(request.query.get("timeoutSeconds", 1800))
        cuts, place = request.cuts, 0
        if since < self.oldest:
            status = RefusedError(410, "Expired", f"too old resource version: {since} ({self.oldest})").status
            yield {"type": "ERROR", "object": status}
            return
        while True:
            with self.changed:
                while not (self.impatient or self.closing or self.cuts > cuts or len(self.history) > place):
                    if not self.changed.wait(deadline - time.monotonic()):
                        break
                if self.closing or self.cuts > cuts:
                    raise ConnectionAbortedError
                fresh, place = self.history[place:], len(self.history)
            for version, kind, resource, each in fresh:
                if version > since and resource == request.resource and selected(each, request.query):
                    yield {"type": kind, "object": each}
            if self.impatient or time.monotonic() >= deadline:
                return

    def lines(self, request: Request) -> Iterator[str]:
        """The lines of a pod's log; of one that is followed, until the pod has ended or is gone, or the log is cut."""
        query, place, cuts = request.query, 0, request.cuts
        since = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=int(query.get("sinceSeconds", 10**8)))
        while True:
            with self.changed:
                follows = query.get("follow") == "true"
                while follows and len(self._logs.get(request.name, [])) == place and not self._ended(request.name):
                    if self.closing or self.cuts > cuts:
                        break
                    self.changed.wait()
                if self.closing or self.cuts > cuts:
                    raise ConnectionAbortedError
                told = self._logs.get(request.name, [])
                fresh, place, ended = told[place:], len(told), self._ended(request.name)
            for at, line in fresh:
                if not at:
                    yield f"{line}\n"
                elif datetime.datetime.fromisoformat(at[:26] + "+00:00") >= since:
                    yield f"{at} {line}\n" if query.get("timestamps") == "true" else f"{line}\n"
            if ended or not follows:
                return

    def _ended(self, pod: str) -> bool:
        found = self._objects.get((by_kind("Pod"), pod))
        return found is None or found.get("status", {}).get("phase") in ("Succeeded", "Failed")


class _Handler(BaseHTTPRequestHandler):
    api: KubernetesAPI
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def _serve(self) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.api.down:
            self.close_connection = True
            return
        try:
            request = self._understand(json.loads(content) if content else None)
            fault = self.api.fault_for(request)
            if isinstance(fault, Answer):
                raise RefusedError(fault.status, fault.reason, "as the test wants it")
            if isinstance(fault, Page):
                self._stream(iter([fault.content]))
                return
            self.api.check_allowed(request)
            if request.verb == "watch":
                self._stream(f"{json.dumps(each)}\n" for each in self.api.changes(request))
            elif request.subresource == "log":
                self.api.check_log(request)
                self._stream(self.api.lines(request))
            else:
                body = self.api.do(request)
                if isinstance(fault, Lost):
                    self.close_connection = True
                    return
                self._answer(201 if request.verb == "create" else 200, body)
        except RefusedError as refused:
            self._answer(refused.status["code"], refused.status)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _serve  # noqa: N815

    def _understand(self, body: Any) -> Request:
        address = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(address.query).items()}
        for resource in RESOURCES:
            prefix = f"/apis/{resource.api_version}" if resource.group else f"/api/{resource.version}"
            if resource.namespaced:
                prefix += f"/namespaces/{self.api.namespace}"
            found = re.fullmatch(rf"{re.escape(prefix)}/{resource.plural}(?:/([^/]+))?(?:/([^/]+))?", address.path)
            if found:
                name, subresource = found[1] or "", found[2] or ""
                verb = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}.get(self.command)
                if verb is None:
                    verb = "get" if name else "watch" if query.get("watch", "").lower() == "true" else "list"
                token = self.headers.get("Authorization", "").rpartition(" ")[2]
                query = {key: value.lower() if value in ("True", "False") else value for key, value in query.items()}
                return Request(verb, resource, name, subresource, body, query, token, self.api.cuts)
        raise RefusedError(404, "NotFound", f"the server could not find the requested resource ({address.path})")

    def _answer(self, status: int, body: Object) -> None:
        content = json.dumps(body).encode()
        with contextlib.suppress(ConnectionError):
            self.send_response_only(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    def _stream(self, pieces: Iterator[str]) -> None:
        """Sends pieces as they come; a connection that is cut ends without the mark of the end."""
        try:
            self.send_response_only(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.flush()
            for piece in pieces:
                data = piece.encode()
                self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))
            self.wfile.write(b"0\r\n\r\n")
        except ConnectionError:
            self.close_connection = True
