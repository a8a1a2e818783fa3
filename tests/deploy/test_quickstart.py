"""The quickstart on machines that lack something: one line that says what to do; and it never does work twice."""

from __future__ import annotations

import ast
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deploy.machine import TIMEOUT, Machine, as_a_stranger
from tests.embedded.processes import PACKAGE
from tests.waiting import wait_until


@pytest.fixture
def machine() -> Iterator[Machine]:
    root = Path(tempfile.mkdtemp(prefix="carpool-quickstart-"))
    root.chmod(0o755)  # so that other users may pass, unlike pytest's own folders
    machine = Machine(root)
    yield machine
    machine.project.chmod(0o755)  # `as_a_stranger` may have closed it
    shutil.rmtree(root)


def test_every_word_of_it_is_understood_by_python_3_9() -> None:
    source = (PACKAGE / "deploy" / "quickstart.py").read_text()

    ast.parse(source, feature_version=(3, 9))


@pytest.mark.parametrize("arguments", [(), ("demmo",)])
def test_an_unknown_verb_gets_the_usage(machine: Machine, arguments: tuple[str, ...]) -> None:
    done = machine.run(*arguments)

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("usage: python3 deploy/quickstart.py demo")


def test_asking_for_help_is_not_an_error(machine: Machine) -> None:
    done = machine.run("--help")

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage:")


def test_an_old_python_is_told_which_one_is_needed(machine: Machine) -> None:
    machine.with_python_changed_by("sys.version_info = (3, 9, 2, 'final', 0); sys.version = '3.9.2 (main)'")

    done = machine.run("demo")

    assert done.returncode == 1
    assert done.stderr == (
        f"quickstart: Python 3.11 or newer is needed, {sys.executable} is 3.9.2; install it, or install uv\n"
    )


def test_an_old_python_names_a_newer_one_on_this_machine(machine: Machine) -> None:
    machine.with_python_changed_by("sys.version_info = (3, 9, 2, 'final', 0); sys.version = '3.9.2 (main)'")
    (machine.bin / "python3.12").symlink_to(sys.executable)

    done = machine.run("test")

    assert done.stderr.endswith("; run: python3.12 deploy/quickstart.py test\n")


def test_an_old_python_hands_over_to_one_that_uv_finds(machine: Machine) -> None:
    machine.with_uv().with_python_changed_by("sys.version_info = (3, 9, 2, 'final', 0)")

    machine.run("demo", "--slots", "3")

    script = machine.project / "deploy" / "quickstart.py"
    assert machine.calls.read_text() == f"run --no-project --python >=3.11 {script} demo --slots 3\n"


def test_a_python_without_ensurepip_is_told_the_package_to_install(machine: Machine) -> None:
    machine.with_python_changed_by("sys.modules['ensurepip'] = None")

    done = machine.run("demo")

    assert done.returncode == 1
    assert done.stderr == (
        "quickstart: this Python cannot make virtual environments;"
        f" Debian, Ubuntu: apt install python3.{sys.version_info.minor}-venv; or install uv\n"
    )


def test_an_index_out_of_reach_is_told_in_one_line(machine: Machine) -> None:
    # A port of this machine where nothing listens: refused at once.
    machine.environment |= {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_RETRIES": "1"}

    done = machine.run("demo")

    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(
        "quickstart: the installation failed: the package index is out of reach; check the network"
    )


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("error: failed to write: No space left on device (os error 28)", "no disk space under {project}; free 400 MB"),
        ("error: client error (Connect)", "the package index is out of reach; check the network"),
        ("error: something new", "error: something new; the whole story: {bin}/uv pip install"),
    ],
)
def test_a_failing_installer_is_told_by_its_reason(machine: Machine, said: str, told: str) -> None:
    machine.with_uv().environment["UV_FAILS"] = said

    done = machine.run("demo")

    assert done.returncode == 1
    expected = told.format(project=machine.project, bin=machine.bin)
    assert done.stderr.splitlines()[-1].startswith(f"quickstart: the installation failed: {expected}")


def test_a_full_disk_is_told_before_anything_is_made(machine: Machine) -> None:
    if os.geteuid() != 0 or not shutil.which("unshare"):
        pytest.skip("only root can mount a small disk")
    # A small disk of this process's own, which is gone with it.
    script = 'mount -t tmpfs -o size=8m tmpfs "$1" && cp -r "$0"/. "$1" && exec "$2" "$1/deploy/quickstart.py" demo'
    small = machine.project.parent / "small"
    small.mkdir()
    command = ["unshare", "--mount", "sh", "-c", script, str(machine.project), str(small), sys.executable]

    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT)

    if "mount:" in done.stderr or "unshare:" in done.stderr:
        pytest.skip("this machine does not let root mount")
    assert done.returncode == 1
    assert done.stderr == f"quickstart: no disk space: 8 MB free under {small}, 400 MB are needed; free some\n"


def test_a_quickstart_without_its_project_says_where_it_belongs(machine: Machine) -> None:
    (machine.project / "pyproject.toml").unlink()

    done = machine.run("demo")

    assert (done.returncode, done.stderr) == (
        1,
        f"quickstart: no pyproject.toml in {machine.project}; run this file where it lies in the project's checkout\n",
    )


def test_the_command_gets_the_arguments_and_gives_the_exit_code(machine: Machine) -> None:
    done = machine.with_uv().run("demo", "--slots", "3")

    assert (done.stdout, done.returncode) == ("worker demo --slots 3\n", 7)


def test_a_second_run_makes_and_installs_nothing(machine: Machine) -> None:
    machine.with_uv().run("demo")

    done = machine.run("demo")

    assert (machine.called("venv"), machine.called("pip")) == (1, 1)
    assert (done.stdout, done.stderr) == ("worker demo\n", "")


def test_a_changed_pyproject_is_installed_again_into_the_same_environment(machine: Machine) -> None:
    machine.with_uv().run("demo")
    with (machine.project / "pyproject.toml").open("a") as file:
        file.write("# changed\n")

    machine.run("demo")

    assert (machine.called("venv"), machine.called("pip")) == (1, 2)


def test_an_environment_that_a_kill_left_half_made_is_made_again(machine: Machine) -> None:
    machine.with_uv().environment["UV_HANGS"] = "yes"
    with machine.start("demo", start_new_session=True) as process:
        wait_until(lambda: machine.calls.exists() and machine.called("pip"), TIMEOUT, "the installation")
        os.killpg(process.pid, signal.SIGKILL)
    del machine.environment["UV_HANGS"]

    done = machine.run("demo")

    assert (machine.called("venv"), done.stdout) == (2, "worker demo\n")


def test_an_environment_whose_python_is_gone_is_made_again(machine: Machine) -> None:
    machine.with_uv().run("demo")
    (machine.project / ".venv" / "bin" / "python").unlink()

    assert machine.run("demo").stdout == "worker demo\n"


def _hearing_ctrl_c() -> None:
    """A shell's job in the background is deaf to it, and so is all that it starts, this test included."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_ctrl_c_while_installing_ends_it_without_a_traceback(machine: Machine) -> None:
    machine.with_uv().environment["UV_HANGS"] = "yes"
    with machine.start("demo", start_new_session=True, preexec_fn=_hearing_ctrl_c) as process:
        wait_until(lambda: machine.calls.exists() and machine.called("pip"), TIMEOUT, "the installation")

        os.killpg(process.pid, signal.SIGINT)
        _, stderr = process.communicate(timeout=TIMEOUT)

    assert (process.returncode, "Traceback" in stderr) == (130, False)


def test_a_checkout_of_somebody_else_gets_an_environment_in_the_users_cache(machine: Machine) -> None:
    user = as_a_stranger(machine.with_uv())
    cache = machine.project.parent / "cache"
    cache.mkdir(mode=0o777)
    cache.chmod(0o777)
    machine.environment["XDG_CACHE_HOME"] = str(cache)

    done = machine.run("demo", **user)

    assert done.stdout == "worker demo\n"
    assert list(cache.glob("carpool/venv-*"))


def test_without_any_folder_to_write_it_says_which_setting_helps(machine: Machine) -> None:
    user = as_a_stranger(machine.with_uv())
    machine.environment["XDG_CACHE_HOME"] = "/proc/nowhere"

    done = machine.run("demo", **user)

    assert (done.returncode, done.stderr) == (
        1,
        f"quickstart: neither {machine.project} nor /proc/nowhere/carpool can be written;"
        " set XDG_CACHE_HOME to a folder that can\n",
    )
