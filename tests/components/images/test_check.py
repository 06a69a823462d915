"""What is wrong with an image is found, and what is in it is written down."""

import json

import pytest

from components.images import IMAGES
from components.images.build import CODE_LABEL, code_digest
from components.images.check import LABELS, faults, size_mb
from components.images.materials import bill_of_materials
from modelcore import __version__

IMAGE = IMAGES[0]


def sound():
    """An image without fault, as the engine and contents.py tell of it."""
    labels = {f"org.opencontainers.image.{name}": "said" for name in LABELS}
    labels |= {"org.opencontainers.image.version": __version__, CODE_LABEL: code_digest()}
    config = {"User": "10001:10001", "Healthcheck": {"Test": []}, "Env": ["HOME=/tmp"], "Labels": labels}
    contents = {
        "uid": 10001,
        "gid": 10001,
        "writable": ["/tmp"],
        "pip": False,
        "caches": [],
        "secrets": [],
        "wheels_of_base": 0,
    }
    return {"Size": 500_000_000, "Config": config}, ["RUN pip install --no-cache-dir torch", "ENV HOME=/tmp"], contents


def test_a_sound_image_has_no_fault():
    assert faults(IMAGE, *sound()) == []


FAULTS = {
    "root": (lambda about, history, contents: about["Config"].update(User=""), "its user is ''"),
    "another user at run time": (lambda about, history, contents: contents.update(uid=0), "it runs as 0:10001"),
    "no health check": (lambda about, history, contents: about["Config"].pop("Healthcheck"), "no health check"),
    "no revision": (
        lambda about, history, contents: about["Config"]["Labels"].pop("org.opencontainers.image.revision"),
        "labels are missing: revision",
    ),
    "other code": (
        lambda about, history, contents: about["Config"]["Labels"].update({CODE_LABEL: "0" * 64}),
        "it was made from other code than this; make images",
    ),
    "too large": (lambda about, history, contents: about.update(Size=701_000_000), "it takes 701 MB, more than 700"),
    "pip": (lambda about, history, contents: contents.update(pip=True), "pip is left in it"),
    "a cache": (lambda about, history, contents: contents.update(caches=["/root/.cache"]), "left in it: /root/.cache"),
    "a file of passwords": (lambda about, history, contents: contents.update(secrets=["/root/.netrc"]), "holds /root/"),
    "writable root": (lambda about, history, contents: contents.update(writable=["/", "/tmp"]), "can write to /, /tmp"),
    "a secret in its environment": (
        lambda about, history, contents: about["Config"]["Env"].append("AWS_SECRET_ACCESS_KEY=abc"),
        "a secret stands in its history, environment or labels",
    ),
    "a secret in its history": (
        lambda about, history, contents: history.append("|1 PIP_INDEX_URL=https://me:abc@pip.example.org RUN pip"),
        "a secret stands in its history",
    ),
}


@pytest.mark.parametrize(("spoil", "message"), FAULTS.values(), ids=FAULTS.keys())
def test_a_fault_is_one_line(spoil, message):
    about, history, contents = sound()
    spoil(about, history, contents)
    (fault,) = faults(IMAGE, about, history, contents)
    assert message in fault


def test_a_secret_is_not_repeated_whole():
    about, history, contents = sound()
    history.append("RUN curl https://me:" + "abc" * 30 + "@pip.example.org")
    (fault,) = faults(IMAGE, about, history, contents)
    assert "abc" * 30 not in fault


def test_wheels_that_the_base_image_keeps_for_pip_do_not_count():
    about, _, contents = sound()
    contents["wheels_of_base"] = 200_000_000
    assert size_mb(about, contents) == 300


def test_the_bill_of_materials_names_each_package_with_its_version_and_licence():
    bill = json.loads(
        bill_of_materials(
            "gpt-data:0.1.0",
            "3.11.2",
            {"numpy": ["2.4.6", "BSD-3-Clause"], "odd": ["1.0", "a text " * 100]},
            {"libc6": "2.36-9"},
        )
    )
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    assert bill["metadata"]["component"]["name"] == "gpt-data"
    parts = {part["purl"]: part for part in bill["components"]}
    assert parts.keys() == {
        "pkg:generic/python@3.11.2",
        "pkg:pypi/numpy@2.4.6",
        "pkg:pypi/odd@1.0",
        "pkg:deb/debian/libc6@2.36-9",
    }
    assert parts["pkg:pypi/numpy@2.4.6"]["licenses"] == [{"license": {"id": "BSD-3-Clause"}}]
    assert "licenses" not in parts["pkg:pypi/odd@1.0"]
