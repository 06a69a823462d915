"""Reads what Terraform will be given: the variables' defaults, and a terraform.tfvars over them."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modelcore.errors import InputError, first_line

TERRAFORM = Path(__file__).parent / "terraform"
TFVARS = TERRAFORM / "terraform.tfvars"


def read_settings(tfvars: Path = TFVARS) -> dict[str, Any]:
    """Every variable of the root module by name, with the value that Terraform would take.

    Raises:
        InputError: If the file is missing, cannot be read, sets what is no variable, or leaves out what must be set.
    """
    if not tfvars.is_file():
        raise InputError(f"{tfvars} does not exist; copy {TERRAFORM / 'terraform.tfvars.example'} there and fill it in")
    given = _read(tfvars)
    variables = read_variables()
    if unknown := sorted(given.keys() - variables.keys()):
        raise InputError(f"{tfvars}: no such variable: {', '.join(unknown)}; variables.tf has them all")
    if missing := sorted(
        name for name, variable in variables.items() if "default" not in variable and name not in given
    ):
        raise InputError(f"{tfvars}: not set: {', '.join(missing)}; terraform.tfvars.example shows how")
    return {
        name: _converted(given[name], variable["type"]) if name in given else variable.get("default")
        for name, variable in variables.items()
    }


def read_defaults() -> dict[str, Any]:
    """The variables that have a default, by name."""
    return {name: variable["default"] for name, variable in read_variables().items() if "default" in variable}


@functools.cache
def read_variables() -> Mapping[str, Mapping[str, Any]]:
    """The blocks of variables.tf by the variables' names; a type is as it is written there, such as `list(number)`."""
    return {
        name: block | {"type": block["type"].removeprefix("${").removesuffix("}")}
        for entry in _read(TERRAFORM / "variables.tf")["variable"]
        for name, block in entry.items()
        if not name.startswith("__")
    }


def _converted(value: Any, kind: str) -> Any:
    """The value as Terraform would convert it, which takes "20" for 20 and "true" for true; any other as it is."""
    if kind == "list(number)" and isinstance(value, list):
        return [_converted(each, "number") for each in value]
    if kind == "number" and isinstance(value, str) and re.fullmatch(r"-?[0-9]+([.][0-9]+)?", value):
        return float(value) if "." in value else int(value)
    if kind == "bool" and value in ("true", "false"):
        return value == "true"
    return value


def _read(file: Path) -> dict[str, Any]:
    import hcl2
    from lark.exceptions import LarkError

    try:
        content = hcl2.loads(file.read_text(encoding="utf-8"))
    except (LarkError, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file} is no Terraform that can be read: {first_line(error)}") from error
    return {name: _plain(value) for name, value in content.items() if not name.startswith("__")}


def _plain(value: Any) -> Any:
    """A value as Python has it: python-hcl2 leaves a string's quotes on, and those of a block's label."""
    if isinstance(value, dict):
        return {_plain(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    if isinstance(value, str) and len(value) >= 2 and value[0] == value[-1] == '"':
        return value[1:-1]
    return value
