"""The small installation: valid, closed by default, without a secret, and small."""

import re

import pytest
from kubernetes.utils.quantity import parse_quantity

import modelcore


def of_kind(manifests, kind):
    return {item["metadata"]["name"]: item for item in manifests if item["kind"] == kind}


def pods(manifests):
    """Pod templates by name of what runs them."""
    workloads = of_kind(manifests, "Deployment") | of_kind(manifests, "StatefulSet")
    return {name: item["spec"]["template"] for name, item in workloads.items()}


def test_it_is_mlflow_and_its_database(free_tier):
    assert sorted(pods(free_tier)) == ["mlflow", "postgresql"]


def test_every_namespace_of_its_own_enforces_the_restricted_profile(free_tier):
    namespaces = of_kind(free_tier, "Namespace")
    assert namespaces
    for namespace in namespaces.values():
        assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    elsewhere = {item["metadata"].get("namespace") for item in free_tier if item["kind"] != "Namespace"}
    assert elsewhere <= {*namespaces, "kubeflow"}


@pytest.mark.parametrize("name", ["mlflow", "postgresql"])
def test_pods_keep_to_the_restricted_profile_and_to_a_read_only_root(free_tier, name):
    """https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted"""
    spec = pods(free_tier)[name]["spec"]
    assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] > 0
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert all(volume.keys() & {"emptyDir", "persistentVolumeClaim"} for volume in spec["volumes"])
    for container in spec["containers"] + spec.get("initContainers", []):
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["readOnlyRootFilesystem"] is True
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert not any("hostPort" in port for port in container["ports"])


def test_mlflow_runs_as_its_image_does(free_tier):
    context = pods(free_tier)["mlflow"]["spec"]["securityContext"]
    assert (context["runAsUser"], context["runAsGroup"]) == (10001, 10001)


@pytest.mark.parametrize("name", ["mlflow", "postgresql"])
def test_pods_have_an_account_of_their_own_without_a_token_and_without_a_role(free_tier, name):
    spec = pods(free_tier)[name]["spec"]
    assert spec["serviceAccountName"] == name
    assert spec["automountServiceAccountToken"] is False
    assert of_kind(free_tier, "ServiceAccount")[name]["automountServiceAccountToken"] is False
    assert not any(item["kind"].endswith("Binding") for item in free_tier)


@pytest.mark.parametrize("name", ["mlflow", "postgresql"])
def test_containers_are_probed_and_bounded(free_tier, name):
    for container in pods(free_tier)[name]["spec"]["containers"]:
        assert {"startupProbe", "readinessProbe", "livenessProbe"} <= container.keys()
        for resource in ("cpu", "memory"):
            asked, most = (container["resources"][key][resource] for key in ("requests", "limits"))
            assert 0 < parse_quantity(asked) <= parse_quantity(most)


def test_mlflow_is_probed_where_it_answers_any_host_name_and_without_a_password(free_tier):
    container = pods(free_tier)["mlflow"]["spec"]["containers"][0]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"] == {"path": "/health", "port": "http"}
    assert {"name": "http", "containerPort": 5000} in container["ports"]


def test_mlflows_own_service_does_not_reach_it_as_its_port(free_tier):
    """A service named mlflow would set MLFLOW_PORT to tcp://..., which the server would take for its port."""
    assert "mlflow" in of_kind(free_tier, "Service")
    assert pods(free_tier)["mlflow"]["spec"]["enableServiceLinks"] is False


def test_images_are_pinned_and_mlflows_is_this_versions(free_tier):
    images = [container["image"] for pod in pods(free_tier).values() for container in pod["spec"]["containers"]]
    assert f"aic-ai-poc-gpt-mlflow:{modelcore.__version__}" in images
    assert all(re.search(r":\d+(\.\d+)+(-[a-z]+)?$", image) for image in images)


def test_services_find_their_pods(free_tier):
    for name, service in of_kind(free_tier, "Service").items():
        template = pods(free_tier)[name]
        assert service["spec"]["selector"].items() <= template["metadata"]["labels"].items()
        names = {port["name"] for container in template["spec"]["containers"] for port in container["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= names


def test_nothing_goes_in_or_out_but_what_a_policy_names(free_tier):
    policies = of_kind(free_tier, "NetworkPolicy")
    assert policies["default-deny"]["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    for name, policy in policies.items():
        for rule in policy["spec"].get("ingress", []) + policy["spec"].get("egress", []):
            assert rule["ports"], name
            assert all(peer for peer in rule.get("from", []) + rule.get("to", [])), name
            assert rule.keys() & {"from", "to"}, name


def test_mlflow_is_reached_by_pipeline_runs_and_kfps_api_server_alone(free_tier):
    (rule,) = of_kind(free_tier, "NetworkPolicy")["mlflow"]["spec"]["ingress"]
    assert [port["port"] for port in rule["ports"]] == [5000]
    for peer in rule["from"]:
        assert peer["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "kubeflow"}
    assert [peer["podSelector"] for peer in rule["from"]] == [
        {"matchExpressions": [{"key": "pipeline/runid", "operator": "Exists"}]},
        {"matchLabels": {"app": "ml-pipeline"}},
    ]


def test_mlflow_reaches_its_database_its_object_store_and_names(free_tier):
    policies = of_kind(free_tier, "NetworkPolicy")
    rules = policies["mlflow"]["spec"]["egress"] + policies["mlflow-stores"]["spec"]["egress"]
    assert sorted(port["port"] for rule in rules for port in rule["ports"]) == [53, 53, 5432, 8333]
    opened = policies["seaweedfs-from-mlflow"]
    assert opened["metadata"]["namespace"] == "kubeflow"
    assert opened["spec"]["ingress"][0]["ports"] == [{"protocol": "TCP", "port": 8333}]


def test_the_settings_name_the_server_as_pods_address_it(free_tier):
    (name,) = of_kind(free_tier, "ConfigMap")
    settings = of_kind(free_tier, "ConfigMap")[name]["data"]
    hosts = settings["MLFLOW_SERVER_ALLOWED_HOSTS"].split(",")
    assert "mlflow.mlflow.svc.cluster.local:5000" in hosts
    assert "*" not in hosts
    assert settings["MLFLOW_ARTIFACTS_DESTINATION"].startswith("s3://")
    references = pods(free_tier)["mlflow"]["spec"]["containers"][0]["envFrom"]
    assert references == [{"configMapRef": {"name": name}}, {"secretRef": {"name": "mlflow"}}]


def test_it_asks_for_little_memory(free_tier):
    """docs/kubernetes.md has these sums."""
    containers = [container for pod in pods(free_tier).values() for container in pod["spec"]["containers"]]
    for key, mib in (("requests", 640), ("limits", 1536)):
        assert sum(parse_quantity(container["resources"][key]["memory"]) for container in containers) == mib * 2**20
