"""The large installation: valid, closed by default, without a secret, and set in one place."""

import re
import shutil
import subprocess
import sys

import pytest
import yaml
from kubernetes.utils.quantity import parse_quantity

from components.images import MLFLOW_IMAGE, MODEL_IMAGE
from pipelines.profile import STORAGE_SECRET
from tests.manifests.test_free_tier import of_kind

# Kinds whose schemas are not at hand: Gateway API, Envoy Gateway, External Secrets, and one of Kueue's.
UNCHECKED = {
    "Gateway",
    "GatewayClass",
    "HTTPRoute",
    "SecurityPolicy",
    "EnvoyProxy",
    "ExternalSecret",
    "SecretStore",
    "WorkloadPriorityClass",
}


def identity(item):
    return item["kind"], item["metadata"].get("namespace"), item["metadata"]["name"]


def entries(node):
    """Every key of a tree with its value."""
    if isinstance(node, dict):
        yield from node.items()
    for inner in node.values() if isinstance(node, dict) else node if isinstance(node, list) else []:
        yield from entries(inner)


def test_the_folders_together_are_the_overlay_and_no_thing_is_in_two(concerns, enterprise):
    alone = [identity(item) for items in concerns.values() for item in items]
    assert len(alone) == len(set(alone))
    assert sorted(map(str, alone)) == sorted(str(identity(item)) for item in enterprise)


def test_custom_resources_keep_to_their_operators_schemas_but_for_the_kinds_named_here(
    enterprise, repository, tmp_path
):
    validator = repository.parent / "shared" / "tools" / "validate-manifests.py"
    if not validator.is_file():
        pytest.skip(f"there is no {validator}")
    (tmp_path / "enterprise.yaml").write_text(yaml.safe_dump_all(enterprise))
    line = [sys.executable, validator, tmp_path / "enterprise.yaml"]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert set(re.findall(r"^unchecked: (\w+)/", done.stdout, re.MULTILINE)) == UNCHECKED


# --- values


@pytest.fixture(scope="session")
def values(folder):
    lines = (folder / "values" / "values.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def check_values(repository, file):
    line = [sys.executable, repository / "scripts" / "enterprise-values.py", file]
    return subprocess.run(line, capture_output=True, text=True, check=False)


EXAMPLES = r"example|192\.0\.2\.|123456789012"
OWN = {
    "IMAGE_REGISTRY": "registry.aic.test:5000/team/gpt",
    "GIT_REPOSITORY": "git@git.aic.test:ml/aic-ai-poc-gpt.git",
    "GIT_REVISION": "release-3",
    "MLFLOW_HOST": "mlflow.aic.test",
    "SERVING_HOST": "gpt.aic.test",
    "CLUSTER_ISSUER": "letsencrypt",
    "MLFLOW_ARTIFACTS": "s3://aic-tracking/mlflow",
    "MODELS_BUCKET": "aic-served",
    "S3_ENDPOINT": "https://minio.aic.test",
    "AWS_REGION": "eu-central-2",
    "DATABASE_NETWORK": "10.7.0.0/24",
    "READER_ROLE": "arn:aws:iam::998877665544:role/gpt",
    "WORKSPACE_STORAGE_CLASS": "efs",
    "WORKSPACE_SIZE": "7Ti",
    "GPU_QUOTA": "72",
    "CPU_QUOTA": "777",
    "MEMORY_QUOTA": "7777Gi",
}


@pytest.fixture(scope="session")
def own(folder, kubectl, tmp_path_factory):
    """The overlay with every value set to another than the example's, as text."""
    copy = tmp_path_factory.mktemp("own") / "manifests"
    shutil.copytree(folder.parents[1], copy)
    target = copy / "overlays" / "enterprise"
    (target / "values" / "values.env").write_text("".join(f"{name}={value}\n" for name, value in OWN.items()))
    line = [kubectl, "kustomize", target]
    return subprocess.run(line, capture_output=True, text=True, check=True).stdout


def test_every_value_arrives_where_it_is_needed_and_no_example_is_left(values, own):
    assert values.keys() == OWN.keys()
    for name, value in OWN.items():
        assert value in own, name
    assert not re.search(EXAMPLES, own)
    assert "set-by" not in own


def test_our_images_come_from_the_companys_registry_with_their_names_and_tags(own):
    images = [value for item in yaml.safe_load_all(own) for key, value in entries(item) if key == "image"]
    assert sorted(images) == [f"{OWN['IMAGE_REGISTRY']}/{name}" for name in (MLFLOW_IMAGE, MODEL_IMAGE)]


def test_examples_stand_in_the_one_file_alone(folder):
    for file in folder.rglob("*"):
        if file.is_file() and file.name != "values.env":
            assert not re.search(EXAMPLES, file.read_text()), file


def test_the_check_names_what_is_still_the_examples(repository, folder, values, tmp_path):
    done = check_values(repository, folder / "values" / "values.env")
    assert done.returncode == 1
    told = {line.split()[0] for line in done.stdout.splitlines()[:-1]}
    assert told == {name for name, value in values.items() if re.search(EXAMPLES, value)}


def test_the_check_is_content_with_a_companys_own(repository, tmp_path):
    (tmp_path / "values.env").write_text("# ours\n" + "".join(f"{name}={value}\n" for name, value in OWN.items()))
    done = check_values(repository, tmp_path / "values.env")
    assert (done.returncode, done.stdout.count("\n")) == (0, 1)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("S3_ENDPOINT", "http://minio.aic.test"),
        ("S3_ENDPOINT", "https://minio.aic.test/bucket"),
        ("MODELS_BUCKET", "s3://aic-served"),
        ("MLFLOW_HOST", "https://mlflow.aic.test"),
        ("IMAGE_REGISTRY", "https://registry.aic.test"),
        ("IMAGE_REGISTRY", "registry.aic.test/gpt/"),
        ("IMAGE_REGISTRY", "registry.aic.test/mlflow:1.0"),
        ("GPU_QUOTA", "many"),
        ("SURPRISE", "1"),
    ],
)
def test_the_check_names_a_value_that_cannot_be_right(repository, tmp_path, name, value):
    text = "".join(f"{key}={given}\n" for key, given in (OWN | {name: value}).items())
    (tmp_path / "values.env").write_text(text)
    done = check_values(repository, tmp_path / "values.env")
    assert done.returncode == 1
    assert [line.split()[0] for line in done.stdout.splitlines()[:-1]] == [name]


# --- what runs


def test_every_namespace_of_its_own_enforces_the_restricted_profile(enterprise):
    namespaces = of_kind(enterprise, "Namespace")
    assert set(namespaces) == {"mlflow", "aic-gpt-serving", "aic-gpt-gateway"}
    for namespace in namespaces.values():
        assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


def pod_specs(manifests):
    """Pods' specifications by name of what runs them, MLflow's and KServe's, with their containers."""
    for name, item in of_kind(manifests, "Deployment").items():
        spec = item["spec"]["template"]["spec"]
        yield name, spec, spec["containers"] + spec.get("initContainers", [])
    for name, item in of_kind(manifests, "InferenceService").items():
        spec = item["spec"]["predictor"]
        yield name, spec, [spec["model"]]


def test_pods_keep_to_the_restricted_profile_are_probed_and_bounded(enterprise):
    names = []
    for name, spec, containers in pod_specs(enterprise):
        names.append(name)
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] > 0
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["automountServiceAccountToken"] is False
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
        for container in containers:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert {"startupProbe", "readinessProbe", "livenessProbe"} <= container.keys()
            for resource in ("cpu", "memory"):
                asked, most = (container["resources"][key][resource] for key in ("requests", "limits"))
                assert 0 < parse_quantity(asked) <= parse_quantity(most)
    assert names == ["mlflow", "aic-gpt-v1"]


def test_mlflow_has_two_replicas_or_more_that_do_not_go_at_once(enterprise):
    deployment = of_kind(enterprise, "Deployment")["mlflow"]["spec"]
    assert "replicas" not in deployment
    scaler = of_kind(enterprise, "HorizontalPodAutoscaler")["mlflow"]["spec"]
    assert scaler["scaleTargetRef"] == {"apiVersion": "apps/v1", "kind": "Deployment", "name": "mlflow"}
    assert scaler["minReplicas"] >= 2
    assert deployment["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    budget = of_kind(enterprise, "PodDisruptionBudget")["mlflow"]["spec"]
    assert budget["maxUnavailable"] == 1
    labels = deployment["template"]["metadata"]["labels"]
    assert budget["selector"]["matchLabels"].items() <= labels.items()
    keys = {spread["topologyKey"] for spread in deployment["template"]["spec"]["topologySpreadConstraints"]}
    assert keys == {"kubernetes.io/hostname", "topology.kubernetes.io/zone"}


def test_the_gateway_is_two_proxies_that_do_not_go_at_once(enterprise):
    reference = of_kind(enterprise, "Gateway")["aic-gpt"]["spec"]["infrastructure"]["parametersRef"]
    assert reference["kind"] == "EnvoyProxy"
    proxy = of_kind(enterprise, "EnvoyProxy")[reference["name"]]["spec"]["provider"]["kubernetes"]
    assert proxy["envoyDeployment"]["replicas"] == 2
    assert proxy["envoyPDB"] == {"maxUnavailable": 1}


def test_a_disruption_budget_lets_a_node_be_drained(enterprise):
    budgets = of_kind(enterprise, "PodDisruptionBudget")
    assert budgets
    for budget in budgets.values():
        assert budget["spec"].keys() == {"maxUnavailable", "selector"}
        assert budget["spec"]["maxUnavailable"] >= 1


def test_what_is_asked_over_the_network_goes_on_answering_until_everybody_knows_that_it_ends(enterprise):
    for name, spec, containers in pod_specs(enterprise):
        (container,) = containers
        wait = container["lifecycle"]["preStop"]["sleep"]["seconds"]
        assert 5 <= wait < spec["terminationGracePeriodSeconds"], name


def test_serving_comes_before_training_and_neither_takes_a_running_pods_place(enterprise):
    classes = of_kind(enterprise, "PriorityClass")
    (serving,) = (item["spec"]["predictor"] for item in of_kind(enterprise, "InferenceService").values())
    assert classes[serving["priorityClassName"]]["value"] > classes["aic-gpt-training"]["value"]
    assert {item["preemptionPolicy"] for item in classes.values()} == {"Never"}


def test_replicas_keep_fewer_connections_than_postgresql_gives(enterprise):
    """Three pools: of runs, of the registry, of users. PostgreSQL gives 100, three of them to administrators."""
    (settings,) = (
        item["data"] for item in enterprise if item["kind"] == "ConfigMap" and "mlflow-" in item["metadata"]["name"]
    )
    pool, more = (int(settings[f"MLFLOW_SQLALCHEMYSTORE_{name}"]) for name in ("POOL_SIZE", "MAX_OVERFLOW"))
    replicas = of_kind(enterprise, "HorizontalPodAutoscaler")["mlflow"]["spec"]["maxReplicas"]
    assert 3 * (pool + more) * replicas <= 97


def test_the_served_pods_are_what_their_budget_and_their_route_name(enterprise):
    services = of_kind(enterprise, "InferenceService")
    budget = of_kind(enterprise, "PodDisruptionBudget")["aic-gpt"]["spec"]
    for service in services.values():
        assert service["metadata"]["annotations"]["serving.kserve.io/deploymentMode"] == "Standard"
        assert service["metadata"]["labels"]["networking.kserve.io/visibility"] == "cluster-local"
        assert budget["selector"]["matchLabels"].items() <= service["spec"]["predictor"]["labels"].items()
    (rule,) = of_kind(enterprise, "HTTPRoute")["aic-gpt"]["spec"]["rules"]
    assert [backend["name"] for backend in rule["backendRefs"]] == [f"{name}-predictor" for name in services]


def test_nothing_comes_in_but_by_tls_and_the_model_answers_who_has_a_key(enterprise):
    gateway = of_kind(enterprise, "Gateway")["aic-gpt"]["spec"]
    assert {(listener["protocol"], listener["port"]) for listener in gateway["listeners"]} == {("HTTPS", 443)}
    for listener in gateway["listeners"]:
        assert listener["tls"]["mode"] == "Terminate"
        assert listener["allowedRoutes"]["namespaces"]["from"] == "Selector"
    policy = of_kind(enterprise, "SecurityPolicy")["aic-gpt"]["spec"]
    assert [target["name"] for target in policy["targetRefs"]] == ["aic-gpt"]
    assert policy["apiKeyAuth"]["credentialRefs"][0]["name"] in of_kind(enterprise, "ExternalSecret")
    assert not of_kind(enterprise, "Ingress")


def test_no_service_is_open_to_the_world(enterprise):
    assert all(
        service["spec"].get("type", "ClusterIP") == "ClusterIP" for service in of_kind(enterprise, "Service").values()
    )


# --- the network


def test_namespaces_are_closed_and_every_opening_names_who_and_where(enterprise):
    policies = [item for item in enterprise if item["kind"] == "NetworkPolicy"]
    closed = {item["metadata"]["namespace"] for item in policies if item["metadata"]["name"] == "default-deny"}
    assert closed == {"mlflow", "aic-gpt-serving"}
    for item in policies:
        for rule in item["spec"].get("ingress", []) + item["spec"].get("egress", []):
            assert rule["ports"], identity(item)
            peers = rule.get("from", []) + rule.get("to", [])
            assert peers, identity(item)
            assert all(peers), identity(item)


@pytest.mark.parametrize("name", ["aic-gpt-pipeline-runs", "aic-gpt-training", "aic-gpt-spark"])
def test_pods_of_runs_and_jobs_are_closed_both_ways_and_find_names(enterprise, name):
    policy = of_kind(enterprise, "NetworkPolicy")[name]
    assert policy["metadata"]["namespace"] == "kubeflow"
    assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
    assert policy["spec"]["podSelector"][
        "matchExpressions"
    ]  # and not every pod: Kubeflow Pipelines' own go on as they are
    assert {"protocol": "UDP", "port": 53} in [port for rule in policy["spec"]["egress"] for port in rule["ports"]]


def test_the_nodes_own_credentials_are_out_of_reach(enterprise):
    for policy in of_kind(enterprise, "NetworkPolicy").values():
        for rule in policy["spec"].get("egress", []):
            for peer in rule["to"]:
                if peer.get("ipBlock", {}).get("cidr") == "0.0.0.0/0":
                    assert "169.254.169.254/32" in peer["ipBlock"]["except"]
                    assert {port["port"] for port in rule["ports"]} <= {443, 6443}


# --- secrets and accounts


def test_secrets_are_named_and_none_is_there(enterprise):
    assert not of_kind(enterprise, "Secret")
    made = {
        (item["metadata"]["namespace"], item["metadata"]["name"])  # the secret's name, where it has no other
        for item in enterprise
        if item["kind"] == "ExternalSecret" and "name" not in item["spec"].get("target", {})
    }
    assert made == {
        ("mlflow", "mlflow"),
        ("kubeflow", "kfp-mlflow-credentials"),
        ("kubeflow", STORAGE_SECRET),
        ("aic-gpt-serving", "aic-gpt-models"),
        ("aic-gpt-serving", "aic-gpt-clients"),
        ("monitoring", "grafana-admin"),
    }


def test_a_namespace_has_a_store_of_its_own_for_its_secrets(enterprise):
    stores = {item["metadata"]["namespace"] for item in enterprise if item["kind"] == "SecretStore"}
    used = {item["metadata"]["namespace"] for item in enterprise if item["kind"] == "ExternalSecret"}
    assert stores == used
    assert all(
        item["spec"]["secretStoreRef"]["kind"] == "SecretStore"
        for item in enterprise
        if item["kind"] == "ExternalSecret"
    )


@pytest.mark.parametrize("name", ["mlflow", "aic-gpt-training", "aic-gpt-serving"])
def test_accounts_of_pods_that_ask_nothing_of_kubernetes_have_no_token_and_no_role(enterprise, name):
    assert of_kind(enterprise, "ServiceAccount")[name]["automountServiceAccountToken"] is False
    for item in enterprise:
        if item["kind"].endswith("Binding"):
            assert name not in [subject["name"] for subject in item["subjects"]]


def test_no_role_gives_everything(enterprise):
    for item in enterprise:
        if item["kind"] in ("Role", "ClusterRole"):
            for rule in item["rules"]:
                assert not any("*" in rule.get(key, []) for key in ("apiGroups", "resources", "verbs")), identity(item)


# --- training


def test_the_queue_and_the_priority_are_those_that_runs_name(enterprise):
    queue = of_kind(enterprise, "LocalQueue")["aic-gpt"]
    assert queue["metadata"]["namespace"] == "kubeflow"
    cluster = of_kind(enterprise, "ClusterQueue")[queue["spec"]["clusterQueue"]]["spec"]
    assert cluster["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "kubeflow"}
    (group,) = cluster["resourceGroups"]
    (flavor,) = group["flavors"]
    assert [quota["name"] for quota in flavor["resources"]] == group["coveredResources"]
    assert flavor["name"] in of_kind(enterprise, "ResourceFlavor")
    assert "aic-gpt-training" in of_kind(enterprise, "WorkloadPriorityClass")
    assert of_kind(enterprise, "PriorityClass")["aic-gpt-training"]["preemptionPolicy"] == "Never"


def test_the_workspace_is_mounted_by_many_and_outlives_a_mistake_in_git(enterprise):
    claim = of_kind(enterprise, "PersistentVolumeClaim")["aic-gpt-workspace"]
    assert claim["metadata"]["namespace"] == "kubeflow"
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    assert "Prune=false" in claim["metadata"]["annotations"]["argocd.argoproj.io/sync-options"]
