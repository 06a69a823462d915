"""``make free-tier-doctor``: what stands in the way of ``terraform apply``, found out before anything is made.

Asks only: creates nothing, changes nothing, costs nothing. One line a check; the exit status is 1 if one failed.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from infra.account import Account, check_account, check_cost, check_credentials
from infra.cost import read_prices
from infra.finding import Finding
from infra.settings import TFVARS, read_settings
from infra.values import check_values
from modelcore.errors import InputError, first_line

TERRAFORM_VERSION = (1, 11)  # terraform/versions.tf

EXAMPLES = ("example.org", "v0.0.0-example")  # what terraform.tfvars.example holds in the place of one's own

# Where the programs beside Terraform are from, and what does not work without them.
PROGRAMS = {
    "aws": ("AWS's command line", "the shell, the page and starting again"),
    "session-manager-plugin": ("AWS's Session Manager plugin", "the shell and the page"),
}


def main(arguments: list[str] | None = None) -> int:
    """Prints what was found; returns the exit status."""
    parser = argparse.ArgumentParser(prog="make free-tier-doctor", description="Check before `terraform apply`.")
    parser.add_argument("--tfvars", type=Path, default=TFVARS, metavar="FILE", help="default: %(default)s")
    options = parser.parse_args(arguments)
    failed = False
    try:
        for finding in diagnose(options.tfvars):
            sys.stdout.write(f"{finding}\n")
            sys.stdout.flush()
            failed = failed or finding.status == "fail"
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return 130
    sys.stdout.write("Something stands in the way.\n" if failed else "Nothing stands in the way of terraform apply.\n")
    return int(failed)


def diagnose(tfvars: Path, session: Any = None) -> Iterator[Finding]:
    """Every finding, as it is made.

    Args:
        tfvars: Terraform's variables.
        session: Of boto3; made from the environment if not given.
    """
    yield from check_programs()
    try:
        settings = read_settings(tfvars)
    except InputError as error:
        yield Finding("fail", "settings", str(error))
        yield Finding("warn", "account", "not checked: that needs the settings")
        return
    wrong = list(check_values(settings))
    yield from wrong
    if wrong:
        yield Finding("warn", "account", "not checked: that needs the settings")
        return
    yield from check_settings(settings)
    yield check_cost(settings, read_prices()["region"])
    try:
        account = Account(session or _session(), settings)
    except InputError as error:
        yield Finding("fail", "credentials", str(error))
        return
    finding, number = check_credentials(account)
    yield finding
    if not number:
        yield Finding(
            "warn", "account", "region, plan, machines, quotas and bucket not checked: that needs credentials"
        )
        return
    yield from check_account(Account(account.session, settings, number))


def check_programs() -> Iterator[Finding]:
    """Terraform and its version; and what its outputs' commands need."""
    yield _check_terraform()
    for program, (whose, purpose) in PROGRAMS.items():
        if shutil.which(program):
            yield Finding("ok", program.partition("-")[0], "found")
        else:
            text = f"{program} is not installed ({whose}); needed for {purpose}, not for terraform apply"
            yield Finding("warn", program.partition("-")[0], text)


def _check_terraform() -> Finding:
    wanted = ".".join(map(str, TERRAFORM_VERSION))
    try:
        said = subprocess.run(["terraform", "version", "-json"], capture_output=True, text=True, check=True, timeout=30)  # noqa: S607
        version = str(json.loads(said.stdout)["terraform_version"])
        numbers = tuple(int(part) for part in version.split("-")[0].split("."))
    except FileNotFoundError:
        return Finding("fail", "terraform", f"not installed; get version {wanted} or newer from HashiCorp")
    except (subprocess.SubprocessError, OSError, ValueError, KeyError) as error:
        return Finding("fail", "terraform", f"does not tell its version: {first_line(error)}")
    if numbers < TERRAFORM_VERSION:
        return Finding(
            "fail", "terraform", f"{version} is too old; get {wanted} or newer, which keeps secrets out of the state"
        )
    return Finding("ok", "terraform", version)


def check_settings(settings: Mapping[str, Any]) -> Iterator[Finding]:
    """What is still the example's, and whom an alarm finds; of values that :func:`check_values` has nothing against."""
    examples = [
        name
        for name, value in settings.items()
        if any(
            mark in text
            for text in (value if isinstance(value, list) else [value])
            if isinstance(text, str)
            for mark in EXAMPLES
        )
    ]
    if examples:
        yield Finding("fail", "settings", f"still the example's: {', '.join(examples)}; put in your own")
    else:
        yield Finding(
            "ok", "settings", f"{settings['name']} from {settings['repository_url']} at {settings['repository_ref']}"
        )
    amounts = ", ".join(f"{amount:g}" for amount in settings["budget_thresholds_usd"])
    yield Finding("ok", "budget", f"alarms at {amounts} USD to {', '.join(settings['budget_emails'])}")


def _session() -> Any:
    import boto3
    from botocore.exceptions import BotoCoreError

    try:
        return boto3.session.Session()
    except BotoCoreError as error:  # AWS_PROFILE names none
        raise InputError(f"{first_line(error)}; check AWS_PROFILE and ~/.aws/config") from error


if __name__ == "__main__":
    sys.exit(main())
