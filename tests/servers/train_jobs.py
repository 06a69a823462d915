"""Kubeflow Trainer, JobSet and the kubelet, as far as whoever follows a TrainJob sees them, played by a test."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

from modelcore.stages.stage import StageSummary
from tests.servers.kubernetes_api import KubernetesAPI

SECRET = "the-secret-key"
NODE = {"jobset.sigs.k8s.io/replicatedjob-name": "node"}


def started_with(words):
    """What a kubelet makes of a command or a variable: ``$(NAME)`` is replaced, ``$$`` stands for ``$``."""
    known = {"$$": "$", "$(AWS_SECRET_ACCESS_KEY)": SECRET}
    return [re.sub(r"\$\$|\$\(AWS_SECRET_ACCESS_KEY\)", lambda found: known[found[0]], word) for word in words]


class Trainer:
    """Plays the life of the one TrainJob that a stage makes."""

    def __init__(self, api: KubernetesAPI) -> None:
        self.api = api
        self.attempt = self.ended = 0

    def job(self):
        """The job, waited for."""
        return self.api.wait_for(lambda: self.api.all("TrainJob"))[0]

    @property
    def name(self):
        return self.job()["metadata"]["name"]

    def words(self):
        """What the job's processes are asked to do: the stage, and its arguments."""
        *_, stage, arguments = started_with(self.job()["spec"]["trainer"]["command"])
        return stage, json.loads(arguments)

    def pod(self, index=0):
        return f"{self.name}-node-0-{index}-{'abcdefgh'[self.attempt]}{index}xyz"

    def make_pods(self, nodes=1):
        """The pods of the job's JobSet, which wait for nodes."""
        job = self.job()
        owner = {key: job[key] for key in ("apiVersion", "kind")}
        owner |= {key: job["metadata"][key] for key in ("name", "uid")}
        for index in range(nodes):
            labels = NODE | {"jobset.sigs.k8s.io/jobset-name": self.name}
            labels |= {"batch.kubernetes.io/job-completion-index": str(index)}
            labels |= {"jobset.sigs.k8s.io/restart-attempt": str(self.attempt)}
            metadata = {"name": self.pod(index), "labels": labels, "ownerReferences": [owner]}
            pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata}
            self.api.create(pod | {"spec": {"containers": [{"name": "node"}]}, "status": {"phase": "Pending"}})

    def wait_with(self, reason, message, index=0):
        """A pod's container waits for something."""
        waiting = {"name": "node", "state": {"waiting": {"reason": reason, "message": message}}}
        self.api.change("Pod", self.pod(index), lambda pod: pod["status"].update(containerStatuses=[waiting]))

    def run_pods(self, nodes=1):
        for index in range(nodes):

            def run(pod, index=index):
                pod["spec"]["nodeName"] = f"gpu-{index}"
                pod["status"] = {"phase": "Running"}

            self.api.change("Pod", self.pod(index), run)

    def log(self, *lines, index=0):
        self.api.log(self.pod(index), *lines)

    def end_pod(self, index=0, code=0, reason="", message=""):
        self.ended += 1
        at = f"2026-01-01T00:00:{self.ended:02}Z"
        end = {"exitCode": code, "reason": reason or ("Error" if code else "Completed"), "finishedAt": at}
        if message:
            end["message"] = message
        status = {"phase": "Failed" if code else "Succeeded"}
        status["containerStatuses"] = [{"name": "node", "state": {"terminated": end}}]
        self.api.change("Pod", self.pod(index), lambda pod: pod.update(status=status))

    def say(self, kind, **condition):
        """The job's controller sets a condition."""

        def change(job):
            conditions = job.setdefault("status", {}).setdefault("conditions", [])
            conditions[:] = [each for each in conditions if each["type"] != kind]
            conditions.append(
                {"type": kind, "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"} | condition
            )

        self.api.change("TrainJob", self.name, change)

    def restart(self, nodes=1):
        """JobSet makes all pods anew, after one has failed."""
        for index in range(nodes):
            self.api.delete("Pod", self.pod(index))
        self.attempt += 1
        self.make_pods(nodes)

    def leave_output(self, **results):
        """Writes what the stage would write in the job."""
        stage, arguments = self.words()
        out = Path(arguments["out"])
        out.mkdir(parents=True, exist_ok=True)
        name, content = {
            "pretrain": ("config.json", '"modelcore"'),
            "finetune_lora": ("adapter_config.json", '"peft_type"'),
        }[stage]
        (out / name).write_text(content)
        StageSummary(stage, seconds=1.0, results=results).save(Path(arguments["summary"]))

    def complete(self, **results):
        """The one pod ends well, and the job with it."""
        self.leave_output(**results)
        self.end_pod()
        self.say("Complete", reason="JobsCompleted", message="all is done")

    def live_well(self):
        """The one pod is made, runs, and does its work."""
        self.make_pods()
        self.run_pods()
        self.complete(loss=1.5)

    def event(self, kind, name, reason, message, of="Warning"):
        self.api.create(
            {
                "apiVersion": "v1",
                "kind": "Event",
                "metadata": {"name": f"{name}.{len(self.api.history)}"},
                "involvedObject": {"kind": kind, "name": name},
                "reason": reason,
                "message": message,
                "type": of,
            }
        )

    def run_for_real(self, port, folder):
        """Starts the job's command, once a node, with what Trainer tells torchrun, and ends the job as that ends.

        Args:
            port: Where the processes meet.
            folder: For the files that Kubernetes puts into a pod's status when its container ends.
        """
        trainer = self.job()["spec"]["trainer"]
        nodes = trainer["numNodes"]
        self.make_pods(nodes)
        self.run_pods(nodes)
        given = {each["name"]: started_with([each["value"]])[0] for each in trainer.get("env", [])}
        given |= {"PET_NNODES": str(nodes), "PET_NPROC_PER_NODE": str(trainer["numProcPerNode"])}
        given |= {"PET_MASTER_ADDR": "127.0.0.1", "PET_MASTER_PORT": str(port)}
        for node in range(nodes):
            (folder / f"word-{node}").touch()
        word, *words = started_with(trainer["command"])
        program = [str(Path(sys.executable).with_name(word)), *words]
        pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        started = [
            subprocess.Popen(
                program,
                env=os.environ
                | given
                | {"PET_NODE_RANK": str(node), "MODELCORE_TERMINATION_LOG": str(folder / f"word-{node}")},
                **pipe,
            )
            for node in range(nodes)
        ]
        readers = [threading.Thread(target=self._pass_on, args=each) for each in enumerate(started)]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        codes = [process.wait() for process in started]
        for index, code in enumerate(codes):
            self.end_pod(index, code, message=(folder / f"word-{index}").read_text())
        self.say("Failed" if any(codes) else "Complete", reason="JobsEnded", message="as its pods did")

    def _pass_on(self, index, process):
        with process.stdout:
            for line in process.stdout:
                self.log(line.rstrip("\n"), index=index)
