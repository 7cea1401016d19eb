"""The deployment's files agree with the code and with each other, and give no process more than it needs."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

PROJECT = Path(__file__).parents[2]
DEPLOY = PROJECT / "deploy"
MANIFESTS = sorted(DEPLOY.glob("kubernetes/*.yaml"))
NOT_MANIFESTS = {"dagster.yaml", "workspace.yaml", "kustomization.yaml"}
ADDED_TO_INSTANCE = {"run_launcher", "run_retries", "compute_logs"}
SECRETS = {
    "LETTA_PG_URI": "letta-source",
    "DAGSTER_PG_URL": "dagster-storage",
    "TRAJECTORY_DATABASE_URL": "trajectory-sinks",
    "OPENAI_API_KEY": "judge",
}


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def objects() -> Iterator[dict[str, Any]]:
    for path in MANIFESTS:
        if path.name not in NOT_MANIFESTS:
            yield from yaml.safe_load_all(path.read_text())


def pods() -> dict[str, dict[str, Any]]:
    return {
        each["metadata"]["name"]: each["spec"]["template"]["spec"]
        for each in objects()
        if each["kind"] in ("Deployment", "Job")
    }


@pytest.mark.parametrize("where", ["celery", "kubernetes"])
def test_instances_are_the_projects_with_a_launcher_added(where: str) -> None:
    project, own = load(PROJECT / "dagster.yaml"), load(DEPLOY / where / "dagster.yaml")
    assert set(own) - set(project) == ADDED_TO_INSTANCE
    monitoring = own.pop("run_monitoring")
    assert project["run_monitoring"].items() <= monitoring.items()
    assert {name: own[name] for name in project if name != "run_monitoring"} == {
        name: value for name, value in project.items() if name != "run_monitoring"
    }


def test_helm_values_hold_the_limits_of_the_project() -> None:
    project, values = load(PROJECT / "dagster.yaml"), load(DEPLOY / "helm" / "values.yaml")
    for name in ("concurrency", "nux"):
        assert values["additionalInstanceConfig"][name] == project[name]
    ages = {name: value["purge_after_days"] for name, value in project["retention"].items()}
    assert {name: values["retention"][name]["purgeAfterDays"] for name in ages} == ages
    monitoring = values["dagsterDaemon"]["runMonitoring"]
    assert monitoring["startTimeoutSeconds"] == project["run_monitoring"]["start_timeout_seconds"]
    launcher = values["runLauncher"]["config"]["k8sRunLauncher"]
    assert {one["name"] for one in launcher["envSecrets"]} == set(SECRETS.values())


def test_pods_run_without_rights_that_they_do_not_need() -> None:
    found = pods()
    assert set(found) == {"migrate", "code-server", "webserver", "daemon", "serve"}
    for name, pod in found.items():
        assert pod["securityContext"]["runAsNonRoot"] is True, name
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            security = container["securityContext"]
            assert security["readOnlyRootFilesystem"] is True
            assert security["allowPrivilegeEscalation"] is False
            assert security["capabilities"] == {"drop": ["ALL"]}
            assert "memory" in container["resources"]["limits"]
        # Only those two launch runs.
        assert pod["automountServiceAccountToken"] is (name in ("webserver", "daemon")), name
    run = load(DEPLOY / "kubernetes" / "dagster.yaml")["run_launcher"]["config"]["run_k8s_config"]
    assert run["container_config"]["security_context"]["read_only_root_filesystem"] is True
    assert run["pod_spec_config"]["security_context"]["run_as_non_root"] is True


def test_each_process_gets_only_its_own_secrets() -> None:
    secrets = {
        name: {source["secretRef"]["name"] for source in pod["containers"][0]["envFrom"] if "secretRef" in source}
        for name, pod in pods().items()
    }
    everything = set(SECRETS.values())
    assert secrets == {
        "migrate": {"trajectory-owner"},
        "code-server": everything,
        "webserver": {"dagster-storage"},
        "daemon": {"dagster-storage"},
        "serve": {"trajectory-sinks"},
    }
    launcher = load(DEPLOY / "kubernetes" / "dagster.yaml")["run_launcher"]["config"]
    assert set(launcher["env_secrets"]) == everything
    examples = list(yaml.safe_load_all((DEPLOY / "kubernetes" / "secrets.example.yaml").read_text()))
    assert {each["metadata"]["name"] for each in examples} == everything | {"trajectory-owner"}


def test_every_pod_is_under_the_policy_that_denies_all() -> None:
    policies = {each["metadata"]["name"]: each["spec"] for each in objects() if each["kind"] == "NetworkPolicy"}
    assert policies["deny-all"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    labels = {
        pod for policy in policies.values() for pod in re.findall(r"'app.kubernetes.io/name': '([a-z-]+)'", str(policy))
    }
    assert labels <= {*pods(), "run"}


def test_kustomization_names_every_manifest() -> None:
    kustomization = load(DEPLOY / "kubernetes" / "kustomization.yaml")
    applied = {path.name for path in MANIFESTS} - NOT_MANIFESTS - {"secrets.example.yaml"}
    assert set(kustomization["resources"]) == applied
    image = kustomization["images"][0]
    [container] = pods()["code-server"]["containers"]
    assert {"name": "DAGSTER_CURRENT_IMAGE", "value": f"{image['newName']}:{image['newTag']}"} in container["env"]


def test_compose_reads_secrets_from_files_and_pins_images() -> None:
    compose = load(DEPLOY / "compose.yaml")
    entrypoint = (DEPLOY / "entrypoint.sh").read_text()
    for name, service in compose["services"].items():
        image = service["image"]
        assert re.search(r":[\w.-]*\d[\w.-]*$", image), image
        environment = service.get("environment", {})
        for variable in environment:
            assert not re.search(r"(PASSWORD|SECRET|KEY|PG_URL|PG_URI|DATABASE_URL)$", variable), (name, variable)
            if variable.endswith("_FILE") and "build" in service:
                assert variable.removesuffix("_FILE") in entrypoint
                assert Path(environment[variable]).name in service["secrets"]
        if "build" in service:
            assert service["read_only"] is True
            assert service["cap_drop"] == ["ALL"]
    assert {compose["services"][name]["image"] for name in ("trajectory-db", "dagster-db")} == {
        "pgvector/pgvector:0.8.1-pg17",
        "postgres:17.6-bookworm",
    }
    made = (DEPLOY / "make_secrets.sh").read_text()
    assert {name for name in compose["secrets"] if f"put {name} " not in made} == set()


def test_image_targets_are_what_compose_builds() -> None:
    dockerfile = (DEPLOY / "Dockerfile").read_text()
    targets = set(re.findall(r"^FROM base AS ([a-z-]+)$", dockerfile, re.MULTILINE))
    built = {each["build"]["target"] for each in load(DEPLOY / "compose.yaml")["services"].values() if "build" in each}
    assert targets == built
    assert dockerfile.count("HEALTHCHECK ") == len(targets)
    assert "USER 10001:10001" in dockerfile
    for source in re.findall(r"^COPY (?!--from)(?:--chown=\S+ )?(.+) \S+$", dockerfile, re.MULTILINE):
        for path in source.split():
            assert (PROJECT / path).exists(), path


def test_every_alert_has_an_entry_in_the_runbook() -> None:
    headings = set(re.findall(r"^### (\w+)$", (PROJECT / "docs" / "runbook.md").read_text(), re.MULTILINE))
    alerts = {rule["alert"] for rule in load(DEPLOY / "monitoring" / "rules.yaml")["groups"][0]["rules"]}
    assert alerts == {heading for heading in headings if heading.startswith("Trajectory")}
