"""An image's bill of materials, in CycloneDX's JSON: https://cyclonedx.org/specification/overview/."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

LONGEST_LICENSE = 100  # some packages give their licence's whole text in place of its name


def bill_of_materials(image: str, python: str, packages: Mapping[str, Sequence[str]], debian: Mapping[str, str]) -> str:
    """The bill of an image, as JSON.

    Args:
        image: Its name with its tag.
        python: Python's version.
        packages: Version and licence of each Python package.
        debian: Version of each Debian package.
    """
    licences = LicenseFactory()
    name, _, tag = image.rpartition(":")
    bill = Bom()
    root = bill.metadata.component = Component(type=ComponentType.CONTAINER, name=name, version=tag, bom_ref=image)
    parts = [_component("generic", "python", python)]
    for package, (version, licence) in packages.items():
        part = _component("pypi", package, version)
        if licence and len(licence) <= LONGEST_LICENSE:
            part.licenses.add(licences.make_from_string(licence))
        parts.append(part)
    parts += [_component("deb", package, version, namespace="debian") for package, version in debian.items()]
    for part in parts:
        bill.components.add(part)
    bill.register_dependency(root, parts)
    return JsonV1Dot6(bill).output_as_string(indent=2) + "\n"


def _component(kind: str, name: str, version: str, namespace: str | None = None) -> Component:
    address = PackageURL(kind, namespace, name, version)
    return Component(type=ComponentType.LIBRARY, name=name, version=version, purl=address, bom_ref=str(address))
