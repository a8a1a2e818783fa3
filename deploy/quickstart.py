"""
From a fresh checkout to a running demo, or to the tests, with nothing but Python: `python3 deploy/quickstart.py demo`.

Makes `.venv` in the project's folder (by `uv` where there is one, else venv and pip), installs the project into it,
and runs the command inside. The second time it goes straight to the command. Standard library only, and in words that
Python 3.9 still understands, so that an old one can say what is wrong.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

USAGE = """\
usage: python3 deploy/quickstart.py demo [options of `worker demo`]
       python3 deploy/quickstart.py test [options of pytest]
"""
EXIT_MISSING = 1  # something that this machine lacks; the last line on stderr says what to do
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130  # as a shell says it after Ctrl-C

PROJECT = Path(__file__).resolve().parent.parent
PYPROJECT = PROJECT / "pyproject.toml"
MIN_PYTHON = (3, 11)
FREE_SPACE = 400  # MB: the larger set takes 210, and as much again for a moment
INSTALL_TIMEOUT = 900.0
ANSWER_TIMEOUT = 30.0

NO_SPACE = re.compile("No space left on device|Disk quota exceeded")
NO_INDEX = re.compile(
    "NewConnectionError|Could not connect|Connection refused|timed out|name resolution|dns error|ProxyError|Connect\\)"
)


class Missing(Exception):
    """Something that only the person at the keyboard can mend; the message is one line that says how."""


def main(arguments: list[str]) -> int:
    if arguments[:1] in (["-h"], ["--help"]):
        print(USAGE, end="")
        return 0
    if arguments[:1] not in (["demo"], ["test"]):
        print(USAGE, end="", file=sys.stderr)
        return EXIT_USAGE
    try:
        require_python(arguments)
        venv = prepared_environment(arguments[0])
        run(venv, arguments[0], arguments[1:])
    except Missing as exc:
        print(f"quickstart: {exc}", file=sys.stderr)
        return EXIT_MISSING
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def require_python(arguments: list[str]) -> None:
    """Go on in a newer Python if uv can find or fetch one, or say which one to call."""
    if os.name != "posix":
        raise Missing("this project runs on Linux and macOS; on Windows, run it inside WSL")
    if sys.version_info >= MIN_PYTHON:
        return
    uv = shutil.which("uv")
    wanted = ".".join(map(str, MIN_PYTHON))
    if uv:
        os.execv(uv, [uv, "run", "--no-project", "--python", f">={wanted}", __file__, *arguments])  # noqa: S606
    newer = [name for name in (f"python3.{minor}" for minor in range(19, MIN_PYTHON[1] - 1, -1)) if shutil.which(name)]
    remedy = f"run: {newer[0]} deploy/quickstart.py {arguments[0]}" if newer else "install it, or install uv"
    raise Missing(f"Python {wanted} or newer is needed, {sys.executable} is {sys.version.split()[0]}; {remedy}")


def prepared_environment(verb: str) -> Path:
    """Return a virtual environment in which everything for *verb* is installed, made or mended if it must be."""
    if not PYPROJECT.is_file():
        raise Missing(f"no pyproject.toml in {PROJECT}; run this file where it lies in the project's checkout")
    wait_for_another()
    venv = chosen_folder(verb)
    if not is_current(venv, verb):
        require_space(venv)
        if not is_whole(venv):
            make(venv)
        install(venv, verb)
    return venv


def wait_for_another() -> None:
    """Let the second of two quickstarts wait for the first, which may be making what it needs."""
    import fcntl  # not on Windows, which is told so first

    # The folder itself, as we may not be allowed to write in it. Kept until this process becomes the command, or ends.
    folder = os.open(PROJECT, os.O_RDONLY)
    deadline = time.monotonic() + INSTALL_TIMEOUT
    while time.monotonic() < deadline:
        with suppress(BlockingIOError):
            return fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        time.sleep(0.2)
    raise Missing(f"another quickstart has been busy in {PROJECT} for {INSTALL_TIMEOUT:g} s; end it")


def chosen_folder(verb: str) -> Path:
    """`.venv` in the project, or a folder of the user's own where the project belongs to somebody else."""
    venv = PROJECT / ".venv"
    if is_current(venv, verb) or os.access(venv if venv.exists() else PROJECT, os.W_OK | os.X_OK):
        return venv
    caches = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "carpool"
    try:
        caches.mkdir(parents=True, exist_ok=True)
    except OSError:
        raise Missing(
            f"neither {PROJECT} nor {caches} can be written; set XDG_CACHE_HOME to a folder that can"
        ) from None
    return caches / f"venv-{hashlib.sha256(os.fsencode(PROJECT)).hexdigest()[:12]}"


def is_current(venv: Path, verb: str) -> bool:
    try:
        return stamp(venv, verb).read_text() == fingerprint() and os.access(python(venv), os.X_OK)
    except OSError:
        return False


def is_whole(venv: Path) -> bool:
    """Whether *venv* can be installed into: not left half-made by a kill, and its Python runs and is new enough."""
    if unfinished(venv).exists() or not (venv / "pyvenv.cfg").exists():
        return False
    needs_pip = "" if shutil.which("uv") else "import pip; "
    probe = [str(python(venv)), "-c", f"import sys; {needs_pip}sys.exit(sys.version_info < {MIN_PYTHON})"]
    try:
        return subprocess.run(probe, timeout=ANSWER_TIMEOUT, capture_output=True).returncode == 0  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return False


def require_space(venv: Path) -> None:
    free = shutil.disk_usage(venv.parent).free // 1_000_000
    if free < FREE_SPACE:
        raise Missing(f"no disk space: {free} MB free under {venv.parent}, {FREE_SPACE} MB are needed; free some")


def make(venv: Path) -> None:
    """Make an empty virtual environment in place of whatever is there."""
    command = maker()
    print(f"quickstart: making {venv}", file=sys.stderr)
    shutil.rmtree(venv, ignore_errors=True)
    call([*command, str(venv)], venv, "the virtual environment could not be made")


def maker() -> list[str]:
    this_python = getattr(sys, "_base_executable", None) or sys.executable  # not the one that is about to be deleted
    uv = shutil.which("uv")
    if uv:
        return [uv, "venv", "--python", this_python]
    if importlib.util.find_spec("venv") and importlib.util.find_spec("ensurepip"):
        return [this_python, "-m", "venv"]
    if shutil.which("virtualenv"):
        return ["virtualenv", "--python", this_python]
    package = f"python3.{sys.version_info.minor}-venv"
    raise Missing(f"this Python cannot make virtual environments; Debian, Ubuntu: apt install {package}; or install uv")


def install(venv: Path, verb: str) -> None:
    """Install the project, editable, with what *verb* needs; stamped when done, so that a kill is noticed."""
    unfinished(venv).touch()
    print("quickstart: installing the project and what it needs (once; up to a minute)", file=sys.stderr)
    call([*installer(venv), *requirements(verb)], venv, "the installation failed")
    stamp(venv, verb).write_text(fingerprint())
    unfinished(venv).unlink()


def installer(venv: Path) -> list[str]:
    uv = shutil.which("uv")
    if uv:
        return [uv, "pip", "install", "--quiet", "--python", str(python(venv))]
    return [str(python(venv)), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]


def requirements(verb: str) -> list[str]:
    if verb == "demo":
        return ["--editable", f"{PROJECT}[embedded]"]
    import tomllib  # not in Python 3.9, which has been sent away before

    # Read here, as the pip that comes with Python 3.11 knows no --group.
    return ["--editable", str(PROJECT), *tomllib.loads(PYPROJECT.read_text())["dependency-groups"]["dev"]]


def call(command: list[str], venv: Path, failure: str) -> None:
    """Run *command*; when it fails, tell its reason in one line."""
    environment = {"PIP_RETRIES": "2", **os.environ}  # pip's own five make somebody without network wait long
    try:
        done = subprocess.run(  # noqa: S603
            command, env=environment, text=True, capture_output=True, timeout=INSTALL_TIMEOUT
        )
    except subprocess.TimeoutExpired:
        raise Missing(f"{failure}: not done after {INSTALL_TIMEOUT:g} s; try again") from None
    if done.returncode == 0:
        return
    output = done.stdout + done.stderr
    if NO_SPACE.search(output):
        raise Missing(f"{failure}: no disk space under {venv.parent}; free {FREE_SPACE} MB")
    if NO_INDEX.search(output):
        raise Missing(
            f"{failure}: the package index is out of reach; check the network, or PIP_INDEX_URL (uv: UV_INDEX_URL)"
        )
    lines = [line.strip() for line in output.splitlines() if line.strip()] or ["it said nothing"]
    reasons = [line for line in lines if line.startswith("ERROR: ")] or lines  # pip ends with notes about them
    raise Missing(f"{failure}: {reasons[-1]}; the whole story: {' '.join(command)}")


def run(venv: Path, verb: str, arguments: list[str]) -> NoReturn:
    """Become the command, so that signals and the exit code are its own."""
    if verb == "demo":
        command = [str(venv / "bin" / "worker"), "demo", *arguments]
    else:
        os.chdir(PROJECT)
        command = [str(python(venv)), "-m", "pytest", *arguments]
        if not os.access(PROJECT, os.W_OK):
            command += ["-p", "no:cacheprovider"]
            os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = str(venv / "hypothesis")
    os.execv(command[0], command)  # noqa: S606


def python(venv: Path) -> Path:
    return venv / "bin" / "python"


def stamp(venv: Path, verb: str) -> Path:
    return venv / f"quickstart-{verb}.stamp"


def unfinished(venv: Path) -> Path:
    return venv / "quickstart-unfinished"


def fingerprint() -> str:
    """What the installation was made from: another pyproject.toml or another place means to install again."""
    return f"{PROJECT} {hashlib.sha256(PYPROJECT.read_bytes()).hexdigest()}\n"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
