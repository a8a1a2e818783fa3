"""Where settings come from: flags, the environment, a file, defaults; each value with its origin."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

from worker.config import SETTINGS, Address, Config, as_text, mistake, refuse
from worker.secrecy import keep_secret, redacted

DEFAULT = "default"
FILE_VARIABLE = "WORKER_CONFIG"
_PREFIX = "WORKER_"
_FILE_SUFFIX = "_FILE"
# What others may set: Kubernetes makes WORKER_PORT for a service of that name. Only a near miss is taken for a mistake.
_NEAR = 0.8


class Given(NamedTuple):
    """A value as somebody wrote it, and where."""

    name: str
    key: str
    value: Any
    origin: str


@dataclass(frozen=True)
class Settings:
    """
    A worker's settings and where each comes from.

    Args:
        origins: By setting: a flag, a variable, a file with its line, or "default".
    """

    config: Config
    origins: Mapping[str, str]

    @classmethod
    def read(
        cls, env: Mapping[str, str], flags: Mapping[str, Any] | None = None, *, folder: Path | None = None
    ) -> Settings:
        """
        The settings from *flags*, else from `WORKER_*` variables of *env*, else from the settings file, else defaults.

        Args:
            flags: Values by setting, None where a flag was not given; `config` names the settings file.
            folder: Where the search for a settings file begins; the current one when None.

        Raises:
            ConfigError: One message that lists every setting that cannot work: name, value, source, what is allowed.
        """
        flags = dict(flags or {})
        mistakes: list[str] = []
        if env.get("PGPASSWORD"):
            keep_secret(f"password='{env['PGPASSWORD']}'")
        named = flags.pop("config", None) or env.get(FILE_VARIABLE)
        file = Path(named) if named else find_file(folder or Path.cwd())
        given: dict[str, Given] = {}
        # The strongest last.
        for source in (_from_file(file, mistakes), _from_environment(env, mistakes), _from_flags(flags)):
            given.update((one.name, one) for one in source)
        values: dict[str, Any] = {}
        for one in given.values():
            try:
                values[one.name] = _parse(one)
            except ValueError as exc:
                mistakes.append(mistake(one.key, SETTINGS[one.name], one.value, exc, one.origin))
        refuse(mistakes)
        origins = {name: given[name].origin if name in given else DEFAULT for name in SETTINGS}
        return cls(Config(**values), origins)

    def shown(self) -> list[dict[str, Any]]:
        """Every setting with its value and origin, for people and programs; secrets left out."""
        config = self.config
        rows = []
        for name in SETTINGS:
            value = getattr(config, name)
            if SETTINGS[name].is_secret:
                value = redacted(value) if value else None
            elif isinstance(value, Address):
                value = str(value)
            rows.append({"setting": name, "value": value, "origin": self.origins[name]})
        return rows


def find_file(folder: Path) -> Path | None:
    """
    The settings file for *folder*: the first `worker.toml` or `pyproject.toml` in it or above.

    A `pyproject.toml` without `[tool.worker]` ends the search: what is above is another project's.
    """
    for place in (folder, *folder.parents):
        for name in ("worker.toml", "pyproject.toml"):
            with suppress(OSError):  # a folder above that is not ours to look into
                if (file := place / name).is_file():
                    return file
    return None


def _parse(given: Given) -> Any:
    flag_only = {field.name for field in fields(Config)} - set(SETTINGS)
    return given.value if given.name in flag_only else SETTINGS[given.name].parse(as_text(given.value))


def _from_flags(flags: Mapping[str, Any]) -> Iterator[Given]:
    for name, value in flags.items():
        if value is not None:
            flag = f"--{name.replace('_', '-')}"
            yield Given(name, flag, value, f"the flag {flag}")


def _from_environment(env: Mapping[str, str], mistakes: list[str]) -> Iterator[Given]:
    variables = {f"{_PREFIX}{name.upper()}": name for name in SETTINGS}
    files = {f"{variable}{_FILE_SUFFIX}": variable for variable, name in variables.items() if SETTINGS[name].is_secret}
    for variable, text in env.items():
        if not variable.startswith(_PREFIX) or not text:
            continue
        if variable in variables:
            yield Given(variables[variable], variable, text, f"the variable {variable}")
        elif variable in files:
            yield from _from_secret_file(variable, files[variable], env, variables, mistakes)
        elif variable != FILE_VARIABLE and not variable.startswith("WORKER_TEST_"):
            mistakes.extend(_near_miss(variable, [*variables, *files, FILE_VARIABLE]))


def _from_secret_file(
    variable: str, direct: str, env: Mapping[str, str], variables: Mapping[str, str], mistakes: list[str]
) -> Iterator[Given]:
    path = env[variable]
    if env.get(direct):
        mistakes.append(f"{variable}={path!r}: {direct} is set as well: keep one of them")
        return
    try:
        text = Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else "it is not text"
        mistakes.append(f"{variable}={path!r}: the file cannot be read: {reason}")
        return
    if not text:
        mistakes.append(f"{variable}={path!r}: the file is empty: expected {SETTINGS[variables[direct]].expected}")
        return
    yield Given(variables[direct], variable, text, f"the file {path} of {variable}")


def _near_miss(variable: str, known: list[str]) -> list[str]:
    suffixes = {name.removeprefix(_PREFIX): name for name in known}
    close = difflib.get_close_matches(variable.removeprefix(_PREFIX), suffixes, n=1, cutoff=_NEAR)
    return [f"{variable}: there is no such variable, did you mean {suffixes[name]}?" for name in close]


def _from_file(file: Path | None, mistakes: list[str]) -> Iterator[Given]:
    if file is None:
        return
    try:
        text = file.read_text(encoding="utf-8")
        table: Any = tomllib.loads(text)
    except OSError as exc:
        mistakes.append(f"settings file {file}: it cannot be read: {exc.strerror}")
        return
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        mistakes.append(f"settings file {file}: it is not TOML: {exc}")
        return
    where = ""
    if file.name == "pyproject.toml":
        where = "[tool.worker] "
        table = table.get("tool", {}).get("worker", {})
    if not isinstance(table, dict):
        mistakes.append(f"settings file {file}: [tool.worker] is not a table")
        return
    for key, value in table.items():
        name = key.replace("-", "_")
        origin = f"{file}{_line(text, key)}"
        if name not in SETTINGS:
            close = difflib.get_close_matches(name, SETTINGS, n=1)
            hint = f", did you mean {close[0]!r}?" if close else f": there are {', '.join(SETTINGS)}"
            mistakes.append(f"{where}{key}: there is no such setting{hint} ({origin})")
        elif isinstance(value, bool | dict):
            told = "" if SETTINGS[name].is_secret else f"={value!r}"
            mistakes.append(f"{where}{key}{told}: expected {SETTINGS[name].expected} ({origin})")
        else:
            yield Given(name, f"{where}{key}", value, origin)


def _line(text: str, key: str) -> str:
    """Where *key* is set, as people say it; tomllib does not tell."""
    for number, line in enumerate(text.splitlines(), start=1):
        if re.match(rf"\s*[\"']?{re.escape(key)}[\"']?\s*=", line):
            return f" line {number}"
    return ""
