"""Paths and s3:// addresses do the same; S3 is a real server on this machine, spoken to by boto3."""

import json
import os

import boto3
import pytest
from moto.server import ThreadedMotoServer

from modelcore import storage
from modelcore.errors import InputError

BUCKET = "corpus-bucket"


@pytest.fixture(scope="module", autouse=True)
def server():
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        forget_client()
        yield
    forget_client()
    server.stop()


def forget_client():
    """Makes storage look at the environment anew, as a new process would."""
    boto3.DEFAULT_SESSION = None
    storage._client.cache_clear()


@pytest.fixture
def environment(monkeypatch):
    """For tests that change what storage finds in the environment."""
    forget_client()
    yield monkeypatch
    forget_client()


@pytest.fixture
def s3():
    """A client, while there is an empty bucket."""
    client = storage._client()
    client.create_bucket(Bucket=BUCKET)
    yield client
    for entry in client.list_objects_v2(Bucket=BUCKET).get("Contents", []):
        client.delete_object(Bucket=BUCKET, Key=entry["Key"])
    client.delete_bucket(Bucket=BUCKET)


@pytest.fixture(params=["local", "s3"])
def place(request, tmp_path):
    """A folder address that does not exist yet, once of each kind."""
    if request.param == "s3":
        request.getfixturevalue("s3")
        return f"s3://{BUCKET}/some/prefix"
    return str(tmp_path / "some" / "prefix")


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "original"
    (folder / "inner").mkdir(parents=True)
    (folder / "a.txt").write_text("first")
    (folder / "inner" / "b.bin").write_bytes(bytes(range(256)))
    (folder / "manifest.json").write_text(json.dumps({"files": ["a.txt", "inner/b.bin"]}))
    return folder


def content(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class TestFolders:
    def test_what_is_uploaded_comes_back(self, place, folder, tmp_path):
        storage.upload_directory(folder, place)
        storage.download_directory(place, tmp_path / "back")
        assert content(tmp_path / "back") == content(folder)

    def test_children_are_the_names_directly_below(self, place, folder):
        assert storage.list_children(place) == []
        storage.upload_directory(folder, f"{place}/one")
        storage.upload_directory(folder, f"{place}/two")
        assert storage.list_children(place) == ["one", "two"]
        assert storage.list_children(f"{place}/one/") == ["a.txt", "inner", "manifest.json"]

    def test_a_deleted_folder_is_gone_and_its_neighbour_is_not(self, place, folder):
        storage.upload_directory(folder, f"{place}/run-1")
        storage.upload_directory(folder, f"{place}/run-10")
        storage.delete_directory(f"{place}/run-1")
        assert storage.list_children(place) == ["run-10"]
        storage.delete_directory(f"{place}/run-1")  # again: nothing to do

    def test_existence(self, place, folder):
        assert not storage.exists(place)
        storage.upload_directory(folder, place)
        assert storage.exists(place)
        assert storage.exists(f"{place}/a.txt")
        assert not storage.exists(f"{place}/a.tx"), "a prefix is a folder, not the beginning of a name"

    def test_a_download_that_finds_nothing_leaves_what_was_there(self, place, tmp_path):
        (tmp_path / "back").mkdir()
        (tmp_path / "back" / "old.txt").write_text("old")
        with pytest.raises(InputError, match="some/prefix"):
            storage.download_directory(place, tmp_path / "back")
        assert content(tmp_path / "back") == {"old.txt": b"old"}


class TestLocalize:
    def test_a_path_is_itself(self, folder, tmp_path):
        assert storage.localize(str(folder), tmp_path / "unused") == folder
        assert not (tmp_path / "unused").exists()

    def test_a_missing_path_is_refused(self, tmp_path):
        with pytest.raises(InputError, match=r"nowhere does not exist; give a file, a folder, or s3://bucket/prefix"):
            storage.localize(tmp_path / "nowhere", tmp_path / "into")

    def test_a_prefix_becomes_a_folder(self, s3, folder, tmp_path):
        storage.upload_directory(folder, f"s3://{BUCKET}/data")
        s3.put_object(Bucket=BUCKET, Key="data/", Body=b"")  # what consoles make to show a folder
        s3.put_object(Bucket=BUCKET, Key="database.txt", Body=b"a neighbour")
        assert content(storage.localize(f"s3://{BUCKET}/data", tmp_path / "into")) == content(folder)

    def test_a_whole_bucket_becomes_a_folder(self, s3, tmp_path):
        s3.put_object(Bucket=BUCKET, Key="a/b.txt", Body=b"text")
        assert content(storage.localize(f"s3://{BUCKET}", tmp_path / "into")) == {"a/b.txt": b"text"}

    def test_an_object_becomes_a_file_of_its_name(self, s3, tmp_path):
        s3.put_object(Bucket=BUCKET, Key="data/a.jsonl.gz", Body=b"content")
        path = storage.localize(f"s3://{BUCKET}/data/a.jsonl.gz", tmp_path / "into")
        assert path.name == "a.jsonl.gz"
        assert path.read_bytes() == b"content"

    def test_an_object_in_many_parts_comes_whole(self, s3, tmp_path):
        (tmp_path / "large").mkdir()
        (tmp_path / "large" / "a.bin").write_bytes(os.urandom(20 << 20))
        storage.upload_directory(tmp_path / "large", f"s3://{BUCKET}/large")
        path = storage.localize(f"s3://{BUCKET}/large/a.bin", tmp_path / "into")
        assert path.read_bytes() == (tmp_path / "large" / "a.bin").read_bytes()


class TestRefusals:
    """Each in one line that names the address."""

    def refused(self, uri, tmp_path, match):
        with pytest.raises(InputError, match=match) as caught:
            storage.localize(uri, tmp_path / "into")
        assert str(uri) in str(caught.value)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "into").exists()

    def test_nothing_under_the_prefix(self, s3, tmp_path):
        self.refused(f"s3://{BUCKET}/missing", tmp_path, "does not exist")

    def test_no_such_bucket(self, s3, tmp_path):
        self.refused("s3://no-such-bucket/data", tmp_path, "there is no such bucket")

    def test_no_bucket_named(self, tmp_path):
        self.refused("s3:///data", tmp_path, "names no bucket")

    def test_another_scheme(self, tmp_path):
        self.refused("gs://bucket/data", tmp_path, r"gs:// is not supported; give a path or s3://bucket/prefix")

    def test_no_credentials(self, tmp_path, environment):
        environment.delenv("AWS_ACCESS_KEY_ID")
        environment.delenv("AWS_SECRET_ACCESS_KEY")
        environment.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
        environment.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
        self.refused(f"s3://{BUCKET}/data", tmp_path, "no AWS credentials found; set AWS_ACCESS_KEY_ID")

    def test_no_server(self, tmp_path, environment):
        environment.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        environment.setattr(storage, "ATTEMPTS", 1)
        self.refused(f"s3://{BUCKET}/data", tmp_path, "Could not connect to the endpoint URL")

    def test_access_denied(self, s3, tmp_path, monkeypatch):
        from botocore.exceptions import ClientError

        class Denying:
            def head_object(self, **_):
                raise ClientError({"Error": {"Code": "403", "Message": "Forbidden"}}, "HeadObject")

        monkeypatch.setattr(storage, "_client", Denying)
        self.refused(f"s3://{BUCKET}/data", tmp_path, r"access refused \(403\); check the credentials")

    def test_a_key_that_leads_out_of_its_folder(self, s3, tmp_path):
        s3.put_object(Bucket=BUCKET, Key="data/../../evil.txt", Body=b"x")
        with pytest.raises(InputError, match="leads out of its folder"):
            storage.localize(f"s3://{BUCKET}/data", tmp_path / "into")
        assert not list(tmp_path.rglob("evil.txt"))


def test_the_manifest_is_uploaded_last_and_deleted_first(s3, folder, monkeypatch):
    calls = []

    class Recording:
        def __getattr__(self, name):
            return getattr(s3, name)

        def upload_file(self, path, bucket, key):
            calls.append(key)
            s3.upload_file(path, bucket, key)

        def delete_object(self, Bucket, Key):  # noqa: N803
            calls.append(Key)
            s3.delete_object(Bucket=Bucket, Key=Key)

    monkeypatch.setattr(storage, "_client", Recording)
    storage.upload_directory(folder, f"s3://{BUCKET}/run")
    assert calls == ["run/a.txt", "run/inner/b.bin", "run/manifest.json"]
    calls.clear()
    storage.delete_directory(f"s3://{BUCKET}/run")
    assert calls[0] == "run/manifest.json"
