"""What is put on top of Kubeflow Pipelines, seen on a copy of the few things of its installation that are changed."""

import json
import shutil
import subprocess

import pytest
import yaml

# Of kubeflow/pipelines 2.17.0 manifests/kustomize/env/platform-agnostic, what the patches name.
INSTALLATION = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: ml-pipeline, namespace: kubeflow}
spec:
  template:
    spec:
      containers:
        - name: ml-pipeline-api-server
          image: ghcr.io/kubeflow/kfp-api-server:2.17.0
          volumeMounts:
            - {name: mlflow-tracking-ca, mountPath: /etc/mlflow-tracking-ca, readOnly: true}
      volumes:
        - {name: mlflow-tracking-ca, configMap: {name: mlflow-tracking-ca, optional: true}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: pipeline-runner, namespace: kubeflow}
rules:
  - {apiGroups: [""], resources: [pods, pods/exec], verbs: ["*"]}
"""


@pytest.fixture(scope="module")
def patched(tmp_path_factory, repository, kubectl):
    folder = tmp_path_factory.mktemp("kfp")
    shutil.copytree(repository / "manifests" / "base" / "kfp", folder / "component")
    (folder / "installation.yaml").write_text(INSTALLATION)
    (folder / "kustomization.yaml").write_text("resources: [installation.yaml]\ncomponents: [component]\n")
    rendered = subprocess.run([kubectl, "kustomize", folder], capture_output=True, text=True, check=True).stdout
    return {item["kind"]: item for item in yaml.safe_load_all(rendered)}


def test_the_api_server_reads_our_configuration_where_it_looks_for_one(patched):
    pod = patched["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["name"] == "ml-pipeline-api-server"
    (mount,) = (mount for mount in container["volumeMounts"] if mount["mountPath"] == "/config/config.json")
    (volume,) = (volume for volume in pod["volumes"] if volume["name"] == mount["name"])
    assert volume["configMap"]["name"] == patched["ConfigMap"]["metadata"]["name"]
    assert mount["subPath"] in patched["ConfigMap"]["data"]
    assert len(pod["volumes"]) == 2  # KFP's own is still there


def test_stages_are_told_of_mlflow_and_the_password_is_only_named(patched):
    settings = json.loads(patched["ConfigMap"]["data"]["config.json"])["plugins"]["mlflow"]
    assert settings["endpoint"] == "http://mlflow.mlflow.svc.cluster.local:5000"
    assert settings["settings"]["injectUserEnvVars"] is True
    assert settings["settings"]["authType"] == "basic-auth"
    assert settings["settings"]["credentialSecretRef"] == {"usernameKey": "username", "passwordKey": "password"}


def test_runs_go_to_the_experiment_that_runs_on_one_machine_go_to(patched):
    from modelcore.tracking import DEFAULT_EXPERIMENT

    settings = json.loads(patched["ConfigMap"]["data"]["config.json"])["plugins"]["mlflow"]["settings"]
    assert settings["defaultExperimentName"] == DEFAULT_EXPERIMENT


def test_the_pods_of_runs_may_read_two_things_and_report_and_no_more(patched):
    rules = patched["Role"]["rules"]
    assert not any("*" in rule[key] for rule in rules for key in ("apiGroups", "resources", "verbs"))
    for rule in rules:
        if set(rule["resources"]) & {"secrets", "configmaps"}:
            assert rule["resourceNames"]
    writable = [rule["resources"] for rule in rules if set(rule["verbs"]) - {"get"}]
    assert writable == [["workflowtaskresults"]]


def test_kfp_is_pinned_to_one_version(repository):
    folder = repository / "manifests" / "overlays" / "free-tier" / "kfp"
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
    (base,) = kustomization["resources"]
    assert "?ref=2.17.0&" in base
    assert kustomization["components"] == ["../../../base/kfp"]
