"""What may speak to what in the large installation, by the network policies as Kubernetes reads them.

https://kubernetes.io/docs/concepts/services-networking/network-policies/
"""

import ipaddress
from dataclasses import dataclass

import pytest

from tests.manifests.test_free_tier import of_kind


@dataclass(frozen=True)
class Pod:
    namespace: str
    labels: dict[str, str]


def selects(selector, labels):
    """An empty selector selects everything."""
    for key, value in selector.get("matchLabels", {}).items():
        if labels.get(key) != value:
            return False
    for one in selector.get("matchExpressions", []):
        assert one["operator"] in ("Exists", "In")
        if one["key"] not in labels or labels[one["key"]] not in one.get("values", [labels[one["key"]]]):
            return False
    return True


def is_peer(peer, other, namespace):
    """Whether a pod, or an address outside of the cluster, is one that a rule names."""
    if isinstance(other, str):
        block = peer.get("ipBlock")
        if block is None or ipaddress.ip_address(other) not in ipaddress.ip_network(block["cidr"]):
            return False
        return not any(ipaddress.ip_address(other) in ipaddress.ip_network(one) for one in block.get("except", []))
    if "ipBlock" in peer:
        return False
    if "namespaceSelector" in peer:
        if not selects(peer["namespaceSelector"], {"kubernetes.io/metadata.name": other.namespace}):
            return False
    elif other.namespace != namespace:
        return False
    return selects(peer.get("podSelector", {}), other.labels)


def is_port(port, number, protocol):
    return port["protocol"] == protocol and port["port"] <= number <= port.get("endPort", port["port"])


def lets(policies, direction, pod, other, number, protocol):
    """Whether the policies of a pod let it be spoken to (Ingress), or speak (Egress). Without any it may all."""
    mine = [
        item["spec"]
        for item in policies
        if item["metadata"]["namespace"] == pod.namespace
        and direction in item["spec"]["policyTypes"]
        and selects(item["spec"]["podSelector"], pod.labels)
    ]
    return not mine or any(
        any(is_peer(peer, other, pod.namespace) for peer in rule["from" if direction == "Ingress" else "to"])
        and any(is_port(port, number, protocol) for port in rule["ports"])
        for spec in mine
        for rule in spec.get(direction.lower(), [])
    )


@pytest.fixture(scope="module")
def flows(enterprise):
    """Whether one may speak to another."""
    policies = [item for item in enterprise if item["kind"] == "NetworkPolicy"]

    def may(source, target, number, protocol="TCP"):
        out = isinstance(source, str) or lets(policies, "Egress", source, target, number, protocol)
        return out and (isinstance(target, str) or lets(policies, "Ingress", target, source, number, protocol))

    return may


@pytest.fixture(scope="module")
def pods(enterprise):
    """Pods by what they do; ours with the labels that their manifests give them, others' with those of their charts."""
    mlflow = of_kind(enterprise, "Deployment")["mlflow"]["spec"]["template"]["metadata"]["labels"]
    served = of_kind(enterprise, "InferenceService")["aic-gpt-v1"]["spec"]["predictor"]["labels"]
    run = {"pipeline/runid": "7f0c"}
    kfp = {"application-crd-id": "kubeflow-pipelines"}
    job = {"jobset.sigs.k8s.io/jobset-name": "train"}
    return {
        "stage": Pod("kubeflow", run),
        "rank 0": Pod("kubeflow", job | {"batch.kubernetes.io/job-completion-index": "0"}),
        "rank 1": Pod("kubeflow", job | {"batch.kubernetes.io/job-completion-index": "1"}),
        "driver": Pod("kubeflow", run | {"spark-role": "driver"}),
        "executor": Pod("kubeflow", run | {"spark-role": "executor"}),
        "KFP's API server": Pod("kubeflow", kfp | {"app": "ml-pipeline"}),
        "KFP's pages": Pod("kubeflow", kfp | {"app": "ml-pipeline-ui"}),
        "KFP's metadata": Pod("kubeflow", kfp | {"component": "metadata-grpc-server"}),
        "KFP's database": Pod("kubeflow", kfp | {"app": "mysql"}),
        "KFP's object store": Pod("kubeflow", kfp | {"app": "seaweedfs"}),
        "Argo's controller": Pod("kubeflow", kfp | {"app": "workflow-controller"}),
        "MLflow": Pod("mlflow", mlflow),
        "served": Pod("aic-gpt-serving", served),
        "gateway": Pod("envoy-gateway-system", {"gateway.envoyproxy.io/owning-gateway-name": "aic-gpt"}),
        "Prometheus": Pod("monitoring", {"app.kubernetes.io/name": "prometheus"}),
        "DNS": Pod("kube-system", {"k8s-app": "kube-dns"}),
        "another": Pod("kubeflow", {"app": "notebook"}),
        "stranger": Pod("default", {"app": "notebook"}),
        "database": "192.0.2.10",
        "S3": "203.0.113.5",
        "API server": "10.0.0.1",
        "the node's credentials": "169.254.169.254",
    }


@pytest.mark.parametrize(
    ("source", "target", "port"),
    [
        ("stage", "KFP's API server", 8887),
        ("stage", "KFP's metadata", 8080),
        ("stage", "KFP's object store", 8333),
        ("stage", "MLflow", 5000),
        ("stage", "S3", 443),
        ("stage", "API server", 443),
        ("stage", "API server", 6443),
        ("KFP's API server", "MLflow", 5000),
        ("KFP's API server", "KFP's database", 3306),
        ("KFP's metadata", "KFP's database", 3306),
        ("KFP's pages", "KFP's API server", 8888),
        ("rank 0", "rank 1", 29400),
        ("rank 1", "rank 0", 29400),
        ("rank 0", "MLflow", 5000),
        ("rank 1", "S3", 443),
        ("driver", "executor", 7079),
        ("executor", "driver", 7078),
        ("driver", "API server", 6443),
        ("driver", "MLflow", 5000),
        ("executor", "S3", 443),
        ("MLflow", "database", 5432),
        ("MLflow", "S3", 443),
        ("gateway", "MLflow", 5000),
        ("gateway", "served", 8080),
        ("served", "S3", 443),
        ("Prometheus", "served", 8080),
        ("Prometheus", "rank 0", 9464),
        ("Prometheus", "Argo's controller", 9090),
    ],
)
def test_what_must_flow_flows(flows, pods, source, target, port):
    assert flows(pods[source], pods[target], port)


@pytest.mark.parametrize("source", ["stage", "rank 0", "driver", "executor", "MLflow", "served"])
def test_names_are_found_by_udp_and_by_tcp(flows, pods, source):
    assert flows(pods[source], pods["DNS"], 53, "UDP")
    assert flows(pods[source], pods["DNS"], 53)


@pytest.mark.parametrize(
    ("source", "target", "port"),
    [
        ("another", "MLflow", 5000),
        ("stranger", "MLflow", 5000),
        ("served", "MLflow", 5000),
        ("MLflow", "database", 22),
        ("MLflow", "API server", 6443),
        ("stranger", "served", 8080),
        ("stranger", "KFP's API server", 8888),
        ("stranger", "KFP's metadata", 8080),
        ("stranger", "KFP's database", 3306),
        ("stage", "KFP's database", 3306),
        ("stage", "served", 8080),
        ("another", "rank 0", 29400),
        ("stage", "rank 0", 29400),
        ("another", "stage", 8080),
        ("rank 0", "API server", 6443),
        ("rank 0", "KFP's object store", 8333),
        ("served", "database", 5432),
        ("stage", "the node's credentials", 443),
        ("rank 0", "the node's credentials", 443),
        ("driver", "the node's credentials", 443),
        ("MLflow", "the node's credentials", 443),
        ("served", "the node's credentials", 443),
    ],
)
def test_what_nobody_needs_does_not(flows, pods, source, target, port):
    assert not flows(pods[source], pods[target], port)
