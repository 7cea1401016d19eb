"""The deployment's files, read by the validators of their own formats; the image's environment, made as its steps say.

`make deploy-check` installs the validators. What has none here is said in deploy/README.md.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from trajectory_pipeline_tests.deploy.test_files import DEPLOY, MANIFESTS, NOT_MANIFESTS, PROJECT, load
from trajectory_pipeline_tests.serve.test_pipeline_metrics import expressions

pytestmark = pytest.mark.process
BIN = Path(sys.executable).parent


def run(*command: str, folder: Path = PROJECT, **environment: str) -> str:
    result = subprocess.run(
        command, cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, f"{' '.join(command)}\n{result.stdout}\n{result.stderr}"
    return result.stdout


def test_manifests_follow_the_schemas_of_kubernetes() -> None:
    paths = [str(path) for path in MANIFESTS if path.name not in NOT_MANIFESTS]
    out = run(str(BIN / "kubernetes-validate"), "--strict", *paths)
    assert out.count(" passed ") >= len(paths)


def test_compose_files_follow_their_schema() -> None:
    files = [str(DEPLOY / name) for name in ("compose.yaml", "compose.celery.yaml")]
    run(str(BIN / "check-jsonschema"), "--builtin-schema", "vendor.compose-spec", *files)


def test_dockerfile_passes_its_linter() -> None:
    run(str(BIN / "hadolint"), str(DEPLOY / "Dockerfile"))


def test_shell_scripts_parse() -> None:
    for path in DEPLOY.rglob("*.sh"):
        run("sh", "-n", str(path))


def test_promql_parses() -> None:
    import promql_parser

    for of, expression in expressions().items():
        assert promql_parser.parse(expression), of


@pytest.mark.parametrize("where", ["celery", "kubernetes"])
def test_instances_are_taken_by_dagster(where: str, tmp_path: Path) -> None:
    (tmp_path / "dagster.yaml").write_text((DEPLOY / where / "dagster.yaml").read_text())
    program = (
        "from dagster._core.instance.ref import InstanceRef;"
        f"ref = InstanceRef.from_dir({str(tmp_path)!r});"
        "launcher = ref.run_launcher if 'K8s' not in ref.run_launcher_data.class_name else None;"
        "from dagster._core.launcher import RunLauncher;"
        "from dagster._serdes import ConfigurableClassData;"
        "print(ref.run_launcher_data.class_name, ref.compute_logs_data.class_name)"
    )
    out = run(
        sys.executable,
        "-W",
        "ignore",
        "-c",
        program,
        DAGSTER_PG_URL="postgresql+psycopg2://a:b@localhost/c",
        DAGSTER_CELERY_BROKER_URL="redis://localhost/0",
        DAGSTER_CELERY_BACKEND_URL="redis://localhost/0",
    )
    assert out.split() == [
        {"celery": "CeleryRunLauncher", "kubernetes": "K8sRunLauncher"}[where],
        "NoOpComputeLogManager",
    ]


def launcher_config(config: Mapping[str, Any]) -> Any:
    from dagster._config import resolve_to_config_type, validate_config
    from dagster_k8s.launcher import K8sRunLauncher

    result = validate_config(resolve_to_config_type(K8sRunLauncher.config_type()), dict(config))
    assert result.success, [error.message for error in result.errors or ()]
    return result.value


def test_kubernetes_launcher_takes_its_config() -> None:
    config = load(DEPLOY / "kubernetes" / "dagster.yaml")["run_launcher"]["config"]
    assert launcher_config(config)["job_namespace"] == "trajectory"
    job = job_of(config)
    path = Path(os.environ.get("TMPDIR", "/tmp")) / f"job-{os.getpid()}.yaml"
    path.write_text(yaml.safe_dump(job))
    try:
        run(str(BIN / "kubernetes-validate"), "--strict", str(path))
    finally:
        path.unlink()
    pod = job["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["containers"][0]["securityContext"]["readOnlyRootFilesystem"] is True


def job_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the job that the launcher would make for a run."""
    import kubernetes
    from dagster_k8s.container_context import K8sContainerContext
    from dagster_k8s.job import DagsterK8sJobConfig, construct_dagster_k8s_job
    from dagster_k8s.models import k8s_snake_case_dict  # noqa: F401 - the module must be there

    own = dict(config)
    base = DagsterK8sJobConfig(
        job_image="registry.example.com/trajectory-pipeline:0.2.0",
        dagster_home=own["dagster_home"],
        instance_config_map=own["instance_config_map"],
    )
    shown = {
        key: own[key]
        for key in (
            "image_pull_policy",
            "service_account_name",
            "env_config_maps",
            "env_secrets",
            "volume_mounts",
            "volumes",
            "resources",
            "run_k8s_config",
        )
    }
    context = K8sContainerContext.create_from_config({"k8s": shown})
    job = construct_dagster_k8s_job(
        base, ["dagster", "api", "execute_run"], "dagster-run-1", context.run_k8s_config, labels={"app": "run"}
    )
    made: dict[str, Any] = kubernetes.client.ApiClient().sanitize_for_serialization(job)
    return {"apiVersion": "batch/v1", "kind": "Job", **made}


def test_helm_values_give_the_launcher_what_it_takes() -> None:
    launcher = load(DEPLOY / "helm" / "values.yaml")["runLauncher"]["config"]["k8sRunLauncher"]
    values = json.loads(json.dumps(launcher))
    config = {
        "image_pull_policy": values["imagePullPolicy"],
        "load_incluster_config": values["loadInclusterConfig"],
        "dagster_home": "/opt/dagster/dagster_home",
        "instance_config_map": "dagster-instance",
        "service_account_name": "dagster",
        "env_config_maps": [one["name"] for one in values["envConfigMaps"]],
        "env_secrets": [one["name"] for one in values["envSecrets"]],
        "resources": values["resources"],
        "volumes": values["volumes"],
        "volume_mounts": values["volumeMounts"],
        "run_k8s_config": {
            "container_config": values["runK8sConfig"]["containerConfig"],
            "pod_spec_config": values["runK8sConfig"]["podSpecConfig"],
            "pod_template_spec_metadata": values["runK8sConfig"]["podTemplateSpecMetadata"],
            "job_spec_config": values["runK8sConfig"]["jobSpecConfig"],
        },
    }
    launcher_config(config)


def test_image_steps_make_an_environment_that_runs(tmp_path: Path) -> None:
    """What the Dockerfile runs, without a container: the environment, the entry point and a health check."""
    target = tmp_path / "pipeline"
    out = run("sh", "deploy/install.sh", str(target), PYTHON=sys.executable)
    assert "trajectory-pipeline" in out
    home = tmp_path / "home"
    home.mkdir()
    (home / "secret").write_text("postgresql+psycopg2://a:b@localhost/c")
    clean = {"PATH": f"{target / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": "", "DAGSTER_HOME": str(home)}
    entry = ["sh", str(DEPLOY / "entrypoint.sh")]
    shown = run(
        *entry, "sh", "-c", "echo $DAGSTER_PG_URL", DAGSTER_PG_URL_FILE=str(home / "secret"), folder=home, **clean
    )
    assert shown.strip() == "postgresql+psycopg2://a:b@localhost/c"
    run(
        str(target / "bin" / "python"),
        "-W",
        "ignore",
        "-c",
        "import dagster_celery, dagster_k8s, s3fs, fastapi, trajectory_pipeline.definitions as d; d.defs",
        folder=home,
        **clean,
    )
    refused = subprocess.run(
        [*entry, "true"],
        env={**os.environ, "DAGSTER_PG_URL_FILE": "/nowhere"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert refused.returncode == 1
    assert "DAGSTER_PG_URL_FILE names /nowhere" in refused.stderr
