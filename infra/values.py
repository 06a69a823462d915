"""What Terraform would refuse of the variables' values. It would say so too, but only after asking for credentials."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from infra.finding import Finding
from infra.settings import read_variables
from modelcore.errors import without_password


def _matches(pattern: str) -> Callable[[Any], bool]:
    return lambda value: re.fullmatch(pattern, value) is not None


def _whole(least: int, most: float = math.inf) -> Callable[[Any], bool]:
    return lambda value: least <= value <= most and value % 1 == 0


def _one_of(*values: str) -> Callable[[Any], bool]:
    return lambda value: value in values


# The conditions of variables.tf, variable by variable in its order; what each asks for is said there.
CONDITIONS: Mapping[str, tuple[Callable[[Any], bool], ...]] = {
    "name": (_matches("[a-z][a-z0-9-]{1,18}[a-z0-9]"),),
    "region": (_matches("[a-z]{2}(-[a-z]+)+-[0-9]"),),
    "budget_emails": (
        lambda emails: 1 <= len(emails) <= 10,
        lambda emails: all(re.fullmatch(r"[^@\s]+@[^@\s]+[.][^@\s]+", email) for email in emails),
    ),
    "budget_thresholds_usd": (
        lambda amounts: 1 <= len(amounts) <= 4 and all(amount > 0 for amount in amounts),
        lambda amounts: sorted(amounts) == amounts,
    ),
    "repository_url": (
        _matches("https://[A-Za-z0-9._~:/@%+-]+"),
        lambda url: re.search("//[^/]*@", url) is None,
    ),
    "repository_ref": (_matches("[0-9a-f]{40}|v[0-9]+[.][0-9]+[.][0-9]+[A-Za-z0-9.-]*"),),
    "torch_cpu_index_url": (_matches("https://[A-Za-z0-9._~:/%+-]+"),),
    "instance_type": (_one_of("t2.micro", "t3.micro"),),
    "cpu_credits": (_one_of("standard", "unlimited"),),
    "root_volume_gb": (_whole(16, 30),),
    "swap_gb": (_whole(1, 4),),
    "idle_minutes": (lambda minutes: minutes == 0 or _whole(15, 1440)(minutes),),
    "bucket_name": (_matches("[a-z0-9][a-z0-9-]{1,61}[a-z0-9]"),),
    "checkpoint_days": (_whole(1),),
    "noncurrent_days": (_whole(1),),
    "database_instance_class": (_one_of("db.t3.micro", "db.t4g.micro"),),
    "database_backup_days": (_whole(0, 35),),
    "database_password_version": (_whole(1),),
}


def check_values(settings: Mapping[str, Any]) -> Iterator[Finding]:
    """One failure for each variable whose value is of another type than variables.tf says, or meets no condition there.

    Args:
        settings: Every variable by name, as :func:`infra.settings.read_settings` gives them.
    """
    for name, variable in read_variables().items():
        value = settings[name]
        if value is None and variable.get("default", "") is None:
            continue
        kind = variable["type"]
        asked = [validation["error_message"] for validation in variable.get("validation", ())]
        if not _is_of(value, kind):
            wanted = asked[0] if asked else f"{name} must be a {kind}."
        elif (failed := _first_failed(name, value)) is not None:
            wanted = asked[failed]
        else:
            continue
        yield Finding("fail", "settings", f"{name} is {_shown(name, value)}; {wanted}")


def _first_failed(name: str, value: Any) -> int | None:
    return next((number for number, holds in enumerate(CONDITIONS.get(name, ())) if not holds(value)), None)


def _is_of(value: Any, kind: str) -> bool:
    if inner := re.fullmatch(r"list\((\w+)\)", kind):
        return isinstance(value, list) and all(_is_of(each, inner[1]) for each in value)
    match kind:
        case "number":
            return isinstance(value, int | float) and not isinstance(value, bool)
        case "bool":
            return isinstance(value, bool)
        case _:
            return isinstance(value, str)


def _shown(name: str, value: Any) -> str:
    """The value as terraform.tfvars has it; an address without the user and the password that it may hold."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return without_password(text) if name.endswith("_url") else text
