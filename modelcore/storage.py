"""Paths and ``s3://`` addresses, treated alike. The only file that knows one from the other.

Every function takes a local path or an ``s3://bucket/key`` address. For S3, boto3 finds credentials, region and
endpoint as it always does (``AWS_ENDPOINT_URL_S3`` or ``AWS_ENDPOINT_URL`` names another server than Amazon's).
:mod:`modelcore.s3` moves the bytes: checked, tried again where a server fails, and gone on with after an interruption.
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from modelcore.atomic import atomic_directory, resumable_directory
from modelcore.errors import InputError, TakenError
from modelcore.files import file_digest
from modelcore.s3.client import client, one_line_errors, patiently

if TYPE_CHECKING:
    from modelcore.s3.download import Listed

VARIABLES = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION")
"""The variables of boto3's that clusters set from a secret whose keys have their names."""

# Uploaded after everything else, so that whoever finds it can count on the files that it lists.
MANIFEST = "manifest.json"


def is_remote(uri: str | Path) -> bool:
    """Whether ``uri`` is an S3 address.

    Raises:
        InputError: If it has a scheme other than ``s3://``, or one slash in the place of two.
    """
    scheme, separator, _ = str(uri).partition("://")
    if not separator and str(uri).lower().startswith("s3:"):
        raise InputError(f"{uri} is no address; write s3://bucket/prefix, or ./{uri} for a path")
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
    with one_line_errors(uri):
        if (listed := _object(bucket, key)) is None:
            download_directory(uri, into)
            return into
        _download({PurePosixPath(PurePosixPath(key).name): listed}, into)
        return into / PurePosixPath(key).name


def exists(uri: str | Path) -> bool:
    """Whether there is a file, a folder, an object, or any object under the prefix ``uri``."""
    if not is_remote(uri):
        return Path(uri).exists()
    bucket, key = _bucket_and_key(uri)
    with one_line_errors(uri):
        return _object(bucket, key) is not None or next(_objects(bucket, _as_prefix(key)), None) is not None


def list_children(uri: str | Path) -> list[str]:
    """Names of the files and folders directly under ``uri``, sorted; empty if there is no such folder."""
    if not is_remote(uri):
        return sorted(child.name for child in Path(uri).iterdir()) if Path(uri).is_dir() else []
    bucket, key = _bucket_and_key(uri)
    prefix = _as_prefix(key)
    with one_line_errors(uri):
        # Every object is listed, for some servers (SeaweedFS) go on naming a folder whose objects were deleted.
        return sorted({each.key[len(prefix) :].partition("/")[0] for each in _objects(bucket, prefix)})


def list_files(uri: str | Path) -> dict[str, tuple[str, int]]:
    """Address and bytes of each object under the ``s3://`` address ``uri``, or of that very object, by its name.

    Raises:
        InputError: If there is nothing, or S3 refuses.
    """
    bucket, key = _bucket_and_key(uri)
    prefix = _as_prefix(key)
    with one_line_errors(uri):
        if (listed := _object(bucket, key)) is not None:
            return {PurePosixPath(key).name: (listed.address, listed.size)}
        found = {each.key[len(prefix) :]: (each.address, each.size) for each in _objects(bucket, prefix)}
    if not found:
        raise InputError(f"{uri} does not exist: no object has that name or begins with {prefix!r}")
    return found


def check_writable(uri: str | Path) -> None:
    """Makes sure that something can be written under the ``s3://`` address ``uri``, by writing and deleting an object.

    Raises:
        InputError: If S3 refuses, or cannot be reached.
    """
    bucket, key = _bucket_and_key(uri)
    probe = f"{_as_prefix(key)}.probe-{secrets.token_hex(8)}"
    with one_line_errors(uri):
        patiently(str(uri), lambda: client().put_object(Bucket=bucket, Key=probe, Body=b""))
        patiently(str(uri), lambda: client().delete_object(Bucket=bucket, Key=probe))


def has_content(uri: str | Path, file: Path) -> bool:
    """Whether there is a file or an object at ``uri`` with the content of ``file``.

    Raises:
        InputError: If S3 refuses, or cannot be reached.
    """
    if not is_remote(uri):
        return Path(uri).is_file() and file_digest(Path(uri)) == file_digest(file)
    from modelcore.s3.upload import Local

    bucket, key = _bucket_and_key(uri)
    with one_line_errors(uri):
        return patiently(str(uri), Local.read(file, bucket, key).is_there)


def upload_directory(folder: Path, uri: str | Path, claim: str = "") -> None:
    """Copies a folder's files to ``uri``.

    A local destination appears as a whole. On S3, where nothing can be renamed, a file called ``manifest.json`` goes
    last, and an older one is deleted first: readers hold what they find against the manifest. Objects that have a
    file's content already are left alone, so that an upload which was interrupted goes on when it is called again;
    other objects under ``uri`` stay.

    Args:
        folder: The folder.
        uri: Where its files go.
        claim: A small file of the folder that tells it from all others. What stands at ``uri`` is then written to
            only if it has that file, and on S3 the file goes first: of two folders that come at once one is refused.

    Raises:
        InputError: If S3 refuses or cannot be reached, or the disk is full.
        TakenError: If ``uri`` belongs to another folder.
    """
    folder = Path(folder)
    if not is_remote(uri):
        replace = not claim or has_content(Path(uri) / claim, folder / claim)
        with atomic_directory(Path(uri), replace) as fresh:
            shutil.copytree(folder, fresh, dirs_exist_ok=True)
        return
    from modelcore.s3 import upload as s3

    bucket, key = _bucket_and_key(uri)
    keys = {file: _as_prefix(key) + file.relative_to(folder).as_posix() for file in sorted(folder.rglob("*"))}
    manifest = folder / MANIFEST
    with one_line_errors(uri):
        if claim and not s3.claim(folder / claim, bucket, keys[folder / claim]):
            raise TakenError(f"{uri}: something else came to stand there meanwhile; it is left as it is")
        s3.upload(
            [(file, keys[file]) for file in keys if file.is_file() and file != manifest],
            bucket,
            last=(manifest, keys[manifest]) if manifest.is_file() else None,
        )
    if claim:  # a server that knows no conditional requests has let two in
        for file in (folder / claim, manifest):
            if file.is_file() and not has_content(f"s3://{bucket}/{keys[file]}", file):
                raise InputError(f"{uri}: something else was written there at the same time; what is there is mixed")


def download_directory(uri: str | Path, into: Path) -> None:
    """Copies everything under ``uri`` into the folder ``into``, which appears when it is complete.

    What came before an interruption lies beside it as ``.NAME.partial``, and the next call goes on from there.

    Raises:
        InputError: If there is nothing under ``uri``, S3 refuses or cannot be reached, content arrives damaged or
            changes meanwhile, or the disk is full.
    """
    if not is_remote(uri):
        if not Path(uri).is_dir():
            raise InputError(f"{uri} is no folder")
        upload_directory(Path(uri), into)
        return
    bucket, key = _bucket_and_key(uri)
    prefix = _as_prefix(key)
    objects = {}
    with one_line_errors(uri):
        for listed in _objects(bucket, prefix):
            relative = PurePosixPath(listed.key[len(prefix) :])
            if relative.is_absolute() or ".." in relative.parts:
                raise InputError(f"{listed.address}: a key that leads out of its folder is not downloaded")
            if relative in objects:
                raise InputError(f"{listed.address}: two keys would be the same file here ({relative}); rename one")
            objects[relative] = listed
        if not objects:
            raise InputError(f"{uri} does not exist: no object has that name or begins with {prefix!r}")
        _download(objects, into)


def delete_directory(uri: str | Path) -> None:
    """Removes everything under ``uri``; the manifest goes first, so that what is left cannot be taken for whole.

    A file or an object of that very name is no folder, and stays.

    Raises:
        InputError: If S3 refuses, or cannot be reached.
    """
    if not is_remote(uri):
        if Path(uri).is_dir():
            (Path(uri) / MANIFEST).unlink(missing_ok=True)
            shutil.rmtree(uri, ignore_errors=True)
        return
    bucket, key = _bucket_and_key(uri)
    with one_line_errors(uri):
        names = [each.key for each in _objects(bucket, _as_prefix(key))]
        for name in sorted(names, key=lambda name: PurePosixPath(name).name != MANIFEST):
            patiently(str(uri), partial(client().delete_object, Bucket=bucket, Key=name))


def _download(objects: dict[PurePosixPath, Listed], into: Path) -> None:
    from modelcore.s3.download import download

    total = sum(each.size for each in objects.values())
    with resumable_directory(into) as folder:
        here = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        room = shutil.disk_usage(folder).free
        if total - here > room:
            raise InputError(
                f"{into} needs {total - here:,} bytes more and the disk has {room:,} left; free some and run again"
            )
        download(objects, folder)


def _bucket_and_key(uri: str | Path) -> tuple[str, str]:
    bucket, _, key = str(uri).removeprefix("s3://").partition("/")
    if not bucket:
        raise InputError(f"{uri} names no bucket; write s3://bucket/prefix")
    return bucket, key


def _as_prefix(key: str) -> str:
    return key.rstrip("/") + "/" if key else ""


def _objects(bucket: str, prefix: str) -> Iterator[Listed]:
    """Every object under ``prefix``, without the empty objects that stand for folders."""
    from modelcore.s3.download import Listed

    request = {"Bucket": bucket, "Prefix": prefix}
    while True:
        page = patiently(f"s3://{bucket}/{prefix}", partial(client().list_objects_v2, **request))
        for entry in page.get("Contents", []):
            if not entry["Key"].endswith("/"):
                yield Listed(bucket, entry["Key"], entry["Size"], entry["ETag"])
        if not page.get("IsTruncated"):
            return
        request |= {"ContinuationToken": page["NextContinuationToken"]}


def _object(bucket: str, key: str) -> Listed | None:
    """The object of that very key, or None."""
    from modelcore.s3.checksums import known
    from modelcore.s3.download import Listed

    if not key or key.endswith("/"):
        return None
    told = patiently(f"s3://{bucket}/{key}", lambda: known(bucket, key))
    return Listed(bucket, key, told.size, told.etag) if told is not None else None
