"""A real S3 on this machine: SeaweedFS's ``weed server -s3``, from its wheel."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.servers.ports import free_ports

_PORTS = (
    "master.port",
    "master.port.grpc",
    "volume.port",
    "volume.port.grpc",
    "filer.port",
    "filer.port.grpc",
    "s3.port",
    "s3.port.grpc",
)
_START_SECONDS = 60


@dataclass(frozen=True)
class S3Server:
    """A running S3 server.

    Attributes:
        endpoint: Its address, ``http://127.0.0.1:PORT``.
        access_key: Access key of somebody who may do everything.
        secret_key: The secret key that belongs to it.
        reader: Access key and secret key of somebody who may read and list, and nothing else.
    """

    endpoint: str
    access_key: str = "AKIAEVERYTHING"
    secret_key: str = "everything-s3cret/key"
    reader: tuple[str, str] = ("AKIAREADER", "reader-s3cret/key")

    @property
    def environment(self) -> dict[str, str]:
        """What a program needs in its environment to use the server; hand a proxy's address on by changing it."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    @functools.cache  # noqa: B019 - there are few servers, and making a client takes a third of a second
    def client(self, config: Any = None) -> Any:
        """A boto3 client that looks at no environment; ``config`` is botocore's."""
        import boto3
        from botocore.config import Config

        return boto3.session.Session().client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name="us-east-1",
            config=Config(retries={"mode": "standard", "total_max_attempts": 10}).merge(config or Config()),
        )

    def empty(self, bucket: str) -> None:
        """Removes a bucket's objects, and uploads that were not completed."""
        client = self.client()
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket):
            for entry in page.get("Contents", []):
                client.delete_object(Bucket=bucket, Key=entry["Key"])
        for entry in client.list_multipart_uploads(Bucket=bucket).get("Uploads", []):
            client.abort_multipart_upload(Bucket=bucket, Key=entry["Key"], UploadId=entry["UploadId"])


@contextlib.contextmanager
def seaweedfs(folder: Path) -> Iterator[S3Server]:
    """Runs a server that keeps its data in ``folder``, an existing one, while the block runs.

    It takes three seconds to start and 350 MiB of memory. Its end is a kill: asked to stop, it takes 26 seconds.
    """
    ports = free_ports(len(_PORTS))
    server = S3Server(f"http://127.0.0.1:{ports[_PORTS.index('s3.port')]}")
    identities = [
        _identity("everything", (server.access_key, server.secret_key), "Admin", "Read", "Write", "List", "Tagging"),
        _identity("reader", server.reader, "Read", "List"),
    ]
    (folder / "s3.json").write_text(json.dumps({"identities": identities}))
    command = [
        str(Path(sys.executable).with_name("weed")),
        "server",
        f"-dir={folder}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        "-s3",
        f"-s3.config={folder / 's3.json'}",
        "-s3.iam=false",
        "-s3.autoCreateBucket=false",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-master.telemetry=false",
        "-master.volumeSizeLimitMB=64",
        "-volume.max=0",  # as many volumes as the disk has room for
        *(f"-{name}={port}" for name, port in zip(_PORTS, ports, strict=True)),
    ]
    log = folder / "weed.log"
    with open(log, "wb") as file:
        process = subprocess.Popen(
            command,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd=folder,
            preexec_fn=_die_with_parent,
        )
    try:
        _wait_until_up(server, process, log)
        yield server
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _die_with_parent() -> None:
    """Tests that are killed leave no server behind, on Linux: PR_SET_PDEATHSIG, see prctl(2)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def _identity(name: str, keys: tuple[str, str], *actions: str) -> dict[str, Any]:
    return {"name": name, "credentials": [{"accessKey": keys[0], "secretKey": keys[1]}], "actions": list(actions)}


def _wait_until_up(server: S3Server, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            urllib.request.urlopen(f"{server.endpoint}/healthz", timeout=5).close()
            break
        except (urllib.error.URLError, OSError):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"weed did not start; its log ends:\n{log.read_text()[-3000:]}") from None
            time.sleep(0.05)
    client = server.client()
    client.create_bucket(Bucket="started")  # it can be healthy before it can store
    client.put_object(Bucket="started", Key="probe", Body=b"probe")
    client.delete_object(Bucket="started", Key="probe")
    client.delete_bucket(Bucket="started")
