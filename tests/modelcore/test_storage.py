"""Paths and s3:// addresses do the same; S3 is a real server on this machine, spoken to by boto3."""

import datetime
import json
import random

import pytest
from botocore import auth
from moto.server import ThreadedMotoServer

from modelcore import storage
from modelcore.errors import InputError
from modelcore.s3 import client
from tests.servers import faulty_proxy


@pytest.fixture
def s3(s3_server, s3_bucket):
    """A client of the test's own."""
    return s3_server.client()


@pytest.fixture(params=["local", "s3"])
def place(request, tmp_path):
    """A folder address that does not exist yet, once of each kind."""
    if request.param == "s3":
        return f"s3://{request.getfixturevalue('s3_bucket')}/some/prefix"
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

    def test_a_prefix_becomes_a_folder(self, s3, s3_bucket, folder, tmp_path):
        storage.upload_directory(folder, f"s3://{s3_bucket}/data")
        s3.put_object(Bucket=s3_bucket, Key="data/", Body=b"")  # what consoles make to show a folder
        s3.put_object(Bucket=s3_bucket, Key="database.txt", Body=b"a neighbour")
        assert content(storage.localize(f"s3://{s3_bucket}/data", tmp_path / "into")) == content(folder)

    def test_a_whole_bucket_becomes_a_folder(self, s3, s3_bucket, tmp_path):
        s3.put_object(Bucket=s3_bucket, Key="a/b.txt", Body=b"text")
        assert content(storage.localize(f"s3://{s3_bucket}", tmp_path / "into")) == {"a/b.txt": b"text"}

    def test_an_object_becomes_a_file_of_its_name(self, s3, s3_bucket, tmp_path):
        s3.put_object(Bucket=s3_bucket, Key="data/a.jsonl.gz", Body=b"content")
        path = storage.localize(f"s3://{s3_bucket}/data/a.jsonl.gz", tmp_path / "into")
        assert path.name == "a.jsonl.gz"
        assert path.read_bytes() == b"content"

    def test_an_object_in_many_parts_comes_whole(self, s3_bucket, tmp_path):
        (tmp_path / "large").mkdir()
        (tmp_path / "large" / "a.bin").write_bytes(random.Random(0).randbytes(20 << 20))
        storage.upload_directory(tmp_path / "large", f"s3://{s3_bucket}/large")
        path = storage.localize(f"s3://{s3_bucket}/large/a.bin", tmp_path / "into")
        assert path.read_bytes() == (tmp_path / "large" / "a.bin").read_bytes()


class TestRefusals:
    """Each in one line that names the address."""

    def refused(self, uri, tmp_path, match):
        with pytest.raises(InputError, match=match) as caught:
            storage.localize(uri, tmp_path / "into")
        assert str(uri) in str(caught.value)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "into").exists()

    def test_nothing_under_the_prefix(self, s3_bucket, tmp_path):
        self.refused(f"s3://{s3_bucket}/missing", tmp_path, "does not exist")

    def test_no_such_bucket(self, s3_environment, tmp_path):
        self.refused("s3://no-such-bucket/data", tmp_path, "there is no such bucket")

    def test_no_bucket_named(self, tmp_path):
        self.refused("s3:///data", tmp_path, "names no bucket")

    def test_a_name_that_no_bucket_can_have(self, s3_environment, tmp_path):
        self.refused("s3://bucket!/data", tmp_path, r'Invalid bucket name "bucket!": Bucket name must match')

    def test_another_scheme(self, tmp_path):
        self.refused("gs://bucket/data", tmp_path, r"gs:// is not supported; give a path or s3://bucket/prefix")

    def test_no_credentials(self, tmp_path, s3_environment):
        s3_environment.delenv("AWS_ACCESS_KEY_ID")
        s3_environment.delenv("AWS_SECRET_ACCESS_KEY")
        s3_environment.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
        s3_environment.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
        self.refused("s3://some-bucket/data", tmp_path, "no AWS credentials found; set AWS_ACCESS_KEY_ID")

    def test_no_server(self, tmp_path, s3_environment):
        s3_environment.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        s3_environment.setattr(client, "PAUSES", ())
        self.refused(
            "s3://some-bucket/data",
            tmp_path,
            r"the server cannot be reached, or went away: Could not connect to the endpoint URL.*; "
            "tried once, check AWS_ENDPOINT_URL and the network",
        )

    @pytest.mark.parametrize(
        ("address", "said"),
        [
            ("http://me:hidden-word@127.0.0.1:9", 'URL: "http://127.0.0.1:9/some-bucket/data"; tried once'),
            ("http://me:hidden@word@127.0.0.1:9", 'URL: "http://127.0.0.1:9/some-bucket/data"; tried once'),
            ("http://me:hidden/word@127.0.0.1:9", 'AWS_ENDPOINT_URL is "http://127.0.0.1:9"; give http://host:port'),
            ("http://me:12/hidden@127.0.0.1:9", 'AWS_ENDPOINT_URL is "http://…@127.0.0.1:9"; give http://host:port'),
            ("notaurl", 'AWS_ENDPOINT_URL is "notaurl"; give http://host:port or https://host'),
        ],
    )
    def test_an_endpoint_that_cannot_be_used_is_told_without_its_password(
        self, tmp_path, s3_environment, caplog, address, said
    ):
        s3_environment.setenv("AWS_ENDPOINT_URL", address)
        s3_environment.setattr(client, "PAUSES", (0.01,) if "tried" in said else ())
        with pytest.raises(InputError) as caught:
            storage.localize("s3://some-bucket/data", tmp_path / "into")
        assert said.replace("once", "2 times") in str(caught.value)
        assert "hidden" not in str(caught.value) + caplog.text
        assert "\n" not in str(caught.value)

    def test_an_endpoint_in_the_configuration_file_that_is_none(self, tmp_path, s3_environment):
        s3_environment.delenv("AWS_ENDPOINT_URL")
        (tmp_path / "config").write_text("[default]\nendpoint_url = notaurl\n")
        s3_environment.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
        with pytest.raises(InputError, match=r"Invalid endpoint: notaurl; check endpoint_url in AWS's configuration"):
            storage.localize("s3://some-bucket/data", tmp_path / "into")

    def test_a_host_whose_name_is_unknown(self, tmp_path, s3_environment):
        s3_environment.setenv("AWS_ENDPOINT_URL", "http://no-such-host.invalid:8333")
        s3_environment.setattr(client, "PAUSES", ())
        self.refused("s3://some-bucket/data", tmp_path, "Could not connect to the endpoint URL.*no-such-host.invalid")

    def test_keys_that_the_server_does_not_know(self, s3_bucket, s3_environment, tmp_path):
        s3_environment.setenv("AWS_ACCESS_KEY_ID", "NOBODY")
        self.refused(f"s3://{s3_bucket}/data", tmp_path, r"access refused \(403\); check the credentials")
        self.refused(f"s3://{s3_bucket}/data/", tmp_path, r"access refused \(InvalidAccessKeyId\)")

    def test_a_secret_key_that_is_not_the_right_one(self, s3_bucket, s3_environment, tmp_path):
        s3_environment.setenv("AWS_SECRET_ACCESS_KEY", "another")
        self.refused(f"s3://{s3_bucket}/data/", tmp_path, r"access refused \(SignatureDoesNotMatch\)")

    def test_writing_where_one_may_only_read(self, s3_bucket, s3_server, s3_environment, folder):
        s3_environment.setenv("AWS_ACCESS_KEY_ID", s3_server.reader[0])
        s3_environment.setenv("AWS_SECRET_ACCESS_KEY", s3_server.reader[1])
        for write in (storage.check_writable, lambda uri: storage.upload_directory(folder, uri)):
            with pytest.raises(InputError, match=rf"^s3://{s3_bucket}/run.*: access refused \(AccessDenied\)"):
                write(f"s3://{s3_bucket}/run")

    def test_a_clock_that_is_wrong(self, s3_bucket, tmp_path):
        long_ago = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(auth, "get_current_datetime", lambda *_, **__: long_ago)
            self.refused(f"s3://{s3_bucket}/data/", tmp_path, "clock and this machine's differ by more than 15 minutes")

    def test_a_bucket_in_another_region(self, s3_bucket, s3_proxy, tmp_path):
        s3_proxy.fail(faulty_proxy.Answer(301, "PermanentRedirect"))
        self.refused(f"s3://{s3_bucket}/data/", tmp_path, "the bucket is in another region .*; set AWS_DEFAULT_REGION")

    def test_a_disk_too_small_for_it_is_told_before_anything_is_downloaded(self, s3, s3_bucket, small_disk, tmp_path):
        s3.put_object(Bucket=s3_bucket, Key="data/large", Body=bytes(9 << 20))
        with pytest.raises(InputError, match=r"needs 9,437,184 bytes more and the disk has [\d,]+ left"):
            storage.localize(f"s3://{s3_bucket}/data", small_disk.folder / "into")


class TestKeysThatNoFileCanHave:
    """Amazon's S3 and moto take them, SeaweedFS does not."""

    @pytest.fixture
    def s3(self, s3_environment):
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
        server.start()
        s3_environment.setenv("AWS_ENDPOINT_URL", "http://{}:{}".format(*server.get_host_and_port()))
        client.client().create_bucket(Bucket="some-bucket")
        yield client.client()
        for entry in client.client().list_objects_v2(Bucket="some-bucket").get("Contents", []):
            client.client().delete_object(Bucket="some-bucket", Key=entry["Key"])
        client.client().delete_bucket(Bucket="some-bucket")  # moto keeps what it has for the next server
        server.stop()

    def refused(self, tmp_path, match):
        with pytest.raises(InputError, match=match):
            storage.localize("s3://some-bucket/data", tmp_path / "into")
        assert not (tmp_path / "into").exists()

    def test_one_that_leads_out_of_its_folder(self, s3, tmp_path):
        s3.put_object(Bucket="some-bucket", Key="data/../../evil.txt", Body=b"x")
        self.refused(tmp_path, r"^s3://some-bucket/data/../../evil.txt: a key that leads out of its folder")
        assert not list(tmp_path.rglob("evil.txt"))

    def test_one_that_is_the_folder_of_another(self, s3, tmp_path):
        s3.put_object(Bucket="some-bucket", Key="data/a", Body=b"x")
        s3.put_object(Bucket="some-bucket", Key="data/a/b", Body=b"x")
        self.refused(tmp_path, r"^s3://some-bucket/data/a/b: another key is its folder here")

    def test_two_that_would_be_one_file(self, s3, tmp_path):
        s3.put_object(Bucket="some-bucket", Key="data/a/b", Body=b"x")
        s3.put_object(Bucket="some-bucket", Key="data/a//b", Body=b"x")
        self.refused(tmp_path, r"two keys would be the same file here \(a/b\)")

    def test_what_is_uploaded_comes_back_from_such_a_server_too(self, s3, folder, tmp_path):
        (folder / "large.bin").write_bytes(random.Random(0).randbytes(20 << 20))
        storage.upload_directory(folder, "s3://some-bucket/data")
        storage.download_directory("s3://some-bucket/data", tmp_path / "back")
        assert content(tmp_path / "back") == content(folder)


def test_the_manifest_is_uploaded_last_and_deleted_first(s3_bucket, s3_proxy, folder):
    uri = f"s3://{s3_bucket}/run"

    storage.upload_directory(folder, uri)
    assert [request.path for request in s3_proxy.requests if request.method == "PUT"][-1].endswith("run/manifest.json")
    s3_proxy.forget()
    (folder / "a.txt").write_text("other")
    (folder / "manifest.json").write_text("{}")
    storage.upload_directory(folder, uri)
    made = [
        (each.method, each.path.rpartition("/")[2]) for each in s3_proxy.requests if each.method in ("PUT", "DELETE")
    ]
    assert made == [("DELETE", "manifest.json"), ("PUT", "a.txt"), ("PUT", "manifest.json")]
    s3_proxy.forget()
    storage.delete_directory(uri)
    assert next(each.path for each in s3_proxy.requests if each.method == "DELETE").endswith("run/manifest.json")
