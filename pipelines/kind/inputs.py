"""What a run reads from this machine, brought to where the cluster's pods find it: the object store."""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from modelcore import storage
from modelcore.errors import InputError
from pipelines import inputs
from pipelines.compile import COMPILED

READ = ("corpus", "heldout", "instructions")
BUCKET = "s3://mlpipeline"  # KFP's own


def check(parameters: Sequence[str]) -> dict[str, str]:
    """Makes sure that each parameter is one of the pipeline's, of its type, and that what the run is to read is there.

    Args:
        parameters: ``key=value``, as given.

    Returns:
        What the run reads, by parameter, defaults included. The sample's evaluation text is for the sample: a corpus of
        one's own comes without.

    Raises:
        InputError: If not.
    """
    declared = _declared()
    given = dict(word.partition("=")[::2] for word in parameters)
    for word in parameters:
        if "=" not in word or word.partition("=")[0] not in declared:
            raise InputError(f"{word!r} is no parameter of the pipeline; give key=value, key one of {sorted(declared)}")
    for key, value in given.items():
        _check_type(key, value, declared[key].type)
    defaults = {key: declared[key].default for key in (*READ, "preset")}
    if given.get("corpus", defaults["corpus"]) != defaults["corpus"]:
        defaults["heldout"] = ""
    places = {key: given.get(key, defaults[key]) for key in READ}
    # What lies in object storage the pods read with the cluster's key; this machine may have none. Another recipe is
    # looked at by the stage that follows it.
    here = {key: declared[key].default if storage.is_remote(place) else place for key, place in places.items()}
    inputs.check(here | {"preset": defaults["preset"]})
    return places


def as_kfp_reads(parameters: Sequence[str]) -> list[str]:
    """``key=value`` for kfp's command line, which takes a text such as ``2024`` or ``true`` for no text."""
    from kfp.cli.utils.parsing import parse_parameter_value

    declared, words = _declared(), []
    for word in parameters:
        key, _, value = word.partition("=")
        is_text = key in declared and declared[key].type == "String"
        words.append(f"{key}={json.dumps(value)}" if is_text and parse_parameter_value(value) != value else word)
    return words


def upload(places: dict[str, str], name: str) -> list[str]:
    """Copies to the object store what lies on this machine.

    Args:
        places: What :func:`check` returned.
        name: The run's name.

    Returns:
        The parameters that say where it lies now, ``key=value``.

    Raises:
        InputError: If the store does not take it.
    """
    return [
        f"{key}={_upload(Path(place), f'{BUCKET}/inputs/{name}/{key}')}" if _is_here(place) else f"{key}={place}"
        for key, place in places.items()
    ]


def _declared() -> dict[str, Any]:
    """The pipeline's parameters by name, each with its type and default."""
    from kfp import components

    declared: dict[str, Any] = components.load_component_from_file(str(COMPILED)).component_spec.inputs
    return declared


def _check_type(key: str, value: str, kind: str) -> None:
    try:
        if kind == "Integer":
            int(value)
        right = kind != "Float" or math.isfinite(float(value))
    except ValueError:
        right = False
    if not right:
        raise InputError(f"{key} is {value!r}; give a {'whole number' if kind == 'Integer' else 'number'}")


def _is_here(place: str) -> bool:
    return bool(place) and not storage.is_remote(place)


def _upload(path: Path, uri: str) -> str:
    """Copies a file or a folder; returns the address to read it at."""
    if path.is_dir():
        storage.upload_directory(path, uri)
        return uri
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(path, folder)
        storage.upload_directory(Path(folder), uri)
    return f"{uri}/{path.name}"
