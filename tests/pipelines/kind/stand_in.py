"""Stands in for docker, kind, kubectl and git: notes each call and plays a cluster's life in a file.

Installed by the fixtures under each program's name. In the folder that STAND_IN names, calls.jsonl gets every call with
what it read, and world.json is the state that the calls change. A call that holds a key of the world's "fail" fails,
one that holds a part of its "hang" never ends, one that holds a key of its "say" prints that alone.
"""

import base64
import json
import os
import signal
import sys

HOME = os.environ["STAND_IN"]
PROGRAM, WORDS = sys.argv[0].rpartition("/")[2], sys.argv[1:]  # pathlib takes longer to load than all the rest
LINE = " ".join([PROGRAM, *WORDS])
STDIN = sys.stdin.read() if "-" in WORDS else ""
with open(f"{HOME}/world.json") as file:
    WORLD = json.load(file)


def fail(message):
    sys.stderr.write(f"{message}\n")
    sys.exit(1)


def save():
    with open(f"{HOME}/world.json", "w") as file:
        json.dump(WORLD, file)


def docker():
    if WORDS[0] == "images":
        print("\n".join(WORLD["images"]))
    elif "{{.MemTotal}}" in WORDS:
        print(WORLD["docker_memory"])
    else:
        print("29.0.0")


def kind():
    match WORDS:
        case ["get", "clusters"]:
            print("\n".join(WORLD["clusters"]) or "No kind clusters found.")
        case ["create", "cluster", "--name", name, "--image", image, "--wait", _]:
            assert "@sha256:" in image
            WORLD["clusters"].append(name)
        case ["export", "kubeconfig", "--name", name] if name in WORLD["clusters"]:
            pass
        case ["load", "docker-image", *images, "--name", name] if name in WORLD["clusters"]:
            if missing := set(images) - set(WORLD["images"]):
                fail(f"ERROR: image {missing} not present locally")
            WORLD["loaded"] = images
        case ["delete", "cluster", "--name", name]:
            WORLD["clusters"] = [other for other in WORLD["clusters"] if other != name]
            WORLD["namespaces"], WORLD["secrets"] = [], {}
        case _:
            fail(f"ERROR: kind does not know: {WORDS}")


def kubectl():
    assert WORDS[:2] == ["--context", "kind-aic-ai-poc-gpt"]
    words = WORDS[2:]
    if "aic-ai-poc-gpt" not in WORLD["clusters"]:
        fail("The connection to the server 127.0.0.1:40000 was refused - did you specify the right host or port?")
    namespace = "default"
    if words[0] == "-n":
        namespace, words = words[1], words[2:]
        if namespace not in WORLD["namespaces"]:
            fail(f'Error from server (NotFound): namespaces "{namespace}" not found')
    match words:
        case ["apply", "-k", place]:
            apply(place)
        case ["create", "-f", "-"]:
            create(json.loads(STDIN))
        case ["get", "secret", name, "--ignore-not-found", "-o", "name"]:
            if f"{namespace}/{name}" in WORLD["secrets"]:
                print(f"secret/{name}")
        case ["get", "secret", name, "-o", "json"]:
            print(json.dumps({"kind": "Secret", "data": WORLD["secrets"][f"{namespace}/{name}"]}))
        case ["get", "pods", "-o", "json"]:
            print(json.dumps({"items": WORLD["pods"].get(namespace, [])}))
        case ["port-forward", "--address", "127.0.0.1", service, port]:
            name = service.removeprefix("service/")
            print(f"Forwarding from 127.0.0.1:{WORLD['ports'][name]} -> {port.split(':')[1]}", flush=True)
            signal.pause()
        case ["get" | "wait" | "rollout" | "describe" | "logs", *_]:
            print(f"what kubectl says to {' '.join(words)}")
        case _:
            fail(f"error: kubectl does not know: {words}")


def apply(place):
    if "cluster-scoped-resources?ref=2.17.0" in place:
        WORLD["namespaces"].append("kubeflow")
        return
    open(f"{place}/kustomization.yaml").close()  # is there
    if "kubeflow" not in WORLD["namespaces"]:
        fail('Error from server (NotFound): namespaces "kubeflow" not found')
    if place.endswith("/kfp"):
        WORLD["secrets"]["kubeflow/mlpipeline-minio-artifact"] = encoded(WORLD["store_key"])
    else:
        WORLD["namespaces"].append("mlflow")


def create(manifest):
    assert manifest["kind"] == "Secret"
    place = f"{manifest['metadata']['namespace']}/{manifest['metadata']['name']}"
    if manifest["metadata"]["namespace"] not in WORLD["namespaces"]:
        fail(f'Error from server (NotFound): namespaces "{manifest["metadata"]["namespace"]}" not found')
    if place in WORLD["secrets"]:
        fail(f'Error from server (AlreadyExists): secrets "{place}" already exists')
    WORLD["secrets"][place] = encoded(manifest["stringData"])
    print(f"secret/{manifest['metadata']['name']} created")


def encoded(values):
    return {key: base64.b64encode(value.encode()).decode() for key, value in values.items()}


with open(f"{HOME}/calls.jsonl", "a") as file:
    file.write(json.dumps({"line": LINE, "stdin": STDIN}) + "\n")
for part, message in WORLD["fail"].items():
    if part in LINE:
        fail(message)
for part, message in WORLD["say"].items():
    if part in LINE:
        print(message)
        sys.exit()
if any(part in LINE for part in WORLD["hang"]):
    print("hanging", flush=True)
    signal.pause()
{"docker": docker, "kind": kind, "kubectl": kubectl, "git": lambda: None}[PROGRAM]()
save()
