"""Writes each component's README.md from its code: ``python -m components.readme``."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import Any

from docstring_parser import parse

from components.images import LAUNCHER_IMAGE
from modelcore.atomic import write_text

FOLDER = Path(__file__).parent


def component_names() -> list[str]:
    """The components, by the names of their folders."""
    return sorted(path.parent.name for path in FOLDER.glob("*/component.py"))


def load_component(name: str) -> Any:
    """The KFP component in the folder ``name``."""
    return getattr(importlib.import_module(f"components.{name}.component"), name)


def render(name: str) -> str:
    """The README of a component, in Markdown."""
    component = load_component(name)
    spec = component.component_spec
    docs = _docs(component)
    described = {parameter.arg_name: parameter.description or "" for parameter in docs.params}
    described["Output"] = "What it returns."
    lines = [f"# {name}", "", docs.short_description or ""]
    if docs.long_description:
        lines += ["", docs.long_description]
    lines += [
        "",
        f"Image: `{spec.implementation.container.image}`",
        "",
        "## Inputs",
        "",
        "| name | type | |",
        "|---|---|---|",
    ]
    for key, given in (spec.inputs or {}).items():
        lines.append(f"| `{key}` | {_type(given.type)} | {described[key]} |")
    lines += ["", "## Outputs", "", "| name | type | |", "|---|---|---|"]
    for key, made in (spec.outputs or {}).items():
        lines.append(f"| `{key}` | {_type(made.type)} | {described[key]} |")
    lines += [
        "",
        f"The work is done by `modelcore.stages.{name}`; {_also(name, spec.implementation.container.image)}.",
        "",
        "Made from the component's code by `make compile`.",
        "",
    ]
    return "\n".join(lines)


def _also(name: str, image: str) -> str:
    if name.endswith("_trial"):
        return "it is part of a sweep, see docs/pipeline.md"
    if image == LAUNCHER_IMAGE:
        return "it needs a cluster, see docs/enterprise.md"
    return "the command line has the same stage (`modelcore --help`)"


def _docs(component: Any) -> Any:
    return parse(inspect.getdoc(component.python_func) or "")


def _type(name: str) -> str:
    return name.split("@")[0].removeprefix("system.")


if __name__ == "__main__":
    for component_name in component_names():
        write_text(FOLDER / component_name / "README.md", render(component_name))
