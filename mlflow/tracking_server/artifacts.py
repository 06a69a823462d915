"""The server's artifacts in S3, as a whole: into one tar archive and back."""

import contextlib
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tracking_server.errors import OperatorError, one_line
from tracking_server.settings import Stores

_TYPE = "S3.content-type"  # beside a member's name and size in the archive


def client() -> Any:
    """A client of the artifacts' store, told where it is as MLflow is."""
    import boto3

    # A session of its own: boto3's shared one keeps the credentials that it found first.
    return boto3.session.Session().client("s3", endpoint_url=os.environ.get("MLFLOW_S3_ENDPOINT_URL") or None)


def create_bucket(stores: Stores) -> bool:
    """Makes the bucket if there is none; whether it was made.

    Raises:
        OperatorError: If S3 refuses.
    """
    from botocore.exceptions import ClientError

    with _usable(stores):
        s3 = client()
        try:
            s3.head_bucket(Bucket=stores.bucket)
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] != 404:
                raise
            s3.create_bucket(Bucket=stores.bucket)
            return True
    return False


def save(stores: Stores, archive: Path) -> int:
    """Writes every artifact to a tar archive, named by its key after the prefix; returns their number.

    An artifact that is deleted meanwhile is left out.

    Raises:
        OperatorError: If S3 cannot be read.
    """
    count = 0
    with _usable(stores), tarfile.open(archive, "w", format=tarfile.PAX_FORMAT) as tar:
        s3 = client()
        for page in s3.get_paginator("list_objects_v2").paginate(Bucket=stores.bucket, Prefix=stores.prefix):
            for listed in page.get("Contents", ()):
                try:
                    found = s3.get_object(Bucket=stores.bucket, Key=listed["Key"])
                except s3.exceptions.NoSuchKey:
                    continue
                member = tarfile.TarInfo(listed["Key"].removeprefix(stores.prefix))
                member.size = found["ContentLength"]
                member.mtime = int(found["LastModified"].timestamp())
                member.pax_headers = {_TYPE: found["ContentType"]}
                with found["Body"] as body:
                    tar.addfile(member, body)
                count += 1
    return count


def load(stores: Stores, archive: Path) -> int:
    """Stores every artifact of an archive again, over what has its key; returns their number.

    Raises:
        OperatorError: If S3 cannot be written.
    """
    count = 0
    with _usable(stores), tarfile.open(archive) as tar:
        s3 = client()
        for member in tar:
            body = tar.extractfile(member)
            if body is not None:
                kind = {"ContentType": member.pax_headers[_TYPE]}
                s3.upload_fileobj(body, stores.bucket, stores.prefix + member.name, ExtraArgs=kind)
                count += 1
    return count


@contextlib.contextmanager
def _usable(stores: Stores) -> Iterator[None]:
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except (Boto3Error, BotoCoreError, ClientError) as error:
        raise OperatorError(f"{stores.artifacts} cannot be used: {one_line(error)}") from error
