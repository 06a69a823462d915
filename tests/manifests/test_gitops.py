"""The installation as Argo CD keeps it: every folder followed, what is needed before what needs it."""

import re

from tests.manifests.test_enterprise import entries, identity
from tests.manifests.test_free_tier import of_kind


def applications(manifests):
    """The Applications that the root one keeps, by name."""
    return {name: item for name, item in of_kind(manifests, "Application").items() if name != "aic-gpt"}


def sources(application):
    spec = application["spec"]
    return spec["sources"] if "sources" in spec else [spec["source"]]


def folders_of(application):
    """The folders of the overlay that an Application follows, as the overlay's kustomization names them."""
    paths = [source["path"] for source in sources(application) if "path" in source]
    return [path.removeprefix("manifests/overlays/enterprise/") for path in paths]


def wave_of(application):
    return int(application["metadata"]["annotations"]["argocd.argoproj.io/sync-wave"])


def test_the_root_application_keeps_all_others_and_not_itself(concerns):
    """Where Applications have a health check, one that is in a wave of its own would wait for itself."""
    root = of_kind(concerns["gitops"], "Application")
    assert set(root) == {"aic-gpt"}
    (path,) = folders_of(root["aic-gpt"])
    assert root.keys().isdisjoint(of_kind(concerns[path], "Application"))
    assert {item["kind"] for item in concerns[path]} == {"Application"}


def test_every_folder_of_the_overlay_has_one_application_that_follows_it(enterprise, concerns, folder):
    followed = [name for item in of_kind(enterprise, "Application").values() for name in folders_of(item)]
    assert sorted(followed) == sorted({*concerns, "kfp/installation"} - {"gitops"})
    assert all((folder / name / "kustomization.yaml").is_file() for name in followed)


def test_applications_keep_to_what_their_project_allows(enterprise):
    projects = of_kind(enterprise, "AppProject")
    for name, item in of_kind(enterprise, "Application").items():
        project = projects[item["spec"]["project"]]["spec"]
        assert {source["repoURL"] for source in sources(item)} <= set(project["sourceRepos"]), name
        destination = item["spec"]["destination"]
        assert destination in project["destinations"], name


def test_charts_are_pinned_to_the_versions_that_this_was_written_for(enterprise):
    charts = {
        source["chart"]: source["targetRevision"]
        for item in applications(enterprise).values()
        for source in sources(item)
        if "chart" in source
    }
    assert all(re.fullmatch(r"v?\d+\.\d+\.\d+", version) for version in charts.values())
    assert charts["kubeflow-trainer"] == "2.3.0"
    assert charts["spark-operator"] == "2.5.0"
    assert {charts[name] for name in ("kserve-crd", "kserve-resources", "kserve-runtime-configs")} == {"v0.20.0"}


def test_what_our_project_may_not_do_is_not_asked_of_it(enterprise, concerns):
    project = of_kind(enterprise, "AppProject")["aic-gpt"]["spec"]
    allowed = {(entry["group"], entry["kind"]) for entry in project["clusterResourceWhitelist"]}
    namespaces = {destination["namespace"] for destination in project["destinations"]}
    ours = [item for item in of_kind(enterprise, "Application").values() if item["spec"]["project"] == "aic-gpt"]
    for item in (item for one in ours for name in folders_of(one) for item in concerns[name]):
        group = item["apiVersion"].rpartition("/")[0]
        if "namespace" in item["metadata"]:
            assert item["metadata"]["namespace"] in namespaces, identity(item)
        else:
            assert (group, item["kind"]) in allowed, identity(item)


# What an Application brings and needs that its own manifests do not show, for it is in a chart.
BRINGS = {
    "external-secrets": {"group external-secrets.io"},
    "envoy-gateway": {"group gateway.networking.k8s.io", "group gateway.envoyproxy.io"},
    "cert-manager": {"group cert-manager.io"},
    "kube-prometheus-stack": {"group monitoring.coreos.com"},
    "kueue": {"group kueue.x-k8s.io"},
    "kubeflow-trainer": {"group trainer.kubeflow.org"},
    "kserve-crd": {"group serving.kserve.io"},
    "kserve": {"webhook of KServe"},
    "kserve-runtimes": {"runtime kserve-huggingfaceserver"},
}
NEEDS = {
    "kserve": {"group serving.kserve.io", "group cert-manager.io"},
    "kserve-runtimes": {"group serving.kserve.io", "webhook of KServe"},
}
KUBERNETES = {
    "",
    "apps",
    "autoscaling",
    "networking.k8s.io",
    "policy",
    "rbac.authorization.k8s.io",
    "scheduling.k8s.io",
}


def asked_by_values(values, namespace):
    """What a chart needs that is given these values."""
    for key, value in entries(values):
        if key == "existingSecret":
            yield f"secret {namespace}/{value}"
        elif key == "enableGatewayAPI" and value:
            yield "group gateway.networking.k8s.io"
        elif (key == "serviceMonitor" and value["enabled"]) or (key == "enablePrometheus" and value):
            yield "group monitoring.coreos.com"
        elif key == "jobNamespaces":
            yield from (f"namespace {name}" for name in value)


def asked_by(item):
    """What a manifest needs to be taken by the API server, and its pods to start."""
    namespace = item["metadata"].get("namespace")
    if (group := item["apiVersion"].rpartition("/")[0]) not in KUBERNETES:
        yield f"group {group}"
    if namespace:
        yield f"namespace {namespace}"
    if item["kind"] == "ServiceAccount":
        yield from (f"secret {namespace}/{secret['name']}" for secret in item.get("secrets", []))
    if "cert-manager.io/cluster-issuer" in item["metadata"].get("annotations", {}):
        yield "group cert-manager.io"
    for key, value in entries(item):
        if key in ("secretRef", "secretKeyRef") and not value.get("optional"):
            yield f"secret {namespace}/{value['name']}"
        elif key == "credentialRefs":
            yield from (f"secret {namespace}/{reference['name']}" for reference in value)
        elif key == "parentRefs":
            yield from (f"Gateway {reference['namespace']}/{reference['name']}" for reference in value)
        elif key == "runtime":
            yield f"runtime {value}"


def brought_by(item):
    namespace, name = item["metadata"].get("namespace"), item["metadata"]["name"]
    if item["kind"] == "Namespace":
        yield f"namespace {name}"
    elif item["kind"] == "ExternalSecret":
        yield f"secret {namespace}/{name}"
    elif item["kind"] == "Gateway":
        yield f"Gateway {namespace}/{name}"


def test_no_application_comes_before_one_that_it_needs(enterprise, concerns):
    needs, brings = {}, {}
    for name, item in applications(enterprise).items():
        namespace = item["spec"]["destination"]["namespace"]
        manifests = [one for path in folders_of(item) if path in concerns for one in concerns[path]]
        needs[name] = NEEDS.get(name, set()) | {need for one in manifests for need in asked_by(one)}
        needs[name] |= {need for source in sources(item) for need in asked_by_values(source.get("helm", {}), namespace)}
        brings[name] = BRINGS.get(name, set()) | {thing for one in manifests for thing in brought_by(one)}
        if "CreateNamespace=true" in item["spec"]["syncPolicy"]["syncOptions"]:
            brings[name].add(f"namespace {namespace}")
    waves = {name: wave_of(item) for name, item in applications(enterprise).items()}
    for name, asked in needs.items():
        for need in asked - brings[name]:
            first = min((waves[other] for other in waves if need in brings[other]), default=None)
            assert first is not None, f"{name} needs {need}, which nothing brings"
            assert first < waves[name], f"{name} needs {need}, which comes in wave {first}"
    asked = set().union(*needs.values())
    assert {need for need in asked if need.startswith("secret")} == {
        "secret mlflow/mlflow",
        "secret monitoring/grafana-admin",
        "secret aic-gpt-serving/aic-gpt-models",
        "secret aic-gpt-serving/aic-gpt-clients",
    }


def test_what_comes_too_early_is_tried_again_with_what_git_has_by_then(enterprise):
    for name, item in of_kind(enterprise, "Application").items():
        retry = item["spec"]["syncPolicy"]["retry"]
        assert (retry["limit"], retry["refresh"]) == (-1, True), name
