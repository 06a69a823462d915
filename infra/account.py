"""Checks of an AWS account before anything is made in it. They only ask; nothing is created or changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError

from infra.cost import BOUND_USD, VCPUS, bill, total
from infra.finding import Finding
from modelcore.errors import first_line

GLOBAL_REGION = "us-east-1"  # where AWS answers what concerns the account and the list of regions
POSTGRES_MAJOR = "17"  # modules/database
STANDARD_FAMILIES = "acdhimrtz"  # whose vCPUs the quota counts together

_REFUSED = {"AccessDenied", "AccessDeniedException", "UnauthorizedOperation", "403", "OptInRequired"}


@dataclass(frozen=True)
class Account:
    """An AWS account, as the credentials at hand reach it.

    Args:
        session: Finds the credentials.
        settings: Terraform's variables.
        number: The account's number, once it is known.
    """

    session: Any
    settings: Mapping[str, Any]
    number: str = ""

    @property
    def region(self) -> str:
        """The region that Terraform would use."""
        return str(self.settings["region"])

    def client(self, service: str, region: str | None = None) -> Any:
        """A client that soon gives up."""
        options = Config(connect_timeout=5, read_timeout=15, retries={"mode": "standard", "total_max_attempts": 2})
        return self.session.client(service, region_name=region or self.region, config=options)


Check = Callable[[Account], Finding]


def check_credentials(account: Account) -> tuple[Finding, str]:
    """Whether AWS knows the credentials; and the account's number, empty if it does not."""
    name = "credentials"
    try:
        identity = account.client("sts", GLOBAL_REGION).get_caller_identity()
    except (NoCredentialsError, PartialCredentialsError):
        text = "none found; run `aws configure sso` or `aws configure`, or set AWS_PROFILE"
        return Finding("fail", name, text), ""
    except ClientError as error:
        code = error.response["Error"]["Code"]
        return Finding("fail", name, f"AWS refuses them ({code}); renew them: `aws sso login` or `aws configure`"), ""
    except BotoCoreError as error:  # no network, a profile that needs a login
        text = f"{first_line(error)}; check the network, and log in again: `aws sso login`"
        return Finding("fail", name, text), ""
    arn, number = str(identity["Arn"]), str(identity["Account"])
    if arn.endswith(":root"):
        text = f"account {number}, as its root user; make a user or a role for this and keep root's keys nowhere"
        return Finding("warn", name, text), number
    return Finding("ok", name, f"account {number}, as {arn.rpartition(':')[2]}"), number


def check_account(account: Account) -> Iterator[Finding]:
    """What was found, one check after the other; without the region nothing behind it is asked."""
    region = _asked("region", check_region, account)
    yield region
    if region.status == "fail":
        return
    for name, check in (
        ("plan", check_plan),
        ("instance type", check_instance_type),
        ("database type", check_database_type),
        ("vCPU quota", check_vcpu_quota),
        ("VPC quota", check_vpc_quota),
        ("database quota", check_database_quota),
        ("bucket", check_bucket),
    ):
        yield _asked(name, check, account)


def _asked(name: str, check: Check, account: Account) -> Finding:
    """The check's finding; where AWS does not answer the question, that."""
    try:
        return check(account)
    except ClientError as error:
        code, operation = str(error.response["Error"]["Code"]), error.operation_name
        if code in _REFUSED:
            return Finding("warn", name, f"not checked: these credentials may not ask ({operation}: {code})")
        return Finding("warn", name, f"not checked: {first_line(error)}")
    except BotoCoreError as error:
        return Finding("warn", name, f"not checked: {first_line(error)}")


def check_region(account: Account) -> Finding:
    """Whether the region exists and the account has opted into it."""
    regions = account.client("ec2", GLOBAL_REGION).describe_regions(AllRegions=True)["Regions"]
    status = {entry["RegionName"]: entry["OptInStatus"] for entry in regions}.get(account.region)
    if status is None:
        return Finding("fail", "region", f"there is no region {account.region}; set another in terraform.tfvars")
    if status == "not-opted-in":
        text = f"the account has not opted into {account.region}; do so in the console under Account, or set another"
        return Finding("fail", "region", text)
    return Finding("ok", "region", account.region)


def check_plan(account: Account) -> Finding:
    """Which of AWS's free offers the account has, and how long its credits last."""
    try:
        state = account.client("freetier", GLOBAL_REGION).get_account_plan_state()
    except ClientError as error:
        if error.response["Error"]["Code"] == "ResourceNotFoundException":
            return Finding("warn", "plan", "made before 15 July 2025: no credits, and its twelve free months are over")
        raise
    left, monthly = float(state.get("accountPlanRemainingCredits", {}).get("amount", 0)), total(bill(account.settings))
    text = f"{state['accountPlanType'].lower()} plan, {left:.2f} USD of credits: {left / monthly:.1f} months always on"
    if state["accountPlanStatus"] == "EXPIRED":
        return Finding("warn", "plan", f"{state['accountPlanType'].lower()} plan, which has ended; upgrade the account")
    enough = left >= monthly
    if state["accountPlanType"] == "PAID":
        return Finding("ok" if enough else "warn", "plan", text if enough else f"{text}; then it is paid for")
    if ends := state.get("accountPlanExpirationDate"):
        text += f"; on {ends:%-d %B %Y}, or when they are used up, AWS closes the account unless it is upgraded"
    if account.settings["database_backup_days"] > 1:
        return Finding("warn", "plan", f"{text}; it refuses long backups: set database_backup_days = 1")
    return Finding("ok" if enough else "warn", "plan", text)


def check_instance_type(account: Account) -> Finding:
    """Whether there is such a machine in the region, and whether it is part of the free tier."""
    kind, client = account.settings["instance_type"], account.client("ec2")
    try:
        found = client.describe_instance_types(InstanceTypes=[kind])["InstanceTypes"]
    except ClientError as error:
        if error.response["Error"]["Code"] != "InvalidInstanceType":
            raise
        found = []
    if not found:
        return Finding(
            "fail", "instance type", f"there is no {kind} in {account.region}; set the other micro, or region"
        )
    if not found[0].get("FreeTierEligible"):
        return Finding(
            "warn", "instance type", f"{kind} is not part of this account's free tier; the other micro may be"
        )
    return Finding("ok", "instance type", f"{kind}, part of the free tier")


def check_database_type(account: Account) -> Finding:
    """Whether the region has such a machine for PostgreSQL."""
    kind = account.settings["database_instance_class"]
    pages = account.client("rds").get_paginator("describe_orderable_db_instance_options")
    for page in pages.paginate(Engine="postgres", DBInstanceClass=kind, Vpc=True):
        if any(entry["EngineVersion"].split(".")[0] == POSTGRES_MAJOR for entry in page["OrderableDBInstanceOptions"]):
            return Finding("ok", "database type", f"{kind} with PostgreSQL {POSTGRES_MAJOR}")
    text = f"there is no {kind} with PostgreSQL {POSTGRES_MAJOR} in {account.region}; set the other micro, or region"
    return Finding("fail", "database type", text)


def check_vcpu_quota(account: Account) -> Finding:
    """Whether one more machine may run."""
    allowed = _quota(account, "ec2", "L-1216C47A")
    running = 0
    pages = account.client("ec2").get_paginator("describe_instances")
    for page in pages.paginate(Filters=[{"Name": "instance-state-name", "Values": ["pending", "running"]}]):
        for instance in (entry for group in page["Reservations"] for entry in group["Instances"]):
            if instance["InstanceType"][0] in STANDARD_FAMILIES:
                cpu = instance.get("CpuOptions", {})
                running += cpu.get("CoreCount", 1) * cpu.get("ThreadsPerCore", 1)
    return _room(
        "vCPU quota", "vCPUs of standard instances", allowed, running, VCPUS[account.settings["instance_type"]]
    )


def check_vpc_quota(account: Account) -> Finding:
    """Whether one more network may be made."""
    used = sum(len(page["Vpcs"]) for page in account.client("ec2").get_paginator("describe_vpcs").paginate())
    return _room("VPC quota", "VPCs", _quota(account, "vpc", "L-F678F1CE"), used, 1)


def check_database_quota(account: Account) -> Finding:
    """Whether one more database may be made."""
    pages = account.client("rds").get_paginator("describe_db_instances").paginate()
    used = sum(len(page["DBInstances"]) for page in pages)
    return _room("database quota", "databases", _quota(account, "rds", "L-7B6409FD"), used, 1)


def check_bucket(account: Account) -> Finding:
    """Whether the bucket's name is free, in all of AWS."""
    settings = account.settings
    name = settings["bucket_name"] or f"{settings['name']}-{account.number}-{account.region}"
    try:
        account.client("s3").head_bucket(Bucket=name)
    except ClientError as error:
        code = str(error.response["Error"]["Code"])
        if code in ("404", "NoSuchBucket"):
            return Finding("ok", "bucket", f"{name} is free")
        if code in ("403", "301"):
            return Finding("fail", "bucket", f"{name} is taken, by somebody else or elsewhere; set another bucket_name")
        raise
    text = f"{name} is there already, and yours; unless this Terraform made it, set another bucket_name"
    return Finding("warn", "bucket", text)


def check_cost(settings: Mapping[str, Any], region_of_prices: str) -> Finding:
    """What a month costs with everything always on, against the bound."""
    from infra.cost import worst_credits

    sure, extra = total(bill(settings)), worst_credits(settings)
    text = f"{sure:.2f} USD a month with everything always on, outside any free tier"
    if extra:
        text += f", and up to {extra:.2f} more for CPU beyond the credits"
    if settings["region"] != region_of_prices:
        text += f" (prices of {region_of_prices}; {settings['region']} has its own)"
    if sure + extra > BOUND_USD:
        return Finding("warn", "cost", f'{text}: more than {BOUND_USD}; set cpu_credits = "standard"')
    return Finding("ok", "cost", text)


def _quota(account: Account, service: str, code: str) -> float:
    client = account.client("service-quotas")
    try:
        answer = client.get_service_quota(ServiceCode=service, QuotaCode=code)
    except ClientError as error:  # the account has none of its own: AWS's default holds
        if error.response["Error"]["Code"] != "NoSuchResourceException":
            raise
        answer = client.get_aws_default_service_quota(ServiceCode=service, QuotaCode=code)
    return float(answer["Quota"]["Value"])


def _room(check: str, what: str, allowed: float, used: int, needed: int) -> Finding:
    text = f"{used} of {allowed:g} {what} used, {needed} needed"
    if used + needed <= allowed:
        return Finding("ok", check, text)
    return Finding("fail", check, f"{text}; delete some, or ask for more under Service Quotas")
