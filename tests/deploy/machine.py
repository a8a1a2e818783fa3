"""A machine for the quickstart: a project, a PATH with only what a test puts there, and a stand-in for uv."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
from pathlib import Path

from tests.embedded.processes import PACKAGE, python_for
from worker.embedded.account import Account

TIMEOUT = 60.0

# Stands in for uv, as the real one needs an index: makes a real environment, and a `worker` that shows its arguments.
UV = """\
#!/bin/sh
echo "$@" >> "$CALLS"
case "$1" in
venv) exec "$3" -m venv --without-pip "$4" ;;
pip)
    [ -z "$UV_FAILS" ] || { echo "$UV_FAILS" >&2; exit 1; }
    [ -z "$UV_HANGS" ] || exec sleep 60
    bin=$(dirname "$5")
    printf '#!/bin/sh\\necho "worker $@"; exit 7\\n' > "$bin/worker"
    chmod +x "$bin/worker" ;;
esac
"""


class Machine:
    """A folder with the quickstart in a project, and a PATH that holds only what a test puts there."""

    def __init__(self, root: Path) -> None:
        self.project = root / "project"
        (self.project / "deploy").mkdir(parents=True)
        shutil.copy(PACKAGE / "deploy" / "quickstart.py", self.project / "deploy")
        shutil.copy(PACKAGE / "pyproject.toml", self.project)
        self.bin = root / "bin"
        self.bin.mkdir()
        self.site = root / "site"
        self.site.mkdir()
        self.calls = root / "calls"
        self.python = sys.executable
        self.environment = {
            "PATH": f"{self.bin}",
            "HOME": str(root / "home"),
            "CALLS": str(self.calls),
            "PYTHONPATH": str(self.site),
            "PIP_CONFIG_FILE": os.devnull,
        }

    def with_uv(self) -> Machine:
        for tool in ("dirname", "chmod", "sleep"):
            (self.bin / tool).symlink_to(shutil.which(tool) or "/nowhere")
        (self.bin / "uv").write_text(UV)
        (self.bin / "uv").chmod(0o755)
        return self

    def with_python_changed_by(self, line: str) -> Machine:
        """Run *line* at the start of Python, to make it one of another version or with parts missing."""
        (self.site / "sitecustomize.py").write_text(f"import sys\n{line}\n")
        return self

    def start(self, *arguments: str, **popen: object) -> subprocess.Popen[str]:
        command = [self.python, str(self.project / "deploy" / "quickstart.py"), *arguments]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, env=self.environment, stdout=pipe, stderr=pipe, text=True, **popen)  # type: ignore[call-overload,no-any-return]  # kwargs

    def run(self, *arguments: str, **popen: object) -> subprocess.CompletedProcess[str]:
        with self.start(*arguments, **popen) as process:
            stdout, stderr = process.communicate(timeout=TIMEOUT)
        return subprocess.CompletedProcess(arguments, process.returncode, stdout, stderr)

    def called(self, verb: str) -> int:
        return sum(line.startswith(f"{verb} ") for line in self.calls.read_text().splitlines())


def as_a_stranger(machine: Machine) -> dict[str, object]:
    """Run *machine* by a user who may read its project and not write it; returns what `start` needs for that."""
    machine.calls.touch()
    machine.calls.chmod(0o666)
    if os.geteuid() != 0:
        machine.project.chmod(0o555)
        return {}
    nobody = pwd.getpwnam("nobody")
    machine.python = python_for(Account("nobody", nobody.pw_uid, nobody.pw_gid, dropped=True))
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
