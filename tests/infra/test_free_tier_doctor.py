"""The doctor asks AWS, by boto3 over HTTP, and says one line a check."""

import datetime
import os
import subprocess
import sys
from pathlib import Path

import boto3
import pytest
from botocore.loaders import Loader
from botocore.stub import Stubber
from moto.server import ThreadedMotoServer

from infra import account as account_module
from infra.account import Account, check_account, check_cost, check_credentials
from infra.finding import Finding
from infra.free_tier_doctor import check_programs, check_settings, diagnose, main
from infra.settings import TERRAFORM, read_settings

REPOSITORY = Path(__file__).parents[2]
NUMBER = "123456789012"  # moto's account


@pytest.fixture(scope="module")
def server():
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path):
    """No credentials of the person who runs the tests, and no instance's."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))


@pytest.fixture
def at_moto(monkeypatch, server):
    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")


@pytest.fixture(scope="module")
def tfvars(tmp_path_factory):
    file = tmp_path_factory.mktemp("settings") / "terraform.tfvars"
    text = (TERRAFORM / "terraform.tfvars.example").read_text()
    file.write_text(text.replace("example.org", "gpt.test").replace("v0.0.0-example", "v0.1.0"))
    return file


@pytest.fixture(scope="module")
def settings(tfvars):
    return read_settings(tfvars)


class Partly:
    """A client some of whose operations are answered here, by botocore's stubs, which know the API; others are real."""

    def __init__(self, real, stubbed, answers):
        self.real, self.stubbed, self.answers = real, stubbed, answers
        stubber = Stubber(stubbed)
        for operation, answer in answers.items():
            if isinstance(answer, str):
                stubber.add_client_error(operation, answer)
            else:
                stubber.add_response(operation, answer)
        stubber.activate()

    def __getattr__(self, operation):
        return getattr(self.stubbed if operation in self.answers else self.real, operation)

    def get_paginator(self, operation):
        return (self.stubbed if operation in self.answers else self.real).get_paginator(operation)


class Session(boto3.session.Session):
    """A session in which some calls are answered here: ``{(service, operation): answer or error code}``."""

    loader = Loader()  # reads the services' definitions once for all tests

    def __init__(self, answers):
        super().__init__()
        self._session.register_component("data_loader", self.loader)
        self.answers = answers

    def client(self, service, **options):
        make = super().client
        mine = {operation: answer for (name, operation), answer in self.answers.items() if name == service}
        real = make(service, **options)
        return Partly(real, make(service, **options), mine) if mine else real


def quota(value):
    return {"Quota": {"Value": float(value)}}


def plan(kind="FREE", credits=200.0, status="ACTIVE"):
    ends = datetime.datetime(2027, 3, 1, tzinfo=datetime.UTC)
    return {
        "accountId": NUMBER,
        "accountPlanType": kind,
        "accountPlanStatus": status,
        "accountPlanRemainingCredits": {"amount": credits, "unit": "USD"},
        "accountPlanExpirationDate": ends,
    }


# What moto does not have.
GOOD = {
    ("freetier", "get_account_plan_state"): plan(),
    ("rds", "describe_orderable_db_instance_options"): {
        "OrderableDBInstanceOptions": [{"EngineVersion": "16.4"}, {"EngineVersion": "17.6"}]
    },
}


def findings(check, settings, answers=GOOD):
    return check(Account(Session(answers), settings, NUMBER))


# --- the whole


def test_one_line_a_check_on_an_account_that_is_ready(at_moto, tfvars, monkeypatch):
    monkeypatch.setattr(account_module, "_quota", lambda account, service, code: 5.0)  # moto knows VPC's alone
    found = {finding.check: finding for finding in diagnose(tfvars, Session(GOOD))}
    assert {name: finding.status for name, finding in found.items() if name not in ("terraform", "aws", "session")} == {
        **dict.fromkeys(("settings", "budget", "cost", "credentials", "region", "plan", "instance type"), "ok"),
        **dict.fromkeys(("database type", "vCPU quota", "VPC quota", "database quota", "bucket"), "ok"),
    }
    assert all("\n" not in str(finding) for finding in found.values())
    assert found["credentials"].text == f"account {NUMBER}, as user/moto"
    assert found["bucket"].text == f"aic-gpt-{NUMBER}-us-east-1 is free"
    assert "alarms at 10, 25, 50 USD to you@gpt.test" in found["budget"].text
    assert "27.05 USD a month" in found["cost"].text


def test_the_exit_status_tells_whether_something_stands_in_the_way(capsys, tmp_path):
    assert main(["--tfvars", str(tmp_path / "none.tfvars")]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("fail  settings") and "terraform.tfvars.example" in line for line in lines)
    assert lines[-1] == "Something stands in the way."


def test_make_runs_it(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "infra.free_tier_doctor", "--tfvars", str(tmp_path / "none")],
        cwd=REPOSITORY,
        env=os.environ | {"PATH": str(tmp_path), "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr == ""
    assert "fail  terraform       not installed" in done.stdout
    recipe = subprocess.run(
        ["make", "-n", "-C", REPOSITORY, "free-tier-doctor"], capture_output=True, text=True, check=True
    )
    assert "-m infra.free_tier_doctor" in recipe.stdout


# --- credentials


def test_without_credentials_one_line_says_how_to_get_some_and_nothing_more_is_asked(tfvars):
    *_, failure, skipped = diagnose(tfvars, Session({}))
    assert failure.status == "fail"
    assert failure.text == "none found; run `aws configure sso` or `aws configure`, or set AWS_PROFILE"
    assert skipped.text == "region, plan, machines, quotas and bucket not checked: that needs credentials"


def test_half_credentials_are_none(tfvars, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    *_, failure, _ = diagnose(tfvars)
    assert failure.text.startswith("none found")


def test_a_profile_that_is_not_there_is_named(tfvars, monkeypatch):
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    *_, failure = diagnose(tfvars)
    assert (failure.status, failure.check) == ("fail", "credentials")
    assert "(nobody)" in failure.text


@pytest.mark.parametrize("code", ["InvalidClientTokenId", "ExpiredToken", "SignatureDoesNotMatch"])
def test_refused_credentials_are_one_line(at_moto, settings, code):
    finding, number = findings(check_credentials, settings, {("sts", "get_caller_identity"): code})
    assert number == ""
    assert (
        str(finding)
        == f"fail  credentials     AWS refuses them ({code}); renew them: `aws sso login` or `aws configure`"
    )


def test_without_a_network_one_line_says_so(at_moto, settings, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # discard: nothing listens
    finding, number = findings(check_credentials, settings, {})
    assert number == ""
    assert finding.text.startswith('Could not connect to the endpoint URL: "http://127.0.0.1:9/"; check the network')


def test_the_root_user_is_warned_of(at_moto, settings):
    root = {"Arn": f"arn:aws:iam::{NUMBER}:root", "Account": NUMBER, "UserId": NUMBER}
    finding, number = findings(check_credentials, settings, {("sts", "get_caller_identity"): root})
    assert (finding.status, number) == ("warn", NUMBER)


# --- the account


@pytest.mark.parametrize(
    ("region", "said"),
    [
        ("us-nowhere-1", "there is no region us-nowhere-1"),
        ("ap-east-1", "the account has not opted into ap-east-1"),
    ],
)
def test_a_region_that_cannot_be_used_ends_the_questions(at_moto, settings, region, said):
    (finding,) = findings(check_account, settings | {"region": region})
    assert finding.status == "fail"
    assert finding.text.startswith(said)


def test_what_the_credentials_may_not_ask_is_a_warning_that_names_it(at_moto, settings):
    answers = GOOD | {("freetier", "get_account_plan_state"): "AccessDeniedException"}
    found = {finding.check: finding for finding in findings(check_account, settings, answers)}
    assert found["plan"] == Finding(
        "warn", "plan", "not checked: these credentials may not ask (GetAccountPlanState: AccessDeniedException)"
    )
    assert found["bucket"].status == "ok"


@pytest.mark.parametrize(
    ("answer", "changes", "status", "said"),
    [
        (plan(), {}, "ok", "free plan, 200.00 USD of credits: 7.4 months always on; on 1 March 2027"),
        (plan(credits=10.0), {}, "warn", "free plan, 10.00 USD of credits: 0.4 months"),
        (plan(), {"database_backup_days": 7}, "warn", "set database_backup_days = 1"),
        (plan("PAID"), {"database_backup_days": 7}, "ok", "paid plan, 200.00 USD"),
        (plan(status="EXPIRED"), {}, "warn", "free plan, which has ended"),
        (plan("PAID", 0.0), {}, "warn", "0.0 months always on; then it is paid for"),
        ("ResourceNotFoundException", {}, "warn", "made before 15 July 2025"),
    ],
)
def test_the_accounts_plan_says_what_is_free_and_how_long(at_moto, settings, answer, changes, status, said):
    finding = findings(account_module.check_plan, settings | changes, {("freetier", "get_account_plan_state"): answer})
    assert finding.status == status
    assert said in finding.text


def test_a_machine_outside_the_free_tier_is_warned_of_and_one_that_is_not_there_fails(at_moto, settings):
    assert findings(account_module.check_instance_type, settings).status == "ok"
    old = findings(account_module.check_instance_type, settings | {"instance_type": "t2.micro"})
    assert (old.status, old.text[:40]) == ("warn", "t2.micro is not part of this account's f")
    gone = findings(
        account_module.check_instance_type, settings, {("ec2", "describe_instance_types"): "InvalidInstanceType"}
    )
    assert gone.status == "fail"


def test_a_database_machine_without_our_postgresql_fails(at_moto, settings):
    none = {
        ("rds", "describe_orderable_db_instance_options"): {"OrderableDBInstanceOptions": [{"EngineVersion": "16.4"}]}
    }
    assert findings(account_module.check_database_type, settings).status == "ok"
    assert findings(account_module.check_database_type, settings, none).status == "fail"


def test_running_machines_count_against_the_quota(at_moto, settings):
    client = Session({}).client("ec2", region_name="us-east-1")
    made = client.run_instances(ImageId="ami-12345678", MinCount=2, MaxCount=2, InstanceType="t3.micro")["Instances"]
    try:
        one = {("service-quotas", "get_service_quota"): quota(1)}
        finding = findings(account_module.check_vcpu_quota, settings, one)
        assert finding.status == "fail"
        assert "vCPUs of standard instances used, 2 needed; delete some, or ask for more" in finding.text
        assert not finding.text.startswith("0 ")
        assert (
            findings(
                account_module.check_vcpu_quota, settings, {("service-quotas", "get_service_quota"): quota(16)}
            ).status
            == "ok"
        )
    finally:
        client.terminate_instances(InstanceIds=[instance["InstanceId"] for instance in made])


def test_a_full_quota_of_networks_or_databases_fails(at_moto, settings):
    assert findings(account_module.check_vpc_quota, settings).text == "1 of 5 VPCs used, 1 needed"
    full = {("service-quotas", "get_service_quota"): quota(1)}
    assert findings(account_module.check_vpc_quota, settings, full).status == "fail"
    empty = {("service-quotas", "get_service_quota"): quota(0)}
    assert findings(account_module.check_database_quota, settings, empty).text.startswith("0 of 0 databases used")


def test_where_the_account_has_no_quota_of_its_own_awss_default_counts(at_moto, settings):
    default = {
        ("service-quotas", "get_service_quota"): "NoSuchResourceException",
        ("service-quotas", "get_aws_default_service_quota"): quota(40),
    }
    assert findings(account_module.check_database_quota, settings, default).text.endswith(
        "of 40 databases used, 1 needed"
    )


def test_a_bucket_of_ones_own_is_a_warning_and_somebody_elses_fails(at_moto, settings):
    Session({}).client("s3", region_name="us-east-1").create_bucket(Bucket="mine-already")
    assert findings(account_module.check_bucket, settings | {"bucket_name": "mine-already"}).status == "warn"
    assert findings(account_module.check_bucket, settings | {"bucket_name": "not-there-yet"}).status == "ok"
    finding = findings(account_module.check_bucket, settings, {("s3", "head_bucket"): "403"})
    assert finding.status == "fail"
    assert "is taken" in finding.text


# --- what needs no account


def test_the_examples_own_values_fail(tmp_path):
    settings = read_settings(TERRAFORM / "terraform.tfvars.example")
    first, _ = check_settings(settings)
    assert first.status == "fail"
    assert "budget_emails, repository_url, repository_ref, torch_cpu_index_url" in first.text


def test_wrong_values_are_one_failure_each_and_end_the_questions(tfvars, tmp_path, capsys):
    file = tmp_path / "terraform.tfvars"
    file.write_text(f'{tfvars.read_text()}\ninstance_type = "t9.huge"\nroot_volume_gb = null\nidle_minutes = -5\n')
    assert main(["--tfvars", str(file)]) == 1
    *_, first, second, third, skipped, end = capsys.readouterr().out.splitlines()
    assert first.startswith('fail  settings        instance_type is "t9.huge"; instance_type must be t2.micro or t3.')
    assert (
        second == "fail  settings        root_volume_gb is null; root_volume_gb must be a whole number from 16 to 30."
    )
    assert third.startswith(
        "fail  settings        idle_minutes is -5; idle_minutes must be 0 (never) or a whole number"
    )
    assert (skipped[:5], end) == ("warn ", "Something stands in the way.")


def test_more_than_fifty_dollars_are_warned_of_and_another_region_is_said(settings):
    costly = check_cost(settings | {"cpu_credits": "unlimited", "region": "eu-central-1"}, "us-east-1")
    assert costly.status == "warn"
    assert "up to 65.70 more" in costly.text
    assert "prices of us-east-1; eu-central-1 has its own" in costly.text


def program(folder, name, says=""):
    (folder / name).write_text(f"#!/bin/sh\necho '{says}'\n")
    (folder / name).chmod(0o755)


@pytest.mark.parametrize(
    ("says", "status", "text"),
    [
        ('{"terraform_version": "1.13.4"}', "ok", "1.13.4"),
        ('{"terraform_version": "1.11.0-rc1"}', "ok", "1.11.0-rc1"),
        ('{"terraform_version": "1.5.7"}', "fail", "1.5.7 is too old; get 1.11 or newer"),
        ("OpenTofu", "fail", "does not tell its version"),
    ],
)
def test_terraform_must_be_new_enough(tmp_path, monkeypatch, says, status, text):
    program(tmp_path, "terraform", says)
    program(tmp_path, "aws")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    terraform, aws, plugin = check_programs()
    assert terraform.status == status
    assert terraform.text.startswith(text)
    assert aws == Finding("ok", "aws", "found")
    assert (plugin.status, plugin.check) == ("warn", "session")
    assert "session-manager-plugin is not installed" in plugin.text
