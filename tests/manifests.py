"""Manifests held against the schemas of the objects that they describe, strictly, and our own eyes.

The schemas are those of tests/data/crd/, in which a field that is not named becomes an error, as a
server reports it with strict validation. What schemas leave to webhooks and to the kubelet is
checked by `faults_of_pod`: names, quantities, limits, volumes.
"""

import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml

CRDS = Path(__file__).parent / "data" / "crd"
CORE_VERSION = "1.36"
LABEL = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")
LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
LABEL_KEY = re.compile(r"([a-z0-9][-a-z0-9.]*/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
QUANTITY = re.compile(r"[0-9]+(\.[0-9]+)?(m|[kMGTPE]|[KMGTPE]i)?")
ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def documents(text: str) -> list[dict[str, Any]]:
    """The YAML documents of a manifest."""
    return [*yaml.safe_load_all(text)]


@cache
def crd_schemas() -> dict[tuple[str, str], Any]:
    """(apiVersion, kind) -> strict JSON Schema, of every CRD that is there."""
    found: dict[tuple[str, str], Any] = {}
    for file in CRDS.glob("*.json"):
        spec = json.loads(file.read_text())["spec"]
        for version in spec["versions"]:
            key = (f"{spec['group']}/{version['name']}", spec["names"]["kind"])
            found[key] = _strict(version["schema"]["openAPIV3Schema"])
    assert found, "no CRDs"
    return found


def _strict(schema: Any) -> Any:
    """A CRD's schema as JSON Schema: closed where it names its properties."""
    if isinstance(schema, list):
        return [_strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    made = {
        key: {name: _strict(below) for name, below in value.items()}
        if key == "properties"
        else _strict(value)
        for key, value in schema.items()
        if not key.startswith("x-kubernetes") and key != "format"
    }
    if "properties" in made and not schema.get("x-kubernetes-preserve-unknown-fields"):
        made.setdefault("additionalProperties", False)
    if schema.get("x-kubernetes-int-or-string"):
        made["anyOf"] = [{"type": "integer"}, {"type": "string"}]
        made.pop("type", None)
    return made


def schema_faults(document: dict[str, Any]) -> list[str]:
    """What the schema of a document's kind says against it."""
    key = (document["apiVersion"], document["kind"])
    if "/" not in document["apiVersion"]:
        return _core_faults(document)
    validator = jsonschema.Draft202012Validator(crd_schemas()[key])
    found = [f"{error.json_path}: {error.message}" for error in validator.iter_errors(document)]
    return found + [fault for pod in pods(document) for fault in _core_faults(pod)]


def _core_faults(document: dict[str, Any]) -> list[str]:
    try:
        kubernetes_validate.validate(document, CORE_VERSION, strict=True)
    except kubernetes_validate.ValidationError as error:
        return [f"{'.'.join(map(str, error.path))}: {error.message}"]
    return []


def pods(document: dict[str, Any]) -> list[dict[str, Any]]:
    """The pods that an object makes, as pods."""
    return [{"apiVersion": "v1", "kind": "Pod", **one} for one in _templates(document)]


def _templates(value: Any) -> Iterator[dict[str, Any]]:
    """The pod templates anywhere in an object."""
    if isinstance(value, dict):
        if "containers" in value.get("spec", {}):
            yield value
        else:
            for below in value.values():
                yield from _templates(below)
    elif isinstance(value, list):
        for below in value:
            yield from _templates(below)


def object_faults(document: dict[str, Any]) -> list[str]:
    """What a server, a webhook or a kubelet would refuse and no schema says."""
    metadata, found = document["metadata"], list[str]()
    if not LABEL.fullmatch(metadata["name"]) or len(metadata["name"]) > 40:
        found.append(f"name {metadata['name']!r}")
    found += _mark_faults(metadata)
    for pod in pods(document):
        found += _mark_faults(pod["metadata"])
        found += faults_of_pod(pod["spec"])
    return found


def _mark_faults(metadata: dict[str, Any]) -> Iterator[str]:
    for key, value in metadata.get("labels", {}).items():
        if not LABEL_KEY.fullmatch(key) or not LABEL_VALUE.fullmatch(value):
            yield f"label {key!r}: {value!r}"
    for key, value in metadata.get("annotations", {}).items():
        if not LABEL_KEY.fullmatch(key) or not isinstance(value, str):
            yield f"annotation {key!r}: {value!r}"


def faults_of_pod(spec: dict[str, Any]) -> Iterator[str]:
    """Names that are there once, volumes that are there, as much asked for as allowed."""
    volumes = [volume["name"] for volume in spec["volumes"]]
    yield from (f"volume {name!r}" for name in volumes if not LABEL.fullmatch(name))
    yield from _twice("volume", volumes)
    for container in (*spec["containers"], *spec.get("initContainers", ())):
        if not LABEL.fullmatch(container["name"]):
            yield f"container {container['name']!r}"
        mounts = container.get("volumeMounts", [])
        yield from _twice("mountPath", [mount["mountPath"] for mount in mounts])
        for mount in mounts:
            if mount["name"] not in volumes:
                yield f"no volume {mount['name']!r}"
            if not mount["mountPath"].startswith("/") or ":" in mount["mountPath"]:
                yield f"mountPath {mount['mountPath']!r}"
        names = [entry["name"] for entry in container.get("env", [])]
        yield from _twice("env", names)
        yield from (f"env {name!r}" for name in names if not ENV_NAME.fullmatch(name))
        asked = container.get("resources", {})
        if asked.get("requests") != asked.get("limits"):
            yield f"requests {asked.get('requests')} != limits {asked.get('limits')}"
        for name, quantity in asked.get("limits", {}).items():
            if not QUANTITY.fullmatch(quantity):
                yield f"{name}: {quantity!r}"
            if "/" in name and not quantity.isdigit():
                yield f"{name}: {quantity!r} of a device"
        security = container["securityContext"]
        if security.get("privileged") or security.get("allowPrivilegeEscalation") is not False:
            yield f"{container['name']}: privileges"
        if security["capabilities"]["drop"] != ["ALL"]:
            yield f"{container['name']}: capabilities"


def _twice(what: str, names: list[str]) -> Iterator[str]:
    yield from (f"{what} {name!r} twice" for name in {*names} if names.count(name) > 1)
