"""What an API server of Kubernetes 1.37 would refuse of a manifest, under strict validation of fields."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate

FOLDER = Path(__file__).parents[1] / "data" / "crds"
VERSION = "1.37"
# https://kubernetes.io/docs/concepts/overview/working-with-objects/names/
_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")
_TRAIN_JOB = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")
_LABEL = re.compile(r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?")


def faults(manifest: dict[str, Any]) -> Iterator[str]:
    """What is wrong with a new object, a line each."""
    yield from _metadata_faults(manifest["metadata"])
    schema = schema_of(manifest)
    if schema is None:
        try:
            kubernetes_validate.validate(manifest, VERSION, strict=True)
        except kubernetes_validate.ValidationError as error:
            yield f"{'.'.join(map(str, error.path))}: {error.message}"
        except kubernetes_validate.SchemaNotFoundError:
            pass  # a kind that only a test's own objects are of
        return
    for error in jsonschema.Draft202012Validator(_closed(schema)).iter_errors(manifest):
        yield f"{'.'.join(map(str, error.absolute_path)) or '<root>'}: {error.message[:300]}"
    if manifest["kind"] == "TrainJob" and not re.fullmatch(
        r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", manifest["metadata"]["name"]
    ):
        yield "metadata.name must match RFC 1035 DNS label format"


def change_faults(old: dict[str, Any], new: dict[str, Any]) -> Iterator[str]:
    """What is wrong with an object's change: a field is other than it was, and may not be (``self == oldSelf``)."""
    schema = schema_of(new)
    if schema is not None:
        yield from _changed(schema, old, new, "")


@functools.cache
def _schema(group: str, version: str, kind: str) -> dict[str, Any] | None:
    file = FOLDER / f"{group}_{kind}.json"
    return json.loads(file.read_text(encoding="utf-8"))["versions"][version] if file.exists() else None


def schema_of(manifest: dict[str, Any]) -> dict[str, Any] | None:
    """The schema of a custom resource; None for Kubernetes' own kinds, and those without a file."""
    group, _, version = manifest["apiVersion"].rpartition("/")
    return _schema(group, version, manifest["kind"])


def _metadata_faults(metadata: dict[str, Any]) -> Iterator[str]:
    if not _NAME.fullmatch(metadata["name"]) or len(metadata["name"]) > 253:
        yield f"metadata.name: {metadata['name']!r} is no name"
    for key, value in metadata.get("labels", {}).items():
        if len(value) > 63 or not _LABEL.fullmatch(value):
            yield f"metadata.labels: {value!r} of {key} is no label's value"
    for owner in metadata.get("ownerReferences", []):
        if not {"apiVersion", "kind", "name", "uid"} <= owner.keys():
            yield f"metadata.ownerReferences: {owner} lacks apiVersion, kind, name or uid"


def _closed(schema: Any) -> Any:
    """A structural schema in which unknown fields are errors, as strict validation has it."""
    if isinstance(schema, list):
        return [_closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    found: dict[str, Any] = {}
    for key, value in schema.items():
        if key in ("properties", "patternProperties"):
            found[key] = {name: _closed(each) for name, each in value.items()}
        elif not key.startswith("x-kubernetes-"):
            found[key] = _closed(value)
    free = schema.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in schema
    if schema.get("type") == "object" and "properties" in schema and not free:
        found["additionalProperties"] = False
    if schema.get("nullable"):
        found["type"] = [found["type"], "null"]
    if {"spec", "status"} <= found.get("properties", {}).keys():  # the object as a whole
        found["properties"] |= {"apiVersion": {}, "kind": {}, "metadata": {"type": "object"}}
    return found


def _changed(schema: dict[str, Any], old: Any, new: Any, path: str) -> Iterator[str]:
    rules = [each["rule"] for each in schema.get("x-kubernetes-validations", [])]
    if "self == oldSelf" in rules and old is not None and old != new:
        yield f"{path.removeprefix('.')}: field is immutable"
    if isinstance(old, dict) and isinstance(new, dict):
        for name, each in schema.get("properties", {}).items():
            if name in old:
                yield from _changed(each, old[name], new.get(name), f"{path}.{name}")
