"""Paths and ``s3://`` addresses, treated alike. The only file that knows one from the other.

Every function takes a local path or an ``s3://bucket/key`` address. For S3, boto3 finds credentials, region and
endpoint as it always does (``AWS_ENDPOINT_URL`` names another server than Amazon's, for example one of one's own).
"""

from __future__ import annotations

import contextlib
import functools
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from modelcore.atomic import atomic_directory
from modelcore.errors import InputError, first_line

logger = logging.getLogger(__name__)

# Uploaded after everything else, so that whoever finds it can count on the files that it lists.
MANIFEST = "manifest.json"

ATTEMPTS = 4  # of each request, with growing pauses between them

_REFUSED = {"AccessDenied", "403", "Forbidden", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken"}


def is_remote(uri: str | Path) -> bool:
    """Whether ``uri`` is an S3 address.

    Raises:
        InputError: If it has a scheme other than ``s3://``.
    """
    scheme, separator, _ = str(uri).partition("://")
    if separator and scheme != "s3":
        raise InputError(f"{uri}: {scheme}:// is not supported; give a path or s3://bucket/prefix")
    return bool(separator)


def localize(uri: str | Path, into: Path) -> Path:
    """A local path with the content of ``uri``.

    Args:
        uri: A path, which is returned as it is; or an S3 object or prefix, which is downloaded.
        into: Folder for downloads; it appears when the download is complete.

    Returns:
        ``uri`` itself, or ``into`` (for a prefix), or a file in ``into`` (for an object).

    Raises:
        InputError: If there is nothing at ``uri``, or S3 refuses.
    """
    if not is_remote(uri):
        path = Path(uri)
        if not path.exists():
            raise InputError(f"{path} does not exist; give a file, a folder, or s3://bucket/prefix")
        return path
    bucket, key = _bucket_and_key(uri)
    with _one_line_errors(uri):
        client = _client()
        if _object_exists(client, bucket, key):
            name = PurePosixPath(key).name
            with atomic_directory(into) as fresh:
                client.download_file(bucket, key, str(fresh / name))
            return into / name
        download_directory(uri, into)
        return into


def exists(uri: str | Path) -> bool:
    """Whether there is a file, a folder, an object, or any object under the prefix ``uri``."""
    if not is_remote(uri):
        return Path(uri).exists()
    bucket, key = _bucket_and_key(uri)
    with _one_line_errors(uri):
        client = _client()
        if _object_exists(client, bucket, key):
            return True
        return next(_objects(client, bucket, _as_prefix(key)), None) is not None


def list_children(uri: str | Path) -> list[str]:
    """Names of the files and folders directly under ``uri``, sorted; empty if there is no such folder."""
    if not is_remote(uri):
        return sorted(child.name for child in Path(uri).iterdir()) if Path(uri).is_dir() else []
    bucket, key = _bucket_and_key(uri)
    prefix = _as_prefix(key)
    with _one_line_errors(uri):
        # Every object is listed, for some servers (SeaweedFS) go on naming a folder whose objects were deleted.
        return sorted({key[len(prefix) :].partition("/")[0] for key, _ in _objects(_client(), bucket, prefix)})


def upload_directory(folder: Path, uri: str | Path) -> None:
    """Copies a folder's files to ``uri``; a file called ``manifest.json`` goes last.

    A local destination appears as a whole. On S3, where nothing can be renamed, readers must hold what they find
    against the manifest.

    Raises:
        InputError: If S3 refuses, or the disk is full.
    """
    folder = Path(folder)
    if not is_remote(uri):
        with atomic_directory(Path(uri)) as fresh:
            shutil.copytree(folder, fresh, dirs_exist_ok=True)
        return
    bucket, key = _bucket_and_key(uri)
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    with _one_line_errors(uri):
        client = _client()
        for file in sorted(files, key=lambda file: file.name == MANIFEST):
            client.upload_file(str(file), bucket, _as_prefix(key) + file.relative_to(folder).as_posix())


def download_directory(uri: str | Path, into: Path) -> None:
    """Copies everything under ``uri`` into the folder ``into``, which appears when it is complete.

    Raises:
        InputError: If there is nothing under ``uri``, S3 refuses, or the disk is full.
    """
    if not is_remote(uri):
        if not Path(uri).is_dir():
            raise InputError(f"{uri} is no folder")
        upload_directory(Path(uri), into)
        return
    bucket, key = _bucket_and_key(uri)
    prefix = _as_prefix(key)
    found = False
    with _one_line_errors(uri), atomic_directory(into) as fresh:
        client = _client()
        for name, size in _objects(client, bucket, prefix):
            relative = PurePosixPath(name[len(prefix) :])
            if relative.is_absolute() or ".." in relative.parts:
                raise InputError(f"s3://{bucket}/{name}: a key that leads out of its folder is not downloaded")
            logger.info("download=s3://%s/%s bytes=%d", bucket, name, size)
            target = fresh / relative
            target.parent.mkdir(parents=True, exist_ok=True)
            client.download_file(bucket, name, str(target))
            found = True
        if not found:
            raise InputError(f"{uri} does not exist: no object has that name or begins with {prefix!r}")


def delete_directory(uri: str | Path) -> None:
    """Removes everything under ``uri``; the manifest goes first, so that what is left cannot be taken for whole.

    Raises:
        InputError: If S3 refuses.
    """
    if not is_remote(uri):
        (Path(uri) / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(uri, ignore_errors=True)
        return
    bucket, key = _bucket_and_key(uri)
    with _one_line_errors(uri):
        client = _client()
        names = [name for name, _ in _objects(client, bucket, _as_prefix(key))]
        for name in sorted(names, key=lambda name: PurePosixPath(name).name != MANIFEST):
            client.delete_object(Bucket=bucket, Key=name)


def _bucket_and_key(uri: str | Path) -> tuple[str, str]:
    bucket, _, key = str(uri).removeprefix("s3://").partition("/")
    if not bucket:
        raise InputError(f"{uri} names no bucket; write s3://bucket/prefix")
    return bucket, key


def _as_prefix(key: str) -> str:
    return key.rstrip("/") + "/" if key else ""


def _objects(client: Any, bucket: str, prefix: str) -> Iterator[tuple[str, int]]:
    """Key and size of every object under ``prefix``, without the empty objects that stand for folders."""
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
        for entry in page.get("Contents", []):
            if not entry["Key"].endswith("/"):
                yield entry["Key"], entry["Size"]


def _object_exists(client: Any, bucket: str, key: str) -> bool:
    if not key or key.endswith("/"):
        return False
    from botocore.exceptions import ClientError

    try:
        client.head_object(Bucket=bucket, Key=key)
    except ClientError as error:
        if error.response["Error"]["Code"] in ("404", "NoSuchKey", "NotFound"):
            return False
        raise
    return True


@functools.cache  # making one takes a third of a second; it renews temporary credentials by itself
def _client() -> Any:
    try:
        import boto3
        from botocore.config import Config
    except ImportError as error:
        raise InputError("s3:// needs boto3; install the extra 'storage'") from error
    options = Config(connect_timeout=10, retries={"mode": "standard", "total_max_attempts": ATTEMPTS})
    return boto3.client("s3", config=options)


@contextlib.contextmanager
def _one_line_errors(uri: str | Path) -> Iterator[None]:
    """Turns what boto3 raises into one line that names ``uri``."""
    try:
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError
    except ImportError as error:
        raise InputError(f"{uri}: s3:// needs boto3; install the extra 'storage'") from error
    try:
        yield
    except (NoCredentialsError, PartialCredentialsError) as error:
        raise InputError(
            f"{uri}: no AWS credentials found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
        ) from error
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        if code == "NoSuchBucket":
            raise InputError(f"{uri}: there is no such bucket") from error
        if code in _REFUSED:
            raise InputError(f"{uri}: access refused ({code}); check the credentials and what they may do") from error
        raise InputError(f"{uri}: {first_line(error)}") from error
    except (BotoCoreError, Boto3Error) as error:  # no connection, a broken transfer
        raise InputError(f"{uri}: {first_line(error)}") from error
