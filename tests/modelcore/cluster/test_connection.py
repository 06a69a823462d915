"""Asking the API server, again where that helps."""

import logging
import threading

import pytest
from kubernetes import client
from kubernetes.config import incluster_config

from modelcore.cluster.connection import Cluster
from modelcore.errors import InputError
from tests.servers.kubernetes_api import Answer, Page


@pytest.fixture
def cluster(api):
    api.rules = None
    return Cluster.connect()


def pods(cluster):
    return cluster.call("list pods", cluster.core.list_namespaced_pod, cluster.namespace)


def test_outside_of_a_pod_the_cluster_is_the_one_of_kubeconfig(cluster, api):
    assert cluster.namespace == "kubeflow"
    assert [pod["metadata"]["name"] for pod in pods(cluster)["items"]] == ["run-x-pretrain-1"]
    assert api.requests[-1].token == "first"


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_an_answer_that_passes_is_waited_for(cluster, api, status):
    api.fail(*[Answer(status, "Busy")] * 3)
    assert pods(cluster)["items"]
    assert not api.pending


def test_a_server_that_stays_away_is_told_once_and_its_return_too(cluster, api, said, meanwhile, told):
    def come_back():
        told("the cluster does not answer to list pods")
        api.down = False

    api.down = True
    meanwhile(come_back)
    assert pods(cluster)["items"]
    about = [line for line in said() if "list pods" in line]
    assert len(about) == 2
    assert "trying on" in about[0]
    assert about[1] == "the cluster answers again to list pods"


def test_patience_ends_with_one_line(cluster, api):
    api.down = True
    with pytest.raises(InputError, match="the cluster does not answer to list pods"):
        cluster.call("list pods", cluster.core.list_namespaced_pod, cluster.namespace, patience=0.0)


def test_what_is_not_there_is_left_to_who_asked(cluster):
    with pytest.raises(client.ApiException) as error:
        cluster.call("get pod x", cluster.core.read_namespaced_pod, "x", cluster.namespace)
    assert error.value.status == 404


def test_a_token_that_never_was_good_is_an_error_and_one_that_is_replaced_is_not(cluster, api):
    api.fail(Answer(401, "Unauthorized"))
    with pytest.raises(InputError, match="the cluster refuses to list pods: as the test wants it"):
        pods(cluster)
    pods(cluster)
    api.fail(Answer(401, "Unauthorized"))
    pods(cluster)
    assert not api.pending


def test_in_a_pod_the_token_is_read_again_when_it_was_replaced(api, tmp_path, monkeypatch):
    account = tmp_path / "serviceaccount"
    account.mkdir()
    for name, content in (("token", "one"), ("ca.crt", "a certificate"), ("namespace", "kubeflow\n")):
        (account / name).write_text(content)
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(account / "token"))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(account / "ca.crt"))
    host, port = api.url.removeprefix("http://").split(":")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", host)
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", port)
    load = incluster_config.InClusterConfigLoader._load_config

    def load_for_the_stand_in(self):
        """It speaks no TLS, and here a minute is over at once."""
        self._token_refresh_period *= 0
        load(self)
        self.host = api.url

    monkeypatch.setattr(incluster_config.InClusterConfigLoader, "_load_config", load_for_the_stand_in)
    api.rules = None
    cluster = Cluster.connect()
    pods(cluster)
    (account / "token").write_text("two")
    pods(cluster)
    assert [each.token for each in api.requests] == ["one", "two"]


def test_a_watch_ends_when_it_is_told_to(cluster, api):
    ended = threading.Event()
    changes = cluster.watch("watch pods", cluster.core.list_namespaced_pod, cluster.namespace, ended=ended)
    assert len(next(changes)) == 1
    ended.set()
    api.delete("Pod", "run-x-pretrain-1")
    assert next(changes) == []
    api.cut()
    assert list(changes) == []


def test_a_server_that_closes_watches_at_once_is_asked_less_and_less_often(cluster, api, meanwhile, monkeypatch):
    waits = []
    monkeypatch.setattr(Cluster, "wait_seconds", lambda self, number: waits.append(number) or 0.0)
    api.impatient = True
    changes = cluster.watch("watch pods", cluster.core.list_namespaced_pod, cluster.namespace, ended=threading.Event())
    assert len(next(changes)) == 1

    def life():
        api.wait_for(lambda: len(waits) >= 4)
        api.create({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}})

    meanwhile(life)
    assert len(next(changes)) == 2
    assert waits == list(range(len(waits)))
    told = len(waits)
    meanwhile(lambda: (api.wait_for(lambda: len(waits) > told), api.delete("Pod", "p")))
    assert len(next(changes)) == 1
    assert waits[told] == 0, "it had told something"


def test_a_server_that_forgets_every_version_at_once_is_asked_less_and_less_often(cluster, api, monkeypatch):
    waits = []
    monkeypatch.setattr(Cluster, "wait_seconds", lambda self, number: waits.append(number) or 0.0)
    api.fail(*[Answer(410, "Expired")] * 5, when=lambda request: request.verb == "watch")
    changes = cluster.watch("watch pods", cluster.core.list_namespaced_pod, cluster.namespace, ended=threading.Event())
    for _ in range(6):
        assert len(next(changes)) == 1
    assert waits == [0, 1, 2, 3, 4]


def test_a_wait_grows_to_a_bound():
    waits = [Cluster.wait_seconds(Cluster, failures) for failures in range(40)]
    assert all(0.25 <= wait <= 30.0 for wait in waits)
    assert min(waits[7:]) >= 15.0


def test_a_token_that_stays_refused_is_an_error_in_the_end(cluster, api, monkeypatch):
    pods(cluster)
    monkeypatch.setattr(Cluster, "token_wait", 0.0)
    api.fail(Answer(401, "Unauthorized"))
    with pytest.raises(InputError, match="the cluster refuses to list pods: as the test wants it"):
        pods(cluster)


def test_a_page_in_the_place_of_an_answer_is_waited_out(cluster, api):
    api.fail(*[Page("<html>starting</html>")] * 2)
    assert pods(cluster)["items"]
    assert not api.pending


@pytest.mark.parametrize(
    "page", ["<html>starting</html>\n", '{"type": "MODIFIED", "object": {"metad', "[]\n", '{"a": 1}\n']
)
def test_half_a_line_of_a_watch_is_a_watch_that_was_cut(cluster, api, page):
    changes = cluster.watch("watch pods", cluster.core.list_namespaced_pod, cluster.namespace, ended=threading.Event())
    next(changes)
    api.fail(Page(page), when=lambda request: request.verb == "watch")
    api.create({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}})
    assert len(next(changes)) == 2
    assert not api.pending


def test_nothing_is_said_of_a_single_bad_answer(cluster, api, caplog):
    caplog.set_level(logging.INFO)
    api.fail(Answer(503, "Busy"))
    pods(cluster)
    assert not caplog.records
