"""A library of Node: a script beside the peer does the work, and tells the tally of this process line by line."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from tests.bench.peer import SLOTS, Peer
from tests.bench.server import process_cpu_seconds

_PATIENCE = 60.0


class NodeSide(Peer):
    """
    Its script is called with MODE URL SLOTS and what the mode needs, and says a line on stdout for each thing done.

    Modes: "prepare"; "fill WORK NUMBER"; "send NUMBER SIZE", which says the seconds it took; "work WORK" until it is
    told to end, which says "ran" or "late SECONDS" for each job; "pace", which says "connected", and "sent" for each
    job, told by a line "WORK ARGUMENT" on stdin.
    """

    store = "Postgres"
    script: ClassVar[Path]

    process: subprocess.Popen[str] | None = None

    def __init__(self, *rest: Any) -> None:
        super().__init__(*rest)
        modules = self.places.node_modules
        for package in self.packages:
            if modules is None or not Path(modules, package).is_dir():
                raise ImportError(f"no {package} in --node-modules (`npm install {package}` makes such a folder)")
        # A node in the folder comes first: packages may want a newer one than the machine has.
        node = shutil.which("node", path=f"{modules}/.bin:{os.environ.get('PATH', '')}")
        if node is None:
            raise ImportError("there is no `node` in the PATH")
        self.node, self.modules = node, str(modules)

    def versions(self) -> dict[str, str]:
        said = subprocess.run([self.node, "--version"], capture_output=True, text=True, check=True, timeout=_PATIENCE)
        found = {"node": said.stdout.strip().removeprefix("v")}
        for package in self.packages:
            found[package] = json.loads(Path(self.modules, package, "package.json").read_text())["version"]
        return found

    def prepare(self) -> None:
        self.ask("prepare")

    def fill(self, work: str, number: int) -> None:
        self.ask("fill", work, number)

    @contextmanager
    def working(self, work: str) -> Iterator[None]:
        with self._start("work", work.removeprefix("counted ")) as self.process:
            listener = threading.Thread(target=self._listen, args=[self.process])
            listener.start()
            try:
                yield
            finally:
                self.process.terminate()
                self.process.wait(_PATIENCE)
                listener.join(_PATIENCE)

    @contextmanager
    def sending(self) -> Iterator[Callable[[str, float], None]]:
        with self._start("pace") as process:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdout.readline()  # it is connected

            def send(work: str, argument: float) -> None:
                print(work, argument, file=process.stdin, flush=True)
                process.stdout.readline()  # type: ignore[union-attr]

            yield send
            process.stdin.close()
            process.wait(_PATIENCE)

    def enqueue(self, number: int) -> float:
        return float(self.ask("send", number, 1))

    def bulk(self, number: int, size: int) -> float:
        return float(self.ask("send", number, size))

    def cpu_seconds(self) -> float:
        return 0.0 if self.process is None else process_cpu_seconds(self.process.pid)

    def ask(self, *command: object) -> str:
        with self._start(*command) as process:
            said, _ = process.communicate(timeout=_PATIENCE)
        if process.returncode:
            raise RuntimeError(f"node ended with {process.returncode} in {command}")
        return said

    def _listen(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("late "):
                self.tally.delays.append(float(line.split()[1]))
            self.tally.count()

    def _start(self, *command: object) -> subprocess.Popen[str]:
        mode, *rest = map(str, command)
        return subprocess.Popen(
            [self.node, str(self.script), mode, self.places.postgres, str(SLOTS), *rest],
            env={**os.environ, "NODE_PATH": self.modules},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
