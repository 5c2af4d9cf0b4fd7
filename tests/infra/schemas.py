"""Manifests against what their API servers would say: Kubernetes' schemas, KubeRay's fields."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import referencing
import yaml

SCHEMAS = Path(kubernetes_validate.__file__).parent / "kubernetes-json-schema"
KUBERNETES = "v1.34.0-local-strict"
FIELDS = yaml.safe_load(Path(__file__).with_name("kuberay_fields.yaml").read_text())
MAX_NAME = {"RayJob": 47, "RayCluster": 50, "RayCronJob": 52, "CronJob": 52}
DNS_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")


def validate(document: dict[str, Any]) -> None:
    """Raises where the API server would refuse, or silently drop, a field."""
    kind, name = document["kind"], document["metadata"]["name"]
    assert DNS_NAME.fullmatch(name), name
    assert len(name) <= MAX_NAME.get(kind, 63), name
    if not document["apiVersion"].startswith("ray.io/"):
        kubernetes(document["apiVersion"], kind).validate(document)
        return
    assert document["apiVersion"] == "ray.io/v1"
    schema = {"$defs": FIELDS["$defs"], "$ref": f"#/$defs/{FIELDS['kinds'][kind]}"}
    jsonschema.validate(document["spec"], schema)
    for template in pod_templates(document["spec"]):
        wrapped = {"apiVersion": "v1", "kind": "PodTemplate", "template": template}
        kubernetes("v1", "PodTemplate").validate(wrapped)


@functools.cache
def kubernetes(version: str, kind: str) -> jsonschema.Draft202012Validator:
    """The strict schema of a kind, from the package kubernetes-validate (whose own function reads
    1.5 MB of definitions at every call)."""
    group = re.sub(r"^([^./]*)(?:\.[^/]*)?/", r"\1-", version)
    file = SCHEMAS / KUBERNETES / f"{kind.lower()}-{group}.json"
    return jsonschema.Draft202012Validator(json.loads(file.read_text()), registry=definitions())


@functools.cache
def definitions() -> referencing.Registry:
    """What the schemas refer to."""
    text = (SCHEMAS / KUBERNETES / "_definitions.json").read_text()
    return referencing.Resource.from_contents(json.loads(text)) @ referencing.Registry()


def pod_templates(value: Any) -> Iterator[dict[str, Any]]:
    """Every pod template in a specification."""
    if isinstance(value, dict):
        if "containers" in value.get("spec", {}):
            yield value
        else:
            for part in value.values():
                yield from pod_templates(part)
    elif isinstance(value, list):
        for part in value:
            yield from pod_templates(part)


def pods(documents: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, pod specification) of all manifests, those inside a ConfigMap included."""
    for document in documents:
        where = f"{document['kind']}/{document['metadata']['name']}"
        inner = [
            yaml.safe_load(text)
            for name, text in document.get("data", {}).items()
            if name.endswith(".yaml")
        ]
        for template in pod_templates(document):
            yield where, template["spec"]
        yield from pods(inner)


def assert_hardened(where: str, pod: dict[str, Any]) -> None:
    """What the `restricted` pod security standard asks for, and a root that cannot be written."""
    security = pod["securityContext"]
    assert security["runAsNonRoot"] is True, where
    assert security["runAsUser"] >= 10_000, where
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}, where
    for container in pod["containers"]:
        assert_hardened_container(where, container)


def assert_hardened_container(where: str, container: dict[str, Any]) -> None:
    """The same for one container, or for the options from which an operator makes one."""
    own = container["securityContext"]
    assert own["allowPrivilegeEscalation"] is False, where
    assert own["readOnlyRootFilesystem"] is True, where
    assert own["capabilities"] == {"drop": ["ALL"]}, where
    assert set(container["resources"]["limits"]) >= {"cpu", "memory"}, where
