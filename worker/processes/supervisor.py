"""The supervisor: starts the processes, replaces those that end, passes signals on, and answers for all of them."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable
from contextlib import ExitStack, suppress
from queue import Empty, SimpleQueue

from worker import clock, exits, log
from worker.config import Config
from worker.errors import ConfigError
from worker.observe import HttpServer, ServiceManager
from worker.processes.child import Child, how_it_ended
from worker.processes.grave import Grave
from worker.processes.pages import Pages
from worker.processes.post import Post
from worker.processes.shares import shares
from worker.runtime.reload import Reload
from worker.runtime.signals import is_request_to_stop, taken

logger = log.get_logger(__name__)

_LOOK = 0.1
# Another start mends neither a wrong setting nor a missing migration.
_HOPELESS = (exits.USAGE, exits.SCHEMA)
# After the third request to stop processes end by themselves at once; one that does not cannot.
_LAST_MOMENT = 5.0


def supervise(config: Config, *, reload: Reload, settings: Callable[[], Config]) -> int:
    """
    Run the processes of *config* until a signal, or until the queue is empty if it says so.

    Args:
        settings: Reads the settings again, after *reload* has found that they would work.

    Returns:
        0 when all have ended in order, else the worst of their exit codes (128 + the signal for one that was killed).

    Raises:
        ConfigError: The address of the pages cannot be had.
    """
    log.configure(config.log_format, config.log_level)
    requests: SimpleQueue[int] = SimpleQueue()
    with taken(requests.put), ExitStack() as stack:
        stack.callback(reload.close)
        supervisor = Supervisor(config, requests, reload, settings)
        stack.callback(supervisor.close)
        if config.http is not None:
            stack.enter_context(HttpServer(config.http, supervisor.pages.all()))
        code = supervisor.run()
    logger.info("supervisor.stopped", code=code)
    return code


class Supervisor:
    """Never waits for anybody: each pass looks at every process, and does what is due."""

    def __init__(
        self, config: Config, requests: SimpleQueue[int], reload: Reload, settings: Callable[[], Config]
    ) -> None:
        self._config = config
        self._requests = requests
        self._reload = reload
        self._settings = settings
        self._manager = ServiceManager(os.environ)
        self._posts = [Post(number, share) for number, share in enumerate(shares(config), start=1)]
        self._graves: list[Grave] = []
        self._num_stops = 0
        self._kill_at = float("inf")
        self._code = exits.OK
        self._has_worked = self._paused = self._rolling = False
        self._status = ""
        self.pages = Pages(
            lambda: [post.child for post in list(self._posts) if post.child is not None],
            lambda: [post.number for post in list(self._posts) if post.child is None and post.wanted is not None],
        )

    def run(self) -> int:
        """Until every process has ended for good; returns the worst exit code of the end."""
        logger.info("supervisor.started", processes=len(self._posts), pool_size=self._config.pool_size)
        try:
            while not self._is_over:
                self._run_once()
        except Exception:
            # Nobody would replace those that end; so all end in order, and the service manager starts anew.
            logger.critical("supervisor.failed", exc_info=True)
            self._leave()
            return exits.INTERNAL
        return self._code

    def _run_once(self) -> None:
        self._answer_requests()
        self._look()
        self._bury()
        self._roll()
        self._fill()
        self._tell()

    def _leave(self) -> None:
        """Let the processes drain with nothing of this but the requests to stop, which shorten their grace."""
        self._reload.close()
        left = self._children
        leave_by = clock.monotonic() + max((child.config.grace for child in left), default=0.0) + _LAST_MOMENT
        for child in left:
            if not child.is_stopping:  # or it would be the second request
                child.stop(signal.SIGTERM)
        while left and clock.monotonic() < leave_by:
            self._tell_of_leaving(len(left))
            with suppress(Empty):
                if is_request_to_stop(signum := self._requests.get(timeout=_LOOK)):
                    for child in left:
                        child.stop(signum)
            left = [child for child in left if child.ended() is None]

    def _tell_of_leaving(self, left: int) -> None:
        # A watchdog that is not fed would end it all; but this may be what has failed.
        with suppress(Exception):
            if (status := f"draining after a fault: {left} processes left") != self._status:
                self._status = status
                self._manager.entered("draining", status)
            self._manager.beaten(well=True)

    def close(self) -> None:
        """End what is left, which is nothing unless processes have not ended in the time that they had."""
        for child in self._children:
            child.kill()

    @property
    def _children(self) -> list[Child]:
        return [post.child for post in self._posts if post.child is not None]

    @property
    def _is_over(self) -> bool:
        return not self._children and (self._num_stops > 0 or all(post.wanted is None for post in self._posts))

    # Requests

    def _answer_requests(self) -> None:
        try:
            signum = self._requests.get(timeout=_LOOK)
        except Empty:
            return
        if is_request_to_stop(signum):
            self._stop(signum if signum == signal.SIGINT else signal.SIGTERM)
        elif signum == signal.SIGHUP:
            self._reload.ask()
        else:
            if signum in (signal.SIGTSTP, signal.SIGCONT):
                self._paused = signum == signal.SIGTSTP
            for child in self._children:
                child.send(signum)

    def _stop(self, signum: int) -> None:
        """The first makes them drain, the second shortens the grace, the third makes them leave at once."""
        self._num_stops += 1
        logger.info("supervisor.stopping", signal=signal.Signals(signum).name, number=self._num_stops)
        self._reload.close()
        if self._num_stops >= 3:
            self._kill_at = min(self._kill_at, clock.monotonic() + _LAST_MOMENT)
        for child in self._children:
            child.stop(signum)

    # Ends

    def _look(self) -> None:
        for post in self._posts:
            if (child := post.child) is None:
                continue
            if child.works:
                self._has_worked = True
            if clock.monotonic() > self._kill_at:
                child.kill()
            if (code := child.ended()) is not None:
                self._ended(post, child, code)
        self._posts = [post for post in self._posts if post.child is not None or post.wanted is not None]

    def _ended(self, post: Post, child: Child, code: int) -> None:
        as_asked = child.is_stopping
        reason = (
            "stopped" if as_asked else "recycled" if code == exits.RECYCLED else "ended" if code == 0 else "crashed"
        )
        # A signal that came before the process could hear it ends it as well, and nothing has begun there.
        in_order = code in (exits.OK, exits.RECYCLED) or (as_asked and not child.hears_signals and code < 0)
        if not in_order and child.worker_id is not None:
            self._graves.append(Grave(child.worker_id, how_it_ended(code), child.config.pool_size))
        again_in = post.vacate(child, as_asked=as_asked, recycled=code == exits.RECYCLED)
        self.pages.ended(child, reason)
        fields = {
            "process": child.number,
            "pid": child.pid,
            "how": how_it_ended(code),
            "worked": round(child.worked_for, 1),
        }
        if self._num_stops:
            self._code = max(self._code, 0 if in_order else code if code >= 0 else 128 - code)
            logger.info("process.ended", **fields)
        elif self._config.until_empty and code == exits.OK and not as_asked:
            post.wanted = None
            logger.info("process.ended", **fields)
        elif self._is_hopeless(code):
            self._give_up(code, fields)
        else:
            logger.log(logging.INFO if in_order else logging.ERROR, "process.ended", **fields, again_in=again_in)

    def _is_hopeless(self, code: int) -> bool:
        """Whether no other start will help, and nobody works meanwhile."""
        if any(child.works for child in self._children):
            return False
        return code in _HOPELESS or (code == exits.DATABASE and not self._has_worked)

    def _give_up(self, code: int, fields: dict[str, object]) -> None:
        logger.error("process.ended", **fields)
        self._code = max(self._code, code)
        self._stop(signal.SIGTERM)

    def _bury(self) -> None:
        sibling = next((child for child in self._children if child.works), None)
        for grave in self._graves:
            grave.attend(sibling)
        self._graves = [grave for grave in self._graves if not grave.is_done]

    # Starts

    def _fill(self) -> None:
        for post in self._posts:
            if not self._num_stops and post.is_due and self._has_room(post):
                post.fill()

    def _has_room(self, post: Post) -> bool:
        held = sum(each.size for each in self._posts) + sum(each.size for each in self._graves)
        return post.wanted is not None and held + post.wanted.pool_size <= self._config.pool_size

    # New code

    def _roll(self) -> None:
        """To new code and settings one process at a time: the next one ends when all before it work."""
        if self._num_stops:
            return
        if self._reload.is_approved():
            self._order_anew()
        if not self._rolling:
            return
        outdated = [post for post in self._posts if post.is_outdated]
        if not outdated:
            if all(post.is_filled for post in self._posts):
                self._rolling = False
                logger.info("reload.done")
            return
        crowded = any(post.is_due and not self._has_room(post) for post in self._posts)
        if any(child.is_stopping for child in self._children):
            return
        if crowded or all(post.is_filled or post.is_outdated for post in self._posts):
            child = outdated[0].child
            assert child is not None  # noqa: S101  # or it would not be outdated
            child.stop()

    def _order_anew(self) -> None:
        try:
            config = self._settings()
        except ConfigError as exc:
            logger.error("reload.refused", reason=str(exc))  # noqa: TRY400  (a person's mistake, told in a line)
            return
        if config.http != self._config.http:
            logger.warning(
                "reload.kept", setting="http", value=str(self._config.http), reason="start the service again"
            )
        self._config = config
        wanted = dict(enumerate(shares(config), start=1))
        for post in self._posts:
            post.wanted = wanted.pop(post.number, None)
        self._posts += [Post(number, share) for number, share in wanted.items()]
        self._posts.sort(key=lambda post: post.number)
        self._rolling = True
        self._status = ""
        self._manager.reloading()
        logger.info("reload.rolling", processes=config.processes, pool_size=config.pool_size)

    # What is told

    def _tell(self) -> None:
        children = self._children
        for child in children:
            if self._paused and child.stage == "running":
                child.send(signal.SIGTSTP)
        working = sum(post.is_filled for post in self._posts)
        if self._num_stops:
            stage, status = "draining", f"draining: {len(children)} processes left"
        else:
            stage = "running" if working == len(self._posts) else "starting"
            status = f"{stage}: {working} of {len(self._posts)} processes work"
        if status != self._status:
            self._status = status
            self._manager.entered(stage, status)
            logger.info("supervisor.stage", stage=stage, working=working, processes=len(self._posts))
        # One that has ended is being replaced, which a restart of all others would not speed up.
        self._manager.beaten(well=all(child.trouble is None for child in children))
