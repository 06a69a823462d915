"""The stand-in for an API server, asked by Kubernetes' own client as a real one is."""

import pytest
import urllib3
from kubernetes import client, config, watch

from tests.servers.kubernetes_api import Answer, KubernetesAPI, Lost

GROUP = ("trainer.kubeflow.org", "v1alpha1", "kubeflow", "trainjobs")
JOB = {
    "apiVersion": "trainer.kubeflow.org/v1alpha1",
    "kind": "TrainJob",
    "metadata": {"name": "a", "labels": {"of": "me"}},
    "spec": {"runtimeRef": {"name": "torch"}, "trainer": {"numNodes": 2}},
}
POD = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "status": {"phase": "Running"}}


@pytest.fixture
def api():
    with KubernetesAPI().running() as server:
        yield server


@pytest.fixture
def connection(api, tmp_path):
    configuration = client.Configuration()
    config.load_kube_config(str(api.write_kubeconfig(tmp_path / "config")), client_configuration=configuration)
    configuration.retries = False
    return client.ApiClient(configuration)


@pytest.fixture
def custom(connection):
    return client.CustomObjectsApi(connection)


@pytest.fixture
def core(connection):
    return client.CoreV1Api(connection)


def status(call, *arguments, **keywords):
    with pytest.raises(client.ApiException) as error:
        call(*arguments, **keywords)
    return error.value.status, error.value.body


def test_an_object_is_created_found_changed_and_deleted(custom):
    made = custom.create_namespaced_custom_object(*GROUP, JOB)
    assert made["metadata"]["uid"]
    assert custom.list_namespaced_custom_object(*GROUP, label_selector="of=me")["items"] == [made]
    assert custom.list_namespaced_custom_object(*GROUP, label_selector="of in (you, them)")["items"] == []
    changed = custom.patch_namespaced_custom_object(*GROUP, "a", {"spec": {"suspend": True}})
    assert changed["spec"]["suspend"] is True
    assert int(changed["metadata"]["resourceVersion"]) > int(made["metadata"]["resourceVersion"])
    assert status(custom.create_namespaced_custom_object, *GROUP, JOB)[0] == 409
    custom.delete_namespaced_custom_object(*GROUP, "a")
    assert status(custom.get_namespaced_custom_object, *GROUP, "a")[0] == 404


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ({"spec": {}}, "'runtimeRef' is a required property"),
        ({"spec": {"runtimeRef": {"name": "t"}, "podSpecOverrides": []}}, "'podSpecOverrides' was unexpected"),
        ({"spec": {"runtimeRef": {"name": "t"}, "trainer": {"numNodes": "2"}}}, "'2' is not of type 'integer'"),
        ({"metadata": {"name": "1a"}}, "RFC 1035"),
        ({"metadata": {"name": "a", "labels": {"of": "x" * 64}}}, "is no label's value"),
    ],
)
def test_what_the_schema_of_its_kind_does_not_know_is_refused(custom, fault, told):
    code, body = status(custom.create_namespaced_custom_object, *GROUP, JOB | fault)
    assert code == 422
    assert told in body


def test_an_immutable_field_is_not_changed(custom):
    custom.create_namespaced_custom_object(*GROUP, JOB)
    code, body = status(custom.patch_namespaced_custom_object, *GROUP, "a", {"spec": {"trainer": {"numNodes": 3}}})
    assert code == 422
    assert "spec.trainer: field is immutable" in body


def test_what_belongs_to_an_object_goes_with_it_and_what_belongs_to_another_too_stays(api, custom):
    owners = [custom.create_namespaced_custom_object(*GROUP, JOB | {"metadata": {"name": name}}) for name in "ab"]
    references = [
        {"apiVersion": "trainer.kubeflow.org/v1alpha1", "kind": "TrainJob"}
        | {key: each["metadata"][key] for key in ("name", "uid")}
        for each in owners
    ]
    for name, of in (("one", references[:1]), ("both", references)):
        api.create({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "ownerReferences": of}})
    custom.delete_namespaced_custom_object(*GROUP, "a")
    assert [pod["metadata"]["name"] for pod in api.all("Pod")] == ["both"]
    custom.delete_namespaced_custom_object(*GROUP, "b")
    assert api.all("Pod") == []


def test_an_object_of_another_uid_is_not_deleted(api, custom):
    custom.create_namespaced_custom_object(*GROUP, JOB)
    body = client.V1DeleteOptions(preconditions=client.V1Preconditions(uid="another"))
    assert status(custom.delete_namespaced_custom_object, *GROUP, "a", body=body)[0] == 409
    assert api.find("TrainJob", "a")


def test_a_watch_tells_what_changes_from_a_version_on(api, core):
    version = core.list_namespaced_pod("kubeflow").metadata.resource_version
    api.create(POD)
    api.change("Pod", "p", lambda pod: pod["status"].update(phase="Succeeded"))
    api.delete("Pod", "p")
    events = watch.Watch().stream(core.list_namespaced_pod, "kubeflow", resource_version=version, timeout_seconds=1)
    assert [(e["type"], e["object"].status.phase) for e in events] == [
        ("ADDED", "Running"),
        ("MODIFIED", "Succeeded"),
        ("DELETED", "Succeeded"),
    ]


def test_a_watch_from_a_forgotten_version_is_gone(api, core):
    api.expire()
    events = watch.Watch().stream(core.list_namespaced_pod, "kubeflow", resource_version="0", timeout_seconds=5)
    assert status(next, events)[0] == 410


def test_a_watch_that_is_cut_ends_in_the_middle(api, core):
    api.create(POD)
    events = watch.Watch().stream(core.list_namespaced_pod, "kubeflow", resource_version="0", timeout_seconds=30)
    next(events)
    api.cut()
    with pytest.raises(urllib3.exceptions.ProtocolError):
        next(events)


def test_a_log_is_followed_until_its_pod_ends(api, core):
    api.create(POD)
    api.log("p", "one")
    lines = core.read_namespaced_pod_log("p", "kubeflow", follow=True, _preload_content=False).stream()
    assert next(lines) == b"one\n"
    api.log("p", "two")
    assert next(lines) == b"two\n"
    api.change("Pod", "p", lambda pod: pod["status"].update(phase="Failed"))
    assert list(lines) == []
    assert status(core.read_namespaced_pod_log, "q", "kubeflow")[0] == 404


def test_faults_come_where_a_test_wants_them(api, core, custom):
    api.fail(Answer(503, "ServiceUnavailable"), when=lambda request: request.verb == "list")
    assert status(core.list_namespaced_pod, "kubeflow")[0] == 503
    core.list_namespaced_pod("kubeflow")
    api.fail(Lost())
    with pytest.raises(urllib3.exceptions.HTTPError):
        custom.create_namespaced_custom_object(*GROUP, JOB)
    assert api.find("TrainJob", "a")
    api.down = True
    with pytest.raises(urllib3.exceptions.HTTPError):
        core.list_namespaced_pod("kubeflow")


def test_what_no_rule_allows_is_forbidden(api, core, custom):
    api.rules = [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get"], "resourceNames": ["p"]}]
    api.create(POD)
    core.read_namespaced_pod("p", "kubeflow")
    for call, arguments in (
        (core.read_namespaced_pod, ("q", "kubeflow")),
        (core.list_namespaced_pod, ("kubeflow",)),
        (core.read_namespaced_pod_log, ("p", "kubeflow")),
        (custom.create_namespaced_custom_object, (*GROUP, JOB)),
    ):
        code, body = status(call, *arguments)
        assert code == 403
        assert "cannot" in body
