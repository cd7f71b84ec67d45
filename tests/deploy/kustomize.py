"""What `kubectl kustomize FOLDER` prints, as far as deploy/kubernetes uses it, without kubectl.

Resources, strategic merge patches (maps are merged, lists of named things by name, null removes), images, namespace
and components. Anything else in a kustomization is an error.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import yaml

Resource = dict[str, Any]

_KNOWN = {"apiVersion", "kind", "labels", "resources", "images", "patches", "namespace", "components"}
_CLUSTER_WIDE = {"Namespace"}


def render(folder: Path, components: tuple[Path, ...] = ()) -> list[Resource]:
    """The resources of a kustomization, with these components on top."""
    resources = _build(folder, [])
    for component in components:
        resources = _build(component, resources)
    return resources


def _build(folder: Path, given: list[Resource]) -> list[Resource]:
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
    if unknown := kustomization.keys() - _KNOWN:
        raise ValueError(f"{folder}: {unknown} is not rendered here")
    resources = copy.deepcopy(given)
    for name in kustomization.get("resources", []):
        path = folder / name
        resources += _build(path, []) if path.is_dir() else _load(path)
    for patch in kustomization.get("patches", []):
        for change in _load(folder / patch["path"]):
            target = next(each for each in resources if _identity(each) == _identity(change))
            _merge(target, change)
    for component in kustomization.get("components", []):
        resources = _build(folder / component, resources)
    for resource in resources:
        for container in containers(resource):
            for image in kustomization.get("images", []):
                if container["image"] == image["name"]:
                    container["image"] = f"{image['newName']}:{image['newTag']}"
        if "namespace" in kustomization and resource["kind"] not in _CLUSTER_WIDE:
            resource["metadata"]["namespace"] = kustomization["namespace"]
    return resources


def pod_spec(resource: Resource) -> dict[str, Any]:
    """The pods' specification in a Deployment or a Job; empty for other kinds."""
    spec: dict[str, Any] = resource.get("spec", {}).get("template", {}).get("spec", {})
    return spec


def containers(resource: Resource) -> list[dict[str, Any]]:
    """The containers in a Deployment or a Job."""
    found: list[dict[str, Any]] = pod_spec(resource).get("containers", [])
    return found


def _load(path: Path) -> list[Resource]:
    return list(yaml.safe_load_all(path.read_text()))


def _identity(resource: Resource) -> tuple[str, str, str]:
    return resource["apiVersion"], resource["kind"], resource["metadata"]["name"]


def _merge(target: dict[str, Any], change: dict[str, Any]) -> None:
    for key, value in change.items():
        old = target.get(key)
        if value is None:
            target.pop(key, None)
        elif isinstance(value, dict) and isinstance(old, dict):
            _merge(old, value)
        elif isinstance(value, list) and isinstance(old, list) and all("name" in each for each in value):
            for each in value:
                same = next((other for other in old if other.get("name") == each["name"]), None)
                if same is None:
                    old.append(each)
                else:
                    _merge(same, each)
        else:
            target[key] = value
