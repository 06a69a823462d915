"""A run's stages as containers: started by KFP's DockerRunner on the project's images, limited, locked, and ended.

A container sees its own root file system read-only, and of this machine what the run needs, each at its own path: KFP's
folder of the run, the checkpoints, the cache and a folder for temporary files to write to, what the run reads to read,
and the socket by which stages are tracked. It gets no network unless the run reads or writes s3://.
"""

from __future__ import annotations

import codecs
import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from components.images import DATA_IMAGE, MODEL_IMAGE
from components.images.build import CODE_LABEL, code_digest
from modelcore import relay, threads
from modelcore.errors import InputError, first_line
from modelcore.storage import is_remote
from pipelines.stage_processes import GRACE_SECONDS

MEMORY = 1 << 30  # bytes
CORES = 1
USER = 10001  # who root's stages run as; anybody else's run as themselves, and so what they write is theirs

_RUN_LABEL = "aic-ai-poc-gpt.run"
_INPUTS = ("corpus", "heldout", "instructions", "preset")
# What stages may find in their environment, whoever set it; of a credential nothing goes along but with s3://.
_PASSED = ("KFP_RUN_ID", "KFP_RUN_NAME", relay.ADDRESS, "MODELCORE_CACHE", *threads.SHARED_CORES)


class Containers:
    """Stages in containers of the Docker engine that the environment names (DOCKER_HOST, or the local one).

    Raises:
        InputError: If the engine does not answer, or an image is missing or was made of other code.
    """

    name = "docker"

    def __init__(self) -> None:
        import docker

        with _explained(), contextlib.ExitStack() as opened:
            self._client = docker.from_env()
            opened.callback(self._client.close)  # its idle connections; a later question opens new ones
            options = self._client.info().get("SecurityOptions") or []
            images = {name: self._labels(name) for name in (DATA_IMAGE, MODEL_IMAGE)}
        for name, labels in images.items():
            if labels is None:
                raise InputError(f"there is no image {name}; build it first: make images")
            if labels.get(CODE_LABEL) != code_digest():
                raise InputError(f"image {name} was made of other code than is here; build it again: make images")
        # Without root's rights the engine maps its containers' root to its own user, who is the one that calls.
        rootless = "name=rootless" in options
        caller = (USER, USER) if os.getuid() == 0 else (os.getuid(), os.getgid())
        self._uid, self._gid = (0, 0) if rootless else caller

    def _labels(self, image: str) -> dict[str, str] | None:
        import docker

        try:
            return dict(self._client.images.get(image).labels)
        except docker.errors.ImageNotFound:
            return None

    @contextlib.contextmanager
    def running(self, root: Path, parameters: Mapping[str, Any]) -> Iterator[Any]:
        """KFP's runner for one run, set up; what the stages wrote belongs to the caller when it is over.

        Args:
            root: KFP's folder of the run.
            parameters: The run's.

        Raises:
            InputError: If the engine fails.
        """
        from docker.types import Mount
        from kfp import local
        from kfp.local import docker_task_handler

        scratch, socket = root.with_name("tmp"), Path(os.environ[relay.ADDRESS])
        written = [root, scratch, Path(os.environ["MODELCORE_CACHE"])]
        if not is_remote(parameters["checkpoint_uri"]):
            written.append(Path(parameters["checkpoint_uri"]).absolute())
        for folder in written:
            folder.mkdir(parents=True, exist_ok=True)
        read = [Path(value).absolute() for key in _INPUTS if (value := parameters[key]) and not is_remote(value)]
        mounts = [Mount(str(path), str(path), "bind") for path in [*written[1:], socket.parent]]
        mounts += [Mount(str(path), str(path.resolve()), "bind", read_only=True) for path in set(read) if path.exists()]
        remote = any(is_remote(str(value)) for value in parameters.values())
        runner = local.DockerRunner(
            user=f"{self._uid}:{self._gid}",
            mem_limit=MEMORY,
            memswap_limit=MEMORY,
            nano_cpus=CORES * 10**9,
            read_only=True,
            tmpfs={"/tmp": "mode=1777"},  # noqa: S108
            mounts=mounts,
            working_dir=str(Path.cwd()),
            environment=_environment(scratch, remote=remote),
            # This machine's own network: an endpoint may be on localhost, and a cloud's role is told nowhere else.
            network_mode="host" if remote else "none",
            cap_drop=["ALL"],
            security_opt=["no-new-privileges", "label=disable"],
            init=True,
            healthcheck={"test": ["NONE"]},  # a stage's end tells how it went
            labels={_RUN_LABEL: str(root)},
        )
        theirs = docker_task_handler.run_docker_container
        docker_task_handler.run_docker_container = _run_container
        try:
            with _explained(), self._lent([*written, socket.parent]):
                yield runner
        finally:
            docker_task_handler.run_docker_container = theirs

    def end(self, root: Path, *, gently: bool = True) -> None:
        """Ends the containers of the run with KFP's folder ``root``, also of a driver that was killed.

        Args:
            root: KFP's folder of the run.
            gently: Interrupt first, so that a stage can say goodbye, and kill what is left after GRACE_SECONDS.
        """
        import docker
        import requests

        with contextlib.suppress(docker.errors.DockerException, requests.RequestException):
            found = self._client.containers.list(filters={"label": f"{_RUN_LABEL}={root}"}, all=True)
            for container in found if gently else []:
                with contextlib.suppress(docker.errors.DockerException):
                    # Not only to the first process, which is a shell that waits for the stage.
                    container.exec_run(["sh", "-c", "kill -INT -1"])
            for container in found:
                with contextlib.suppress(docker.errors.DockerException, requests.RequestException):
                    if gently:
                        container.wait(timeout=GRACE_SECONDS)
            for container in found:
                with contextlib.suppress(docker.errors.DockerException, requests.RequestException):
                    container.remove(force=True)

    @contextlib.contextmanager
    def _lent(self, folders: list[Path]) -> Iterator[None]:
        """Where root calls, the folders belong to the stages' user meanwhile."""
        if os.getuid() != 0 or self._uid == 0:
            yield
            return
        for folder in folders:
            _give(folder, self._uid, self._gid)
        try:
            yield
        finally:
            for folder in folders:
                _give(folder, 0, 0)


def _environment(scratch: Path, *, remote: bool) -> dict[str, str]:
    """What a stage finds in its environment."""
    passed = {key: value for key, value in os.environ.items() if key in _PASSED or (remote and key.startswith("AWS_"))}
    return passed | {
        "MLFLOW_TRACKING_URI": relay.URI,
        "HOME": "/tmp",  # noqa: S108
        "USER": "stage",  # the image knows no name of the user that it runs as
        "TMPDIR": str(scratch),  # what is in /tmp counts as memory
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(CORES)),
        "PYTHONUNBUFFERED": "1",
        "PYTHONWARNINGS": "ignore",
        "HF_HUB_OFFLINE": "1",
    }


def _run_container(client: Any, image: str, command: list[str], volumes: dict[str, Any], **arguments: Any) -> int:
    """Runs a stage's container to its end, prints what it says, and returns its exit status.

    In place of KFP's own function, which has the engine remove the container when it ends: one that ended before
    its output or status was asked for has lost both, and KFP takes that for a success
    (https://github.com/kubeflow/pipelines/issues/13332).
    """
    container = client.containers.run(image=image, command=command, detach=True, volumes=volumes, **arguments)
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for piece in container.logs(stream=True, follow=True):
        print(decoder.decode(piece), end="")  # noqa: T201, KFP collects what its runner prints
    status = int(container.wait()["StatusCode"])
    container.reload()
    if status != 0:
        stage = command[command.index("--function_to_execute") + 1]
        print(f"\nstage={stage} status=failed exit={status}")  # noqa: T201
    if container.attrs["State"]["OOMKilled"]:
        print(f"error: it needs more than the {MEMORY >> 20} MiB of memory that a container has")  # noqa: T201
    container.remove()
    return status


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """Turns what docker's client raises into one line."""
    import docker
    import requests

    try:
        yield
    except (docker.errors.DockerException, requests.RequestException) as error:
        raise InputError(
            f"the Docker engine cannot be used ({first_line(error)}); start it, or leave out RUNNER=docker"
        ) from error


def _give(folder: Path, uid: int, gid: int) -> None:
    for at, folders, files in os.walk(folder):
        for name in [".", *folders, *files]:
            with contextlib.suppress(FileNotFoundError):
                os.chown(Path(at, name), uid, gid, follow_symlinks=False)
