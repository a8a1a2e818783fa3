"""Settings come from flags, variables, a file and defaults, in this order, and each knows where it comes from."""

from __future__ import annotations

from pathlib import Path

import pytest

from worker.config import Address, Config
from worker.errors import ConfigError
from worker.settings import Settings, find_file


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def written(folder: Path, text: str, name: str = "worker.toml") -> Path:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


def refusal(folder: Path, env: dict[str, str] | None = None, **flags: object) -> str:
    with pytest.raises(ConfigError) as refused:
        Settings.read(env or {}, flags, folder=folder)
    return str(refused.value)


# Order


def test_without_any_source_the_defaults_hold(folder: Path) -> None:
    settings = Settings.read({}, folder=folder)

    assert settings.config == Config()
    assert set(settings.origins.values()) == {"default"}


def test_a_flag_wins_over_a_variable_and_a_variable_over_the_file(folder: Path) -> None:
    written(folder, "slots = 1\ngrace = 1\nlease = 1")

    config = Settings.read(
        {"WORKER_SLOTS": "2", "WORKER_GRACE": "2"}, {"slots": "3", "grace": None}, folder=folder
    ).config

    assert (config.slots, config.grace, config.lease) == (3, 2.0, 1.0)


def test_each_value_knows_its_origin(folder: Path) -> None:
    file = written(folder, "# comment\nlease = 5\n")

    origins = Settings.read({"WORKER_GRACE": "2"}, {"slots": "3"}, folder=folder).origins

    assert {name: origins[name] for name in ("slots", "grace", "lease", "jobs")} == {
        "slots": "the flag --slots",
        "grace": "the variable WORKER_GRACE",
        "lease": f"{file} line 2",
        "jobs": "default",
    }


def test_an_empty_variable_is_none_at_all(folder: Path) -> None:
    assert Settings.read({"WORKER_SLOTS": ""}, folder=folder).config.slots is None


# The file


def test_lists_numbers_and_dashes_are_understood(folder: Path) -> None:
    written(folder, 'queues = ["mail", "default"]\npool-size = 7\ngrace = 1.5\nhttp = "127.0.0.1:9191"')

    config = Settings.read({}, folder=folder).config

    assert (config.queues, config.pool_size, config.grace) == (("mail", "default"), 7, 1.5)
    assert config.http == Address("127.0.0.1", 9191)


def test_a_project_file_has_a_table_for_it(folder: Path) -> None:
    file = written(folder, '[project]\nname = "shop"\n[tool.worker]\nslots = 4\n', "pyproject.toml")

    settings = Settings.read({}, folder=folder)

    assert (settings.config.slots, settings.origins["slots"]) == (4, f"{file} line 4")


def test_the_own_file_wins_over_the_projects(folder: Path) -> None:
    written(folder, "[tool.worker]\nslots = 4\n", "pyproject.toml")
    written(folder, "slots = 5")

    assert Settings.read({}, folder=folder).config.slots == 5


def test_the_file_is_looked_for_above_as_far_as_the_project(folder: Path) -> None:
    above = written(folder, "slots = 4")
    (folder / "shop" / "jobs").mkdir(parents=True)
    assert find_file(folder / "shop" / "jobs") == above

    project = written(folder, "[project]", "shop/pyproject.toml")
    assert find_file(folder / "shop" / "jobs") == project
    assert Settings.read({}, folder=folder / "shop").config.slots is None


@pytest.mark.parametrize("how", ["flag", "variable"])
def test_a_named_file_is_the_only_one(folder: Path, how: str) -> None:
    written(folder, "slots = 1")
    other = str(written(folder, "slots = 2", "other.toml"))

    named = {"flags": {"config": other}} if how == "flag" else {"env": {"WORKER_CONFIG": other}}

    assert Settings.read(named.get("env", {}), named.get("flags"), folder=folder).config.slots == 2


# Secrets from files


def test_a_secret_can_be_a_mounted_file(folder: Path) -> None:
    file = written(folder, "postgresql://u:sesame@h/d\n", "secret")

    settings = Settings.read({"WORKER_DATABASE_URL_FILE": str(file)}, folder=folder)

    assert settings.config.database_url == "postgresql://u:sesame@h/d"
    assert settings.origins["database_url"] == f"the file {file} of WORKER_DATABASE_URL_FILE"


def test_a_flag_wins_over_a_secret_file(folder: Path) -> None:
    file = written(folder, "postgresql://h/a", "secret")

    config = Settings.read({"WORKER_DATABASE_URL_FILE": str(file)}, {"database_url": "postgresql://h/b"}).config

    assert config.database_url == "postgresql://h/b"


def test_only_secrets_can_be_files(folder: Path) -> None:
    """`WORKER_SLOTS_FILE` is nobody's business: it may be another program's."""
    assert Settings.read({"WORKER_SLOTS_FILE": "/nowhere"}, folder=folder).config.slots is None


# Mistakes


def test_all_mistakes_are_told_at_once_with_value_and_source(folder: Path) -> None:
    file = written(folder, 'sloths = 3\nhygiene = "of"')

    said = refusal(folder, {"WORKER_GRACE": "soon", "WORKER_POOLSIZE": "3"}, lease="0")

    assert said.splitlines()[0] == "5 settings cannot work:"
    for expected in (
        f"sloths: there is no such setting, did you mean 'slots'? ({file} line 1)",
        f"hygiene='of': expected one of off, detect, discard ({file} line 2)",
        "WORKER_POOLSIZE: there is no such variable, did you mean WORKER_POOL_SIZE?",
        "WORKER_GRACE='soon': expected a number of seconds, 0 or more (the variable WORKER_GRACE)",
        "--lease='0': expected a number of seconds, more than 0 (the flag --lease)",
    ):
        assert f"  {expected}\n" in f"{said}\n"


def test_a_mistake_that_a_stronger_source_replaces_does_not_matter(folder: Path) -> None:
    written(folder, "slots = 0")

    assert Settings.read({"WORKER_SLOTS": "many"}, {"slots": "2"}, folder=folder).config.slots == 2


@pytest.mark.parametrize("variable", ["WORKER_PORT", "WORKER_SERVICE_HOST", "WORKER_PORT_80_TCP", "WORKER_TEST_URL"])
def test_variables_that_are_others_are_left_alone(folder: Path, variable: str) -> None:
    """As Kubernetes makes them for a service called worker."""
    assert Settings.read({variable: "x"}, folder=folder).config == Config()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("slots = ", "is not TOML"),
        ("slots = true", "slots=True: expected a whole number"),
        ("[database_url]\nx = 1", "database_url: expected a connection string"),
        ("slots = []", "slots='': expected a whole number"),
        ("slots = 1979-05-27", "slots='1979-05-27': expected a whole number"),
    ],
)
def test_a_file_that_cannot_be_understood_is_told_with_its_name(folder: Path, text: str, said: str) -> None:
    file = written(folder, text)

    refused = refusal(folder)

    assert said in refused
    assert str(file) in refused


def test_a_file_that_is_not_there_is_told(folder: Path) -> None:
    assert refusal(folder, config="/nowhere.toml") == (
        "settings file /nowhere.toml: it cannot be read: No such file or directory"
    )


def test_a_secret_file_that_is_empty_missing_or_doubled_is_told(folder: Path) -> None:
    empty = str(written(folder, "\n", "empty"))

    assert "the file is empty" in refusal(folder, {"WORKER_DATABASE_URL_FILE": empty})
    assert "No such file" in refusal(folder, {"WORKER_DATABASE_URL_FILE": "/nowhere"})
    both = {"WORKER_DATABASE_URL_FILE": empty, "WORKER_DATABASE_URL": "postgresql://h/d"}
    assert "WORKER_DATABASE_URL is set as well: keep one of them" in refusal(folder, both)


@pytest.mark.parametrize("text", ["9191", ":9191", "host:", "host:99999", "unix:relative", "http://h:1", "::1:80"])
def test_an_address_that_cannot_be_one_is_refused(folder: Path, text: str) -> None:
    assert "expected HOST:PORT such as 127.0.0.1:9191, or unix:/PATH" in refusal(folder, http=text)


@pytest.mark.parametrize("text", ["127.0.0.1:9191", "localhost:0", "[::1]:9191", "unix:/run/carpool.sock"])
def test_an_address_reads_as_it_was_written(folder: Path, text: str) -> None:
    assert str(Settings.read({"WORKER_HTTP": text}, folder=folder).config.http) == text


def test_settings_made_in_code_are_checked_too() -> None:
    with pytest.raises(ConfigError, match=r"2 settings cannot work:\n  pool_size='1': .*\n  lease='-1': "):
        Config(pool_size=1, lease=-1)
