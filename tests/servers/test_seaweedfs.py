"""What other tests count on the S3 server for."""

import boto3
import pytest
from botocore.exceptions import ClientError


def test_what_is_stored_is_given_back_to_whoever_goes_by_the_environment(s3_bucket):
    client = boto3.session.Session().client("s3")
    client.put_object(Bucket=s3_bucket, Key="folder/key", Body=b"content")
    assert client.get_object(Bucket=s3_bucket, Key="folder/key")["Body"].read() == b"content"


def test_the_reader_may_read_and_not_write(s3_bucket, s3_server, s3_environment):
    s3_server.client().put_object(Bucket=s3_bucket, Key="key", Body=b"content")
    s3_environment.setenv("AWS_ACCESS_KEY_ID", s3_server.reader[0])
    s3_environment.setenv("AWS_SECRET_ACCESS_KEY", s3_server.reader[1])
    client = boto3.session.Session().client("s3")
    assert client.get_object(Bucket=s3_bucket, Key="key")["Body"].read() == b"content"
    with pytest.raises(ClientError, match="AccessDenied"):
        client.put_object(Bucket=s3_bucket, Key="key", Body=b"other")


def test_content_that_does_not_fit_its_checksum_is_refused(s3_bucket, s3_server):
    for checksum in ({"ContentMD5": "A" * 22 + "=="}, {"ChecksumSHA256": "A" * 43 + "="}):
        with pytest.raises(ClientError, match="BadDigest"):
            s3_server.client().put_object(Bucket=s3_bucket, Key="key", Body=b"content", **checksum)
