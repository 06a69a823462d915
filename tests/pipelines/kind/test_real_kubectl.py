"""The stand-in for kubectl takes what it is given; this holds its calls against the real one."""

import json
import re
import shlex
import subprocess
import sysconfig
from pathlib import Path

import pytest

CONTEXT = "kind-aic-ai-poc-gpt"


def test_the_real_kubectl_understands_every_call_and_gets_as_far_as_the_connection(machine, start, tmp_path):
    kubectl = Path(sysconfig.get_path("scripts")) / "kubectl"
    if not kubectl.exists():
        pytest.skip("the environment has no kubectl of its own here")
    condition = {"conditions": [{"type": "Ready", "status": "False"}], "phase": "Pending"}
    machine.change(pods={"mlflow": [{"metadata": {"name": "waiting"}, "status": condition}]})
    machine.change(fail={"service/ml-pipeline": "unable to forward port because pod is not running"})
    assert start("up")[0] == 1
    assert start("up")[0] == 1  # the second time asks for the nodes of the cluster that is there
    (tmp_path / "kubeconfig").write_text(
        json.dumps(
            {
                "clusters": [{"name": "closed", "cluster": {"server": "http://127.0.0.1:1"}}],
                "contexts": [{"name": CONTEXT, "context": {"cluster": "closed", "user": "nobody"}}],
                "users": [{"name": "nobody", "user": {}}],
            }
        )
    )
    # one of each kind of call, the object's name apart; what is fetched from GitHub cannot be had in a test
    calls = {}
    for call in machine.calls:
        if call["line"].startswith("kubectl") and not re.search(r"github\.com|free-tier/kfp$", call["line"]):
            calls.setdefault(re.sub(r"(secret|-n) [\w-]+", r"\1", call["line"]), call)
    assert len(calls) >= 12
    for call in calls.values():
        done = subprocess.run(
            [kubectl, *shlex.split(call["line"])[1:]],
            input=call["stdin"],
            capture_output=True,
            text=True,
            env={"KUBECONFIG": str(tmp_path / "kubeconfig"), "HOME": str(tmp_path)},
            check=False,
        )
        assert done.returncode == 1
        assert "127.0.0.1:1" in done.stderr, (call["line"], done.stderr)
        assert "refused" in done.stderr, (call["line"], done.stderr)
