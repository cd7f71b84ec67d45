"""deploy/kubernetes: what it renders is what Kubernetes' schemas allow, and its parts fit each other."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from service.network.page import Page
from service.processes.workers import stop_seconds
from service.settings import Settings
from service.store.journal import JOURNAL_BYTES
from tests.deploy.kustomize import Resource, containers, pod_spec, render

FOLDER = Path(__file__).parents[2] / "deploy/kubernetes"
VARIANTS = {
    "base": (FOLDER / "base", ()),
    "production": (FOLDER / "overlays/production", ()),
    "gpu": (FOLDER / "overlays/gpu", ()),
    "journal volume": (FOLDER / "base", (FOLDER / "components/journal-volume",)),
}
# What decoding takes for a gray model, see MAX_IMAGE_PIXELS in docs/operations.md.
PIXEL_BYTES = 9
# The oldest that has preStop's `sleep` switched on, and the newest whose schemas are installed.
VERSIONS = ("1.30", kubernetes_validate.latest_version())


@pytest.fixture(params=VARIANTS)
def resources(request: pytest.FixtureRequest) -> list[Resource]:
    """What one variant applies."""
    folder, components = VARIANTS[request.param]
    return render(folder, components)


def only(resources: list[Resource], kind: str) -> Resource:
    """The one resource of this kind."""
    (found,) = [each for each in resources if each["kind"] == kind]
    return found


@pytest.mark.parametrize("version", VERSIONS)
def test_every_resource_is_valid(resources: list[Resource], version: str) -> None:
    """Strictly: an unknown field is an error."""
    for resource in resources:
        kubernetes_validate.validate(resource, version, strict=True)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_example_secret_is_valid(version: str) -> None:
    """It is not applied by any variant, and must not rot for that."""
    secret = yaml.safe_load((FOLDER / "base/secret.example.yaml").read_text())
    kubernetes_validate.validate(secret, version, strict=True)


@pytest.mark.parametrize("file", ["docs/deployment.md", "deploy/kubernetes/base/migrate.yaml"])
def test_commands_are_for_the_namespace_of_what_they_name(file: str) -> None:
    """In another namespace `--ignore-not-found` finds nothing and says nothing, and the old Job stays in the way."""
    commands = re.findall(r"kubectl [^`\n]+", (FOLDER.parents[1] / file).read_text())
    named = [command for command in commands if not command.startswith("kubectl apply ")]
    (namespace,) = {
        each["metadata"]["namespace"] for each in render(*VARIANTS["production"]) if each["kind"] == "Job"
    }
    assert named
    assert [command for command in named if f" -n {namespace} " not in command] == []


def test_a_wrong_field_would_be_noticed() -> None:
    """The schemas are strict: this test keeps the others honest."""
    deployment = only(render(FOLDER / "base"), "Deployment")
    containers(deployment)[0]["readynessProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(deployment, VERSIONS[-1], strict=True)


def test_what_selects_pods_selects_the_replicas_and_not_the_migration(resources: list[Resource]) -> None:
    """Deployment, Service and disruption budget mean the same pods; the network policy means all."""
    replica = only(resources, "Deployment")["spec"]["template"]["metadata"]["labels"]
    migration = only(resources, "Job")["spec"]["template"]["metadata"]["labels"]
    selectors: list[dict[str, str]] = [
        only(resources, "Deployment")["spec"]["selector"]["matchLabels"],
        only(resources, "Service")["spec"]["selector"],
        only(resources, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
    ]
    for selector in selectors:
        assert selector.items() <= replica.items()
        assert not selector.items() <= migration.items()
    policy = only(resources, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"]
    assert policy.items() <= replica.items()
    assert policy.items() <= migration.items()


def test_the_termination_grace_is_longer_than_preStop_and_drain(resources: list[Resource]) -> None:  # noqa: N802
    """preStop, requests in flight, the store's flush: each as long as it may take."""
    spec = pod_spec(only(resources, "Deployment"))
    drain = float(only(resources, "ConfigMap")["data"]["DRAIN_SECONDS"])
    sleep = spec["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert spec["terminationGracePeriodSeconds"] > sleep + stop_seconds(drain)


def test_the_journals_fit_the_volume() -> None:
    """Kubernetes evicts a pod that writes more than the limit, and what its journals hold is lost."""
    resources = render(FOLDER / "base")
    (volume,) = pod_spec(only(resources, "Deployment"))["volumes"]
    workers = int(only(resources, "ConfigMap")["data"]["WORKERS"])
    gigabytes = int(volume["emptyDir"]["sizeLimit"].removesuffix("Gi"))
    assert gigabytes * 1024**3 >= (workers + 1) * JOURNAL_BYTES


def test_the_largest_images_fit_the_memory(resources: list[Resource]) -> None:
    """Who decodes may each have one, of few bytes, beside what the pod takes by itself: else one client ends the pod.

    On a GPU those are threads, as many as the node has CPUs unless something else is set.
    """
    (container,) = containers(only(resources, "Deployment"))
    data = only(resources, "ConfigMap")["data"]
    workers, executors = int(data["WORKERS"]), int(data.get("EXECUTORS", "-1"))
    assert executors > 0 or data.get("PROVIDER", "cpu") == "cpu"
    limit = container["resources"]["limits"]["memory"].replace("Gi", "*1024").removesuffix("Mi")
    decoding = workers * max(1, executors) * PIXEL_BYTES * Settings().max_image_pixels
    assert math.prod(int(factor) for factor in limit.split("*")) * 2**20 > 256 * 2**20 + decoding


def test_settings_are_settings_of_the_service(resources: list[Resource]) -> None:
    """A misspelt name in the ConfigMap would silently be the default."""
    known = {name.upper() for name in Settings.__dataclass_fields__}
    assert only(resources, "ConfigMap")["data"].keys() <= known
    for resource in resources:
        for container in containers(resource):
            assert {variable["name"] for variable in container.get("env", [])} <= known


def test_every_container_is_confined(resources: list[Resource]) -> None:
    """Not root, read-only, without capabilities or a token: what the `restricted` standard asks for, and more."""
    for resource in resources:
        for container in containers(resource):
            pod, own = pod_spec(resource), container["securityContext"]
            assert pod["securityContext"]["runAsNonRoot"]
            assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
            assert pod["automountServiceAccountToken"] is False
            assert own["readOnlyRootFilesystem"]
            assert own["allowPrivilegeEscalation"] is False
            assert own["capabilities"] == {"drop": ["ALL"]}
            assert "memory" in container["resources"]["limits"]


def test_an_overlay_brings_the_namespace_that_its_resources_are_in(resources: list[Resource]) -> None:
    """In a cluster that has it not yet nothing could be applied."""
    there = {each["metadata"]["name"] for each in resources if each["kind"] == "Namespace"}
    assert {each["metadata"]["namespace"] for each in resources if "namespace" in each["metadata"]} == there


def test_names_that_resources_call_each_other_by_exist(resources: list[Resource]) -> None:
    """ConfigMap, service account, claim, scaled Deployment and the Ingress' Service."""
    names = {(each["kind"], each["metadata"]["name"]) for each in resources}
    for resource in resources:
        for reference in references(resource):
            assert reference in names


def references(resource: Resource) -> list[tuple[str, str]]:
    """The other resources of ours that this one names. The Secret is made elsewhere."""
    found: list[tuple[str, str]] = []
    spec = pod_spec(resource)
    if spec:
        found.append(("ServiceAccount", spec["serviceAccountName"]))
        for volume in spec.get("volumes", []):
            if "persistentVolumeClaim" in volume:
                found.append(("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]))
        for container in spec["containers"]:
            for source in container["envFrom"]:
                if "configMapRef" in source:
                    found.append(("ConfigMap", source["configMapRef"]["name"]))
    if resource["kind"] == "HorizontalPodAutoscaler":
        target: dict[str, Any] = resource["spec"]["scaleTargetRef"]
        found.append((target["kind"], target["name"]))
    if resource["kind"] == "Ingress":
        for rule in resource["spec"]["rules"]:
            for path in rule["http"]["paths"]:
                found.append(("Service", path["backend"]["service"]["name"]))
    return found


def test_argo_cd_migrates_after_what_the_job_names_and_before_the_replicas(resources: list[Resource]) -> None:
    """What the Job waits for would not come as long as Argo CD waits for the Job, as in the phase PreSync."""

    def annotation(resource: Resource, name: str, default: str) -> str:
        found: str = resource["metadata"].get("annotations", {}).get(f"argocd.argoproj.io/{name}", default)
        return found

    def wave(resource: Resource) -> int:
        return int(annotation(resource, "sync-wave", "0"))

    job = only(resources, "Job")
    assert annotation(job, "hook", "Sync") == "Sync"
    assert {wave(only(resources, kind)) < wave(job) for kind, _ in references(job)} == {True}
    assert wave(job) < wave(only(resources, "Deployment"))


def test_the_journal_is_on_the_claim_with_the_component() -> None:
    """And nothing of the emptyDir is left, which Kubernetes would refuse beside it."""
    folder, components = VARIANTS["journal volume"]
    deployment = only(render(folder, components), "Deployment")
    (volume,) = pod_spec(deployment)["volumes"]
    assert volume == {"name": "data", "persistentVolumeClaim": {"claimName": "visionai-journal"}}
    environment = {each["name"]: each["value"] for each in containers(deployment)[0]["env"]}
    assert environment["JOURNAL_DIR"].startswith("/data")
    assert not environment["CONTROL_SOCKET"].startswith("/data"), "replicas would have one for all"


def test_the_ingress_lets_all_of_the_page_through_and_no_metrics() -> None:
    """A page without its scripts and styles is none; what is for the inside is not reached from outside."""
    (rule,) = only(render(FOLDER / "overlays/production"), "Ingress")["spec"]["rules"]

    def passes(path: str) -> bool:
        return any(
            path == each["path"] or (each["pathType"] == "Prefix" and path.startswith(f"{each['path']}/"))
            for each in rule["http"]["paths"]
        )

    served = [*Page()._files, "/ws", "/asyncapi.yaml"]
    assert "/web/app.js" in served
    assert [path for path in served if not passes(path)] == []
    assert not any(passes(path) for path in ("/metrics", "/healthz", "/readyz"))


def test_the_adapter_makes_the_metric_that_the_autoscaler_reads() -> None:
    """By one name, from a metric that the service exports."""
    adapter = yaml.safe_load((FOLDER / "overlays/production/prometheus-adapter.yaml").read_text())
    (rule,) = adapter["rules"]["custom"]
    metrics = only(render(FOLDER / "overlays/production"), "HorizontalPodAutoscaler")["spec"]["metrics"]
    assert rule["name"]["as"] in [
        each["pods"]["metric"]["name"] for each in metrics if each["type"] == "Pods"
    ]
    assert "visionai_stage_duration_seconds_sum" in rule["metricsQuery"]
