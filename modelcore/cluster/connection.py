"""The Kubernetes API, spoken to for as long as a training runs.

A server that is away, overloaded or slow is asked again, for days if need be: what runs in the cluster goes on without
us meanwhile. What it refuses is an error of one line. Watches are taken up again where they ended, and begun anew where
the server has forgotten that place (410 Gone):
https://kubernetes.io/docs/reference/using-api/api-concepts/#efficient-detection-of-changes.
"""

from __future__ import annotations

import json
import logging
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import urllib3
from kubernetes import client, config
from kubernetes.config import incluster_config

from modelcore.errors import InputError, first_line

logger = logging.getLogger(__name__)

Object: TypeAlias = dict[str, Any]

# Of a busy server, one that starts, or a load balancer before it.
_PASSING = {0, 408, 429, 500, 502, 503, 504}
_ANSWER_SECONDS = (10.0, 60.0)  # to connect, and to answer
_WATCH_SECONDS = 290  # the server ends a watch then; it would by itself, after five to ten minutes
_SHORT_SECONDS = 60.0  # a watch that ends sooner, and has told nothing, was not ended by its time
_REMIND_SECONDS = 300.0


class _NoAnswerError(Exception):
    """What came is not what the API answers, such as a load balancer's page, or half a line."""


_FAILURES = (client.ApiException, urllib3.exceptions.HTTPError, _NoAnswerError)


class Cluster:
    """A namespace of a cluster.

    Args:
        configuration: Where the server is, and what signs in there.
        namespace: The namespace.

    Attributes:
        core: The client of Kubernetes' own objects.
        custom: The client of operators' objects.
        first_wait: Seconds until what failed is tried again; each time twice as long.
        longest_wait: Seconds that it is at most.
        token_wait: Seconds for which a token that was good may be refused, until it counts as bad.
        known: Whether the server has let us in before.
    """

    first_wait, longest_wait, token_wait = 0.5, 30.0, 900.0

    def __init__(self, configuration: client.Configuration, namespace: str) -> None:
        configuration.retries = False  # here is tried again
        self.configuration, self.namespace = configuration, namespace
        api_client = client.ApiClient(configuration)
        self.core, self.custom = client.CoreV1Api(api_client), client.CustomObjectsApi(api_client)
        self.known = False

    @classmethod
    def connect(cls) -> Cluster:
        """The cluster that this pod runs in; outside of one, the cluster and namespace of ``KUBECONFIG``.

        A pod's token is replaced about every hour; the client reads the file again each minute.

        Raises:
            InputError: If there is neither.
        """
        configuration = client.Configuration()
        token = Path(incluster_config.SERVICE_TOKEN_FILENAME)
        try:
            if token.is_file():
                config.load_incluster_config(configuration)
                return cls(configuration, (token.parent / "namespace").read_text(encoding="ascii").strip())
            file = str(Path(os.environ.get("KUBECONFIG") or "~/.kube/config").expanduser())
            config.load_kube_config(file, client_configuration=configuration)
            _, context = config.list_kube_config_contexts(file)
        except (config.ConfigException, OSError) as error:
            raise InputError(
                f"there is no Kubernetes cluster to run a job in ({first_line(error)}); this stage needs a pod with a "
                "service account, or a file that KUBECONFIG names"
            ) from None
        return cls(configuration, context["context"].get("namespace", "default"))

    def call(
        self, what: str, function: Callable[..., Any], *arguments: Any, patience: float = float("inf"), **keywords: Any
    ) -> Object:
        """Calls a function of the client, again until the server answers.

        Args:
            what: What it does, for messages: ``create TrainJob a``.
            function: The function.
            *arguments: Its arguments.
            patience: Seconds after which it is not called again.
            **keywords: Its keyword arguments.

        Returns:
            The answer's JSON.

        Raises:
            ApiException: If what it names is not there (404), or is there already or has changed (409).
            InputError: If the server refuses it otherwise, or does not answer in time.
        """
        backoff = _Backoff(self, what, patience)
        timeout = tuple(max(1.0, min(seconds, patience)) for seconds in _ANSWER_SECONDS)
        while True:
            try:
                response = function(*arguments, **keywords, _preload_content=False, _request_timeout=timeout)
                answer = _json(response.data)
            except _FAILURES as error:
                backoff.wait_after(error)
                continue
            backoff.over()
            return answer

    def watch(
        self, what: str, function: Callable[..., Any], *arguments: Any, ended: threading.Event, **keywords: Any
    ) -> Iterator[list[Object]]:
        """The objects that a function of the client lists: as they are now, and whenever one of them has changed.

        Ends some time after ``ended`` is set; not by itself. A server that ends watches before they have told anything
        is asked less and less often. The rest is as in :meth:`call`.

        Raises:
            InputError: If the server refuses it, or knows nothing of the kind.
        """
        backoff = _Backoff(self, what, ended=ended)
        version, objects = "", dict[str, Object]()
        while not ended.is_set():
            began, idle = time.monotonic(), True
            try:
                if not version:
                    listed = self.call(what, function, *arguments, **keywords)
                    version = listed["metadata"]["resourceVersion"]
                    objects = {each["metadata"]["uid"]: each for each in listed["items"]}
                    yield list(objects.values())
                place = {"watch": True, "resource_version": version, "timeout_seconds": _WATCH_SECONDS}
                for line in self.lines(function, *arguments, **keywords, **place, silence=_WATCH_SECONDS + 30.0):
                    kind, each = _event(line)
                    before, version, uid = version, each["metadata"]["resourceVersion"], each["metadata"].get("uid")
                    if kind == "DELETED":
                        objects.pop(uid, None)
                    elif kind != "BOOKMARK":
                        objects[uid] = each
                    if version != before:
                        idle = False
                        backoff.over()
                    yield list(objects.values())
            except _FAILURES as error:
                status = error.status if isinstance(error, client.ApiException) else 0
                if status in (404, 409):
                    raise InputError(f"the cluster refuses to {what}: {_message(error)}") from None
                if status != 410:
                    backoff.wait_after(error)
                    continue
                version = ""  # what happened meanwhile is forgotten: what is now counts
            if idle and time.monotonic() - began < _SHORT_SECONDS:
                backoff.wait_idle()

    def lines(self, function: Callable[..., Any], *arguments: Any, silence: float, **keywords: Any) -> Iterator[str]:
        """The lines that a function of the client streams, as they come.

        Args:
            function: The function.
            *arguments: Its arguments.
            silence: Seconds without a word after which the connection counts as dead.
            **keywords: Its keyword arguments.
        """
        timeout = (_ANSWER_SECONDS[0], silence)
        response = function(*arguments, **keywords, _preload_content=False, _request_timeout=timeout)
        rest = b""
        try:
            for piece in response.stream():
                *complete, rest = (rest + piece).split(b"\n")
                for line in complete:
                    yield line.decode("utf-8", errors="replace")
        finally:
            response.close()
        if rest:
            yield rest.decode("utf-8", errors="replace")

    def wait_seconds(self, failures: int) -> float:
        """How long to wait after so many failures in a row; by chance up to twice as long as at least."""
        longest = min(self.longest_wait, self.first_wait * 2.0 ** min(failures, 20))
        return longest * random.uniform(0.5, 1)  # so that many clients don't come back at once


class _Backoff:
    """Waits longer each time that the server does not answer, and tells so now and then."""

    def __init__(
        self, cluster: Cluster, what: str, patience: float = float("inf"), ended: threading.Event | None = None
    ) -> None:
        self._cluster, self._what, self._ended = cluster, what, ended or threading.Event()
        self._deadline = time.monotonic() + patience
        self._failures, self._idle, self._next_word, self._spoke = 0, 0, 0.0, False
        self._refused: float | None = None  # since when the token is refused

    def wait_after(self, error: Exception) -> None:
        """Waits a while; raises what another try would not mend."""
        # A token that was good is being replaced; one that never was is not mended by waiting.
        now = time.monotonic()
        if isinstance(error, client.ApiException) and error.status not in _PASSING:
            if error.status in (404, 409):
                raise error
            self._refused = now if self._refused is None else self._refused
            waits = error.status == 401 and self._cluster.known and now - self._refused < self._cluster.token_wait
            if not waits:
                raise InputError(f"the cluster refuses to {self._what}: {_message(error)}") from None
        if now >= self._deadline:
            raise InputError(f"the cluster does not answer to {self._what} ({_message(error)})") from None
        if self._failures == 0:  # one bad answer is no news
            self._next_word = now
        elif now >= self._next_word:
            self._next_word, self._spoke = now + _REMIND_SECONDS, True
            logger.warning("the cluster does not answer to %s (%s); trying on", self._what, _message(error))
        self._ended.wait(self._cluster.wait_seconds(self._failures))
        self._failures += 1

    def wait_idle(self) -> None:
        """Waits a while after an answer that told nothing."""
        self._ended.wait(self._cluster.wait_seconds(self._idle))
        self._idle += 1

    def over(self) -> None:
        """The server has answered."""
        if self._spoke:
            logger.info("the cluster answers again to %s", self._what)
        self._cluster.known = True
        self._failures, self._idle, self._spoke, self._refused = 0, 0, False, None


def _json(content: bytes | str) -> Object:
    try:
        value = json.loads(content)
    except ValueError:
        raise _NoAnswerError("what it sent is no JSON") from None
    if not isinstance(value, dict):
        raise _NoAnswerError("what it sent is no JSON object")
    return value


def _event(line: str) -> tuple[str, Object]:
    """The type and the object of a watch's event.

    Raises:
        ApiException: If it is an error.
    """
    event = _json(line)
    try:
        kind, each = event["type"], event["object"]
        if kind == "ERROR":
            raise client.ApiException(status=each.get("code", 500), reason=each.get("message", "no reason is given"))
        each["metadata"]["resourceVersion"]
    except (KeyError, TypeError, AttributeError):
        raise _NoAnswerError("what it sent is no event") from None
    return kind, each


def _message(error: Exception) -> str:
    """What the server said, in one line."""
    if isinstance(error, client.ApiException) and error.body:
        try:
            return str(json.loads(error.body)["message"]).replace("\n", " ")
        except (ValueError, KeyError, TypeError):
            pass
    return first_line(error)
