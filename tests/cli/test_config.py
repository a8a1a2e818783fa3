"""`worker config show`: every setting, its value, its origin; and no password."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Worker
from worker.config import SETTINGS


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "worker.toml"
    file.write_text('queues = ["mail", "default"]\n')
    return file


def test_every_setting_is_told_with_its_origin(worker: Worker, file: Path) -> None:
    shown = worker(
        "config", "show", "--config", str(file), WORKER_GRACE="5", WORKER_DATABASE_URL="postgresql://u:sesame@h/d"
    )

    lines = [line.split(maxsplit=1) for line in shown.stdout.splitlines()]
    assert [name for name, _ in lines] == list(SETTINGS)
    told = {name: " ".join(rest.split()) for name, rest in lines}
    assert told["queues"] == f"mail,default {file} line 1"
    assert told["grace"] == "5.0 the variable WORKER_GRACE"
    assert told["slots"] == "- default"
    assert told["database_url"] == "user=u dbname=d host=h the variable WORKER_DATABASE_URL"


def test_programs_get_values_of_their_types(worker: Worker, file: Path) -> None:
    shown = worker("config", "show", "--json", "--config", str(file), WORKER_HTTP="127.0.0.1:9191")

    values = {row["setting"]: row["value"] for row in json.loads(shown.stdout)}
    assert values["queues"] == ["mail", "default"]
    assert (values["pool_size"], values["slots"], values["grace"]) == (20, None, 25.0)
    assert values["http"] == "127.0.0.1:9191"
    assert values["database_url"] is None


def test_settings_that_cannot_work_are_not_shown_but_named(worker: Worker) -> None:
    shown = worker("config", "show", WORKER_SLOTS="0")

    assert (shown.exit_code, shown.stdout) == (2, "")
    assert "WORKER_SLOTS='0'" in shown.stderr
