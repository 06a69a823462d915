"""What a job and its pods do, told line by line until the job has ended."""

from __future__ import annotations

import logging
import queue
import sys
import threading
import time
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import urllib3
from kubernetes import client

from modelcore.cluster.cluster_job import ClusterJob, JobEndedError
from modelcore.cluster.connection import Object
from modelcore.errors import InputError, first_line

logger = logging.getLogger(__name__)

_ATTEMPT = "jobset.sigs.k8s.io/restart-attempt"
_SILENCE_SECONDS = 120.0  # without a line of the log, after which its connection is made anew
_LAST_WORDS_SECONDS = 10.0  # for the rest of the log to come when the job has ended
_CLOCKS_DIFFER_SECONDS = 3600.0  # by which the node's may be ahead of ours
_LAST_LINES = 3


class Follower:
    """Follows a job: its state, its pods, events, and the log of the process that speaks for all.

    Args:
        job: A job that was made or found.
    """

    def __init__(self, job: ClusterJob) -> None:
        self._job, self._cluster = job, job.cluster
        self._news: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self._said: set[tuple[str, ...]] = set()
        self._failures: dict[str, tuple[str, str]] = {}  # of each pod that failed, when and how
        self._pods: dict[str, Object] = {}
        self._attempt = 0
        self._logs: dict[str, threading.Thread] = {}
        self._ended = threading.Event()
        self._label = job.pods
        self._list_pods = (self._cluster.core.list_namespaced_pod, self._cluster.namespace)

    def follow(self) -> None:
        """Returns when the job is complete.

        Raises:
            JobEndedError: If it failed, or somebody deleted it.
            InputError: If the cluster refuses to tell.
        """
        core, namespace, name = self._cluster.core, self._cluster.namespace, self._job.name
        watch, ended = self._cluster.watch, self._ended
        events = watch(f"watch events of {name}", core.list_namespaced_event, namespace, ended=ended)
        pods = watch(f"watch pods of {name}", *self._list_pods, label_selector=self._label, ended=ended)
        self._start("events", events)
        self._start("pods", pods)
        self._start("job", self._job.changes(ended))
        try:
            while not self._see(*self._news.get()):
                pass
        except JobEndedError:
            self._wait_for_last_words()
            raise
        finally:
            ended.set()
        self._wait_for_last_words()

    def _wait_for_last_words(self) -> None:
        self._ended.set()
        for thread in self._logs.values():
            thread.join(_LAST_WORDS_SECONDS)

    def _see(self, kind: str, value: list[Object] | Exception) -> bool:
        """Takes note of news; whether the job is complete."""
        if isinstance(value, Exception):
            if kind != "events" or not isinstance(value, InputError):
                raise value
            logger.warning("%s; what delays the job may go unsaid", value)
            return False
        if kind == "job":
            return self._see_job(value)
        (self._see_pods if kind == "pods" else self._see_events)(value)
        return False

    def _start(self, kind: str, changes: Iterator[list[Object]]) -> None:
        def run() -> None:
            try:
                for objects in changes:
                    self._news.put((kind, objects))
            except Exception as error:  # raised where the job is followed
                self._news.put((kind, error))

        threading.Thread(target=run, daemon=True, name=f"{kind} of {self._job.name}").start()

    def _see_job(self, found: list[Object]) -> bool:
        """Whether the job is complete."""
        job = next((each for each in found if each["metadata"]["uid"] == self._job.uid), None)
        name = f"{self._job.kind} {self._cluster.namespace}/{self._job.name}"
        if job is None:
            raise JobEndedError(
                f"{name} was deleted while it ran, not by this stage; run the stage again"
                f"{', and it goes on from the newest checkpoint' if self._job.keeps else ''}"
            )
        if self._job.is_complete(job):
            self._look_at_pods()
            logger.info("%s is complete", name)
            return True
        if (failed := self._job.failure(job)) is not None:
            raise JobEndedError(f"{name} failed: {self._why(failed)}")
        if (why := self._job.suspension(job)) is not None:
            queued = job["metadata"].get("labels", {}).get("kueue.x-k8s.io/queue-name")
            who = f"Kueue's queue {queued} to admit it" if queued else "somebody to resume it"
            self._say("job", f"waiting for {who}: {name} is suspended{f' ({why})' if why else ''}")
        elif any(about == "job" for about, *_ in self._said):
            self._say("job", f"{name} is not suspended any more")
        return False

    def _why(self, told: str) -> str:
        """Which pod failed first, and how; or what the job says where no pod was seen to fail."""
        self._look_at_pods()
        if not self._failures:
            return told or "it does not say why"
        _, first = min(self._failures.values())
        return f"{first}{f' ({told})' if told else ''}"

    def _look_at_pods(self) -> None:
        """Takes note of the pods as they are now, for the job may be told to have ended before its pods."""
        listed = self._cluster.call(f"list pods of {self._job.name}", *self._list_pods, label_selector=self._label)
        self._see_pods(listed["items"])

    def _see_pods(self, pods: list[Object]) -> None:
        self._pods = {pod["metadata"]["name"]: pod for pod in pods}
        newest = max((int(pod["metadata"].get("labels", {}).get(_ATTEMPT, 0)) for pod in pods), default=0)
        if newest > self._attempt:
            self._attempt = newest
            self._failures.clear()
            logger.warning("the job's pods are started anew, attempt %d", newest + 1)
        for name, pod in self._pods.items():
            phase, status = pod.get("status", {}).get("phase", "Pending"), pod.get("status", {})
            if phase == "Pending":
                self._say(name, f"waiting for pod {name}: {_waits_for(status)}")
            elif phase == "Running":
                self._say(name, f"pod {name} runs on node {pod['spec'].get('nodeName', 'unknown')}")
            elif phase == "Failed" and name not in self._failures:
                self._failures[name] = (_end(status).get("finishedAt") or "", self._how_failed(name, status))
                logger.warning("%s", self._failures[name][1])
            if phase != "Pending" and self._job.speaks_for_all(pod) and name not in self._logs:
                self._logs[name] = threading.Thread(target=self._tell_log, args=(name,), daemon=True)
                self._logs[name].start()

    def _how_failed(self, name: str, status: Object) -> str:
        end = _end(status)
        reason = end.get("reason") or status.get("reason") or ""
        how = f"pod {name} ended with exit code {end['exitCode']}" if "exitCode" in end else f"pod {name} failed"
        if reason not in ("", "Error"):
            how += f" ({reason})"
        said = end.get("message") or status.get("message") or self._last_lines(name)
        lines = [line.strip() for line in said.splitlines() if line.strip()]
        return f"{how}: {' | '.join(lines[-_LAST_LINES:])}" if lines else how

    def _last_lines(self, pod: str) -> str:
        core, place = self._cluster.core, (pod, self._cluster.namespace)
        keywords: dict[str, Any] = {"container": self._job.container, "tail_lines": _LAST_LINES, "silence": 10.0}
        try:
            return "\n".join(self._cluster.lines(core.read_namespaced_pod_log, *place, **keywords))
        except (client.ApiException, urllib3.exceptions.HTTPError):  # it is gone, or may not be read
            return ""

    def _see_events(self, events: list[Object]) -> None:
        """Tells warnings about the job and what it is made of; and all that is said of the job itself and its quota."""
        for event in events:
            about = event["involvedObject"]
            ours = self._job.name in about.get("name", "")
            if ours and (event.get("type") == "Warning" or about.get("kind") in (self._job.kind, "Workload")):
                message = f"{event.get('reason')}: {event.get('message')}".replace("\n", " ")
                said = ("event", about["name"], message)
                if said not in self._said:
                    self._said.add(said)
                    level = logging.WARNING if event.get("type") == "Warning" else logging.INFO
                    logger.log(level, "%s %s: %s", about.get("kind"), about["name"], message)

    def _say(self, about: str, message: str) -> None:
        """Says something that was not said last about the same."""
        if (about, message) not in self._said:
            self._said = {said for said in self._said if said[0] != about} | {(about, message)}
            logger.info("%s", message)

    def _tell_log(self, pod: str) -> None:
        """Passes on a pod's log until the pod has ended, each line once, whatever becomes of the connection."""
        last, failures = "", 0
        said = set[str]()  # by who reads the log for us
        place = (pod, self._cluster.namespace)
        while True:
            keywords: dict[str, Any] = {"container": self._job.container, "follow": True, "timestamps": True}
            if last:
                passed = time.time() - datetime.fromisoformat(last).timestamp()  # by two clocks, which may differ
                keywords["since_seconds"] = int(max(0.0, passed) + _CLOCKS_DIFFER_SECONDS)
            try:
                read = self._cluster.core.read_namespaced_pod_log
                for line in self._cluster.lines(read, *place, **keywords, silence=_SILENCE_SECONDS):
                    at, _, text = line.partition(" ")
                    if not _is_time(at):  # "failed to watch the log file", for example
                        if line and line not in said:
                            said.add(line)
                            logger.warning("log of %s: %s", pod, line)
                    elif at > last:
                        last, failures = at, 0
                        sys.stderr.write(f"{text}\n")
            except client.ApiException as error:
                if error.status == 404:
                    return
                if error.status == 403:
                    logger.warning("the log of %s may not be read (%s); progress goes unsaid", pod, first_line(error))
                    return
            except urllib3.exceptions.HTTPError:
                pass
            else:
                if pod not in self._pods or self._pods[pod].get("status", {}).get("phase") in ("Succeeded", "Failed"):
                    return
            if self._ended.wait(self._cluster.wait_seconds(failures)):
                return
            failures += 1


def _is_time(text: str) -> bool:
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return False
    return True


def _waits_for(status: Object) -> str:
    """What keeps a pod from running."""
    for container in [*status.get("initContainerStatuses", []), *status.get("containerStatuses", [])]:
        if waiting := container.get("state", {}).get("waiting"):
            return ": ".join(filter(None, (waiting.get("reason"), waiting.get("message"))))
    for each in status.get("conditions", []):
        if each["type"] == "PodScheduled" and each["status"] == "False":
            return ": ".join(filter(None, (each.get("reason"), each.get("message"))))
    return "it is being started"


def _end(status: Object) -> Object:
    """How the first of a pod's containers that failed ended."""
    for container in [*status.get("initContainerStatuses", []), *status.get("containerStatuses", [])]:
        end = container.get("state", {}).get("terminated")
        if end and end.get("exitCode"):
            return dict(end)
    return {}
