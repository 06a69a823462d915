"""Transfers arrive whole over a network that is not: a real S3 behind a proxy that fails as the test says."""

import logging
import os
import random
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from modelcore import storage
from modelcore.atomic import resumable_directory
from modelcore.errors import InputError
from modelcore.s3 import client, download, upload
from tests.servers.faulty_proxy import Answer, Corruption, CutOff, Lost, Silence

MIB = 1 << 20
PART = 5 * MIB  # the smallest that S3 takes; ranges may be smaller
RANGE = 2 * MIB
SIZE = PART + 12345  # two parts, three ranges


def noise(size, seed=0):
    return random.Random(seed).randbytes(size)


@pytest.fixture
def uri(s3_bucket, s3_proxy, monkeypatch):
    """A folder's address, of which the requests go through the proxy; parts are small."""
    monkeypatch.setattr(download, "PART", RANGE)
    monkeypatch.setattr(upload, "PART", PART)
    return f"s3://{s3_bucket}/folder"


@pytest.fixture
def folder(tmp_path):
    """A folder of three small files and one of two parts and three ranges."""
    folder = tmp_path / "here"
    (folder / "inner").mkdir(parents=True)
    (folder / "a.txt").write_text("first")
    (folder / "inner" / "b.bin").write_bytes(bytes(range(256)))
    (folder / "empty").touch()
    (folder / "large.bin").write_bytes(noise(SIZE))
    return folder


def content(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def is_part(request):
    return request.method == "PUT" and "partNumber" in request.path


def is_small(request):
    return request.method == "PUT" and request.path.endswith("a.txt")


def is_completion(request):
    return request.method == "POST" and "uploadId" in request.path


def is_range(request):
    return request.method == "GET" and request.range


def is_small_get(request):
    return request.method == "GET" and request.path.endswith("a.txt")


class TestFaultsThatPass:
    @pytest.mark.parametrize(
        ("faults", "when"),
        [
            ([Answer(503, "SlowDown"), Answer(500, "InternalError"), CutOff(10)], is_part),
            ([Lost(), Corruption("request", 100)], is_part),
            ([Corruption("request", 1), Answer(503, "ServiceUnavailable"), Lost()], is_small),
            ([Lost()], is_completion),
            ([Answer(500, "InternalError"), Answer(503, "SlowDown")], is_completion),
        ],
        ids=["failed-parts", "lost-and-corrupted-parts", "small", "lost-completion", "failed-completion"],
    )
    def test_an_upload_is_whole_all_the_same(self, uri, folder, s3_proxy, tmp_path, faults, when):
        s3_proxy.fail(*faults, when=when)
        storage.upload_directory(folder, uri)
        assert s3_proxy.pending == 0
        storage.download_directory(uri, tmp_path / "back")
        assert content(tmp_path / "back") == content(folder)

    @pytest.mark.parametrize(
        ("faults", "when"),
        [
            ([Answer(503, "SlowDown"), CutOff(100_000), CutOff(0)], is_range),
            ([Corruption("answer", 4000)], is_range),
            ([Corruption("answer", 2), CutOff(2), Answer(500, "InternalError")], is_small_get),
            ([Answer(503, "SlowDown"), Lost()], lambda request: "list-type" in request.path),
        ],
        ids=["failed-ranges", "corrupted-range", "small", "listing"],
    )
    def test_a_download_is_whole_all_the_same(self, uri, folder, s3_proxy, tmp_path, faults, when):
        storage.upload_directory(folder, uri)
        s3_proxy.fail(*faults, when=when)
        storage.download_directory(uri, tmp_path / "back")
        assert s3_proxy.pending == 0
        assert content(tmp_path / "back") == content(folder)

    def test_a_server_that_is_silent_is_given_up_after_the_timeout(
        self, uri, folder, s3_proxy, s3_environment, tmp_path
    ):
        s3_environment.setattr(client, "READ_TIMEOUT", 2)
        s3_environment.setenv("AWS_EXECUTION_ENV", "a client of its own")
        s3_proxy.fail(Silence(), when=is_part)
        storage.upload_directory(folder, uri)
        s3_proxy.fail(Silence(), when=is_range)
        storage.download_directory(uri, tmp_path / "back")
        assert s3_proxy.pending == 0
        assert content(tmp_path / "back") == content(folder)

    def test_each_is_told_in_one_line(self, uri, folder, s3_proxy, caplog):
        s3_proxy.fail(Answer(503, "SlowDown"), when=is_small)
        with caplog.at_level(logging.WARNING, "modelcore"):
            storage.upload_directory(folder, uri)
        (line,) = [record.getMessage() for record in caplog.records]
        assert line.startswith(f"{uri}/a.txt: An error occurred (SlowDown)")
        assert "trying again in 0.0 s" in line


class TestFaultsThatStay:
    def refused(self, match, call, *arguments):
        with pytest.raises(InputError, match=match) as caught:
            call(*arguments)
        assert "\n" not in str(caught.value)

    def test_a_server_that_stays_away(self, uri, folder, s3_proxy):
        s3_proxy.down = True
        self.refused(r"went away: Connection was closed.*tried 4 times", storage.upload_directory, folder, uri)

    def test_a_server_that_is_overloaded_for_good(self, uri, folder, s3_proxy):
        s3_proxy.fail(*[Answer(503, "SlowDown")] * 4, when=is_small)
        self.refused(r"folder/a.txt: .*\(SlowDown\)", storage.upload_directory, folder, uri)

    def test_an_object_that_arrives_damaged_time_after_time(self, uri, folder, s3_proxy, tmp_path):
        storage.upload_directory(folder, uri)
        s3_proxy.fail(*[Corruption("answer", 1)] * 4, when=is_small_get)
        self.refused(r"a.txt: the object arrived damaged: ", storage.download_directory, uri, tmp_path / "b")
        s3_proxy.forget()
        s3_proxy.fail(*[Corruption("answer", 1)] * 6, when=is_range)
        self.refused(r"large.bin: the object arrived damaged twice", storage.download_directory, uri, tmp_path / "b")
        assert not (tmp_path / "b").exists()

    def test_an_object_that_is_replaced_while_it_is_read(self, uri, folder, s3_proxy, s3_bucket, tmp_path, s3_server):
        storage.upload_directory(folder, uri)
        ranges = iter(range(10))

        def replace_it(request):
            if is_range(request) and next(ranges) == 1:
                body = noise(SIZE, seed=1)
                s3_server.client().put_object(Bucket=s3_bucket, Key="folder/large.bin", Body=body)
            return False

        s3_proxy.fail(Lost(), when=replace_it)
        self.refused(
            r"^s3://.*/folder/large.bin: the object changed while it was being read; run again",
            storage.download_directory,
            uri,
            tmp_path / "back",
        )
        s3_proxy.forget()
        storage.download_directory(uri, tmp_path / "back")
        assert (tmp_path / "back" / "large.bin").read_bytes() == noise(SIZE, seed=1)

    @pytest.mark.parametrize(("key", "asked"), [("a.txt", 0), ("large.bin", 0), ("large.bin", 1)])
    def test_an_object_that_is_deleted_while_it_is_read(
        self, uri, folder, s3_proxy, s3_bucket, tmp_path, s3_server, key, asked
    ):
        storage.upload_directory(folder, uri)
        requests = iter(range(10))

        def delete_it(request):
            if (is_small_get(request) or is_range(request)) and request.path.endswith(key) and next(requests) == asked:
                s3_server.client().delete_object(Bucket=s3_bucket, Key=f"folder/{key}")
            return False

        s3_proxy.fail(Lost(), when=delete_it)
        self.refused(
            rf"^s3://.*/folder/{key}: the object was deleted while it was being read; run again",
            storage.download_directory,
            uri,
            tmp_path / "back",
        )
        s3_proxy.forget()
        storage.download_directory(uri, tmp_path / "back")
        assert content(tmp_path / "back").keys() == content(folder).keys() - {key}

    def test_an_object_that_is_deleted_before_its_first_byte_is_asked_for(
        self, uri, folder, s3_proxy, s3_bucket, tmp_path, s3_server
    ):
        storage.upload_directory(folder, uri)

        def delete_it(request):
            if is_small_get(request):
                s3_server.client().delete_object(Bucket=s3_bucket, Key="folder/large.bin")
            return False

        s3_proxy.fail(Lost(), when=delete_it)
        self.refused(
            "large.bin: the object was deleted while it was being read", storage.download_directory, uri, tmp_path / "b"
        )

    def test_a_disk_that_others_fill_meanwhile(self, uri, folder, s3_proxy, small_disk):
        storage.upload_directory(folder, uri)

        def fill(request):
            small_disk.fill(room=100_000)
            return True

        s3_proxy.fail(Lost(), when=lambda request: is_small_get(request) and fill(request))
        self.refused("no space left on the disk", storage.download_directory, uri, small_disk.folder / "into")
        (small_disk.folder / "filler").unlink()
        storage.download_directory(uri, small_disk.folder / "into")
        assert content(small_disk.folder / "into") == content(folder)


class TestGoingOn:
    """What was transferred before an interruption is not transferred again: counted at the proxy."""

    def test_files_that_are_there_are_not_uploaded_again(self, uri, folder, s3_proxy):
        storage.upload_directory(folder, uri)
        s3_proxy.forget()
        storage.upload_directory(folder, uri)
        assert {request.method for request in s3_proxy.requests} == {"HEAD"}
        (folder / "a.txt").write_text("other")
        storage.upload_directory(folder, uri)
        assert [request.path.rpartition("/")[2] for request in s3_proxy.requests if request.method == "PUT"] == [
            "a.txt"
        ]

    def test_an_object_of_the_same_size_and_other_content_is_replaced(
        self, uri, folder, s3_bucket, s3_server, tmp_path
    ):
        for key, size in (("a.txt", 5), ("large.bin", SIZE)):
            s3_server.client().put_object(Bucket=s3_bucket, Key=f"folder/{key}", Body=noise(size, seed=1))
        storage.upload_directory(folder, uri)
        storage.download_directory(uri, tmp_path / "back")
        assert content(tmp_path / "back") == content(folder)

    def test_an_upload_goes_on_at_the_parts_that_are_missing(
        self, uri, folder, s3_proxy, s3_bucket, s3_server, tmp_path
    ):
        s3_proxy.fail(
            *[Answer(503, "SlowDown")] * 8, when=lambda request: is_part(request) and "partNumber=2" in request.path
        )
        with pytest.raises(InputError, match="SlowDown"):
            storage.upload_directory(folder, uri)
        s3_proxy.forget()
        storage.upload_directory(folder, uri)
        assert [request.size for request in s3_proxy.requests if is_part(request)] == [12345]
        storage.download_directory(uri, tmp_path / "back")
        assert content(tmp_path / "back") == content(folder)
        assert "Uploads" not in s3_server.client().list_multipart_uploads(Bucket=s3_bucket)

    def test_the_parts_of_a_file_that_began_alike_do_not_get_into_another(self, uri, folder, s3_proxy, tmp_path):
        s3_proxy.fail(
            *[Answer(503, "SlowDown")] * 8, when=lambda request: is_part(request) and "partNumber=2" in request.path
        )
        with pytest.raises(InputError, match="SlowDown"):
            storage.upload_directory(folder, uri)
        s3_proxy.forget()
        (folder / "large.bin").write_bytes(noise(PART) + b"another end")
        storage.upload_directory(folder, uri)
        storage.download_directory(uri, tmp_path / "back")
        assert content(tmp_path / "back") == content(folder)

    def test_a_download_goes_on_where_it_ended(self, uri, folder, s3_proxy, tmp_path):
        storage.upload_directory(folder, uri)
        last = f"bytes={2 * RANGE}-{SIZE - 1}"
        s3_proxy.forget()
        s3_proxy.fail(*[Answer(503, "SlowDown")] * 4, when=lambda request: request.range == last)
        with pytest.raises(InputError, match="SlowDown"):
            storage.download_directory(uri, tmp_path / "back")
        assert not (tmp_path / "back").exists()
        s3_proxy.forget()
        storage.download_directory(uri, tmp_path / "back")
        assert [request.range for request in s3_proxy.requests if is_range(request)] == [last]
        assert not [
            request for request in s3_proxy.requests if request.path.endswith("a.txt") and is_small_get(request)
        ]
        assert content(tmp_path / "back") == content(folder)
        assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".partial")] == []

    def test_a_download_that_is_gone_on_with_forgets_what_is_no_longer_there(
        self, uri, folder, s3_proxy, s3_bucket, s3_server, tmp_path
    ):
        storage.upload_directory(folder, uri)
        s3_proxy.fail(*[Answer(503, "SlowDown")] * 12, when=is_range)
        with pytest.raises(InputError, match="SlowDown"):
            storage.download_directory(uri, tmp_path / "back")
        s3_proxy.forget()
        s3_server.client().delete_object(Bucket=s3_bucket, Key="folder/inner/b.bin")
        storage.download_directory(uri, tmp_path / "back")
        (folder / "inner" / "b.bin").unlink()
        assert content(tmp_path / "back") == content(folder)
        assert not (tmp_path / "back" / "inner").exists()

    def test_two_do_not_download_to_the_same_place(self, uri, folder, tmp_path):
        storage.upload_directory(folder, uri)
        with resumable_directory(tmp_path / "back"):
            with pytest.raises(InputError, match=r"another process is writing .*/back; wait for it or name another"):
                storage.download_directory(uri, tmp_path / "back")

    @pytest.mark.parametrize("way", ["up", "down"])
    def test_of_a_killed_process_the_next_transfers_the_rest_alone(self, way, s3_bucket, s3_proxy, tmp_path):
        """Eight parts of the usual size, 64 MiB; killed with SIGKILL when three are done and four under way."""
        uri, size = f"s3://{s3_bucket}/folder", upload.PART
        large, back = tmp_path / "large", tmp_path / "back"
        large.mkdir()
        (large / "a.bin").write_bytes(noise(8 * size))
        if way == "up":
            call = f"upload_directory(Path({str(large)!r}), {uri!r})"
        else:
            storage.upload_directory(large, uri)
            call = f"download_directory({uri!r}, Path({str(back)!r}))"
        program = [sys.executable, "-c", f"from pathlib import Path; from modelcore import storage; storage.{call}"]
        late, seven_came = set(), threading.Event()

        def is_late(request):
            if way == "up" and is_part(request):
                number = int(re.search(r"partNumber=(\d+)", request.path)[1])
            elif way == "down" and is_range(request):
                number = int(re.search(r"bytes=(\d+)", request.range)[1]) // size + 1
            else:
                return False
            if number > 3:
                late.add(number)
            if 7 in late:  # it is sent when the third is done: no more than four are under way
                seven_came.set()
            return number > 3

        s3_proxy.forget()
        s3_proxy.fail(*[Silence()] * 5, when=is_late)
        environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
        with subprocess.Popen(program, env=environment) as process:
            assert seven_came.wait(60)
            process.kill()
        s3_proxy.forget()
        subprocess.run(program, env=environment, check=True)
        second = s3_proxy.received if way == "up" else s3_proxy.sent
        assert 5 * size <= second < 5 * size + 64 * 1024
        if way == "up":
            storage.download_directory(uri, back)
        assert content(back) == content(large)


class TestWhatAnObjectIsCheckedBy:
    """Objects that others uploaded, with whatever sum their program left."""

    def damaged(self, s3_proxy, uri, tmp_path, match, when):
        s3_proxy.fail(*[Corruption("answer", 3)] * 10, when=when)
        with pytest.raises(InputError, match=match):
            storage.download_directory(uri, tmp_path / "back")

    @pytest.mark.parametrize(
        ("algorithm", "seen"),
        [
            ("SHA256", "Expected checksum"),
            ("SHA1", "Expected checksum"),
            ("CRC32", "Expected checksum"),
            (None, "its MD5 sum"),
        ],
    )
    def test_an_object_of_one_part(self, uri, s3_proxy, s3_bucket, s3_server, tmp_path, algorithm, seen):
        from botocore.config import Config

        plain = s3_server.client(Config(request_checksum_calculation="when_required"))
        checked = {"ChecksumAlgorithm": algorithm} if algorithm else {}
        plain.put_object(Bucket=s3_bucket, Key="folder/a.txt", Body=b"content", **checked)
        self.damaged(s3_proxy, uri, tmp_path, f"a.txt: the object arrived damaged: {seen}", is_small_get)
        s3_proxy.forget()
        storage.download_directory(uri, tmp_path / "back")
        assert content(tmp_path / "back") == {"a.txt": b"content"}

    def test_an_object_of_many_parts_by_the_sums_of_its_parts(self, uri, s3_proxy, s3_bucket, s3_server, tmp_path):
        from boto3.s3.transfer import TransferConfig

        (tmp_path / "a.bin").write_bytes(noise(SIZE))
        parts = TransferConfig(multipart_threshold=PART, multipart_chunksize=PART)
        s3_server.client().upload_file(str(tmp_path / "a.bin"), s3_bucket, "folder/a.bin", Config=parts)
        self.damaged(s3_proxy, uri, tmp_path, "arrived damaged twice: its MD5 sum is", is_range)
        s3_proxy.forget()
        storage.download_directory(uri, tmp_path / "back")
        assert (tmp_path / "back" / "a.bin").read_bytes() == noise(SIZE)

    def test_additional_checksums_are_left_out_where_the_environment_says_so(
        self, uri, folder, s3_environment, tmp_path
    ):
        s3_environment.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
        storage.upload_directory(folder, uri)
        told = client.client().head_object(Bucket=uri.split("/")[2], Key="folder/large.bin", ChecksumMode="ENABLED")
        assert "ChecksumSHA256" not in told
        storage.download_directory(uri, tmp_path / "back")
        assert content(tmp_path / "back") == content(folder)


class TestEndpoints:
    def addressed(self, s3_environment, **settings):
        for name, value in settings.items():
            s3_environment.setenv(name, value)
        return client.client().generate_presigned_url("get_object", Params={"Bucket": "some-bucket", "Key": "key"})

    def test_a_server_of_ones_own_is_asked_by_path(self, s3_environment):
        url = self.addressed(s3_environment, AWS_ENDPOINT_URL="http://seaweedfs:8333")
        assert url.startswith("http://seaweedfs:8333/some-bucket/key?")

    def test_the_variable_for_s3_alone_comes_first(self, s3_environment):
        url = self.addressed(s3_environment, AWS_ENDPOINT_URL="http://other:1", AWS_ENDPOINT_URL_S3="https://store.org")
        assert url.startswith("https://store.org/some-bucket/key?")

    def test_amazon_is_asked_by_the_buckets_name(self, s3_environment):
        s3_environment.delenv("AWS_ENDPOINT_URL")
        url = self.addressed(s3_environment, AWS_DEFAULT_REGION="eu-central-1")
        assert url.startswith("https://some-bucket.s3.")
        assert ".amazonaws.com/key?" in url

    def test_the_style_in_awss_configuration_file_holds(self, s3_environment, tmp_path):
        (tmp_path / "config").write_text("[default]\ns3 =\n    addressing_style = virtual\n")
        url = self.addressed(
            s3_environment, AWS_ENDPOINT_URL="http://store.org", AWS_CONFIG_FILE=str(tmp_path / "config")
        )
        assert url.startswith("http://some-bucket.store.org/key?")
