"""What a run on a cluster is given, looked at before it is submitted: better now than at three in the night.

Of what a run reads it is made sure that pods can find it there at all. Whether it lies at an s3:// address only they
can tell: they have the keys, and this machine may have none.
"""

from __future__ import annotations

import functools
import math
import posixpath
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from modelcore import storage
from modelcore.errors import InputError
from pipelines import inputs

FOLDER = Path(__file__).parent / "compiled"
# What a run reads or keeps, with an example of it; the latter two may be empty.
_PLACES = {"corpus": "texts", "instructions": "pairs.jsonl", "heldout": "test", "checkpoint_uri": "checkpoints"}
_MAY_BE_EMPTY = ("heldout", "checkpoint_uri")


def read(pipeline: str, words: Iterable[str]) -> dict[str, Any]:
    """The parameters of a compiled pipeline, as typed, with its types.

    A corpus comes without the sample's evaluation text: where ``heldout`` is not given, a share of it is split off.

    Args:
        pipeline: Name of a file in FOLDER.
        words: ``key=value`` each; trials of a sweep have semicolons between them.

    Raises:
        InputError: If one is no parameter or not of its type, one is missing, there is no such recipe, choice or trial,
            or pods would not find what the run is to read.
    """
    known, mounts = _declared(pipeline)
    given: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise InputError(f"{word!r} is no parameter; write key=value")
        if key not in known:
            raise InputError(f"there is no parameter {key}; known: {', '.join(sorted(known))}")
        given[key] = _typed(key, value, known[key]["parameterType"])
    if "corpus" in given and known["heldout"]["defaultValue"]:
        given = {"heldout": ""} | given
    values = {key: parameter.get("defaultValue", "") for key, parameter in known.items()} | given
    for key in _PLACES:
        _check_place(key, values[key], mounts)
    preset = values["preset"]
    if not preset.endswith((".yaml", ".yml")):
        inputs.check_recipe_name(preset)
    elif not _is_mounted(preset, mounts):
        hint = f"give a recipe of the library's{_or_workspace(mounts, 'own.yaml')}"
        raise InputError(f"preset is {preset!r}, which pods do not have; {hint}")
    inputs.check_choices(values)
    inputs.check_trials(values)
    return given


def _typed(key: str, value: str, kind: str) -> Any:
    """The value of a parameter, from its text."""
    if kind == "STRING":
        return value
    if kind == "LIST":
        return inputs.split_trials(value)
    try:
        number = int(value) if kind == "NUMBER_INTEGER" else float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise InputError(f"{key} is {value!r}; give a {'whole number' if kind == 'NUMBER_INTEGER' else 'number'}")
    return number


@functools.cache
def _declared(pipeline: str) -> tuple[Mapping[str, Any], list[str]]:
    """The parameters of a compiled pipeline, and where its pods have volumes that outlive them."""
    import yaml

    spec, platform = yaml.safe_load_all((FOLDER / f"{pipeline}.yaml").read_text(encoding="utf-8"))
    pods = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"].values()
    mounts = {claim["mountPath"] for pod in pods for claim in pod.get("pvcMount", ())}
    return spec["root"]["inputDefinitions"]["parameters"], sorted(mounts)


def _is_mounted(path: str, mounts: list[str]) -> bool:
    path = posixpath.normpath(path)
    return any(path == mount or path.startswith(f"{mount}/") for mount in mounts)


def _or_workspace(mounts: list[str], example: str) -> str:
    return "".join(f", or a path in the workspace such as {mount}/{example}" for mount in mounts)


def _check_place(key: str, value: str, mounts: list[str]) -> None:
    """Makes sure that pods find something at this place, or can."""
    if not value and key in _MAY_BE_EMPTY:
        return
    hint = f"give s3://bucket/{_PLACES[key]}{_or_workspace(mounts, _PLACES[key])}"
    hint += ", or leave it empty" if key in _MAY_BE_EMPTY else ""
    if not value:
        raise InputError(f"{key} is missing; {hint}")
    try:
        there = re.match("s3://[^/]", value) if storage.is_remote(value) else _is_mounted(value, mounts)
    except InputError as error:
        raise InputError(f"{key}: {error}") from None
    if not there:
        raise InputError(f"{key} is {value!r}, where pods find nothing; {hint}")
