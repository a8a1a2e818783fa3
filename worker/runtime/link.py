"""The link between a supervisor and one of its processes: lines of JSON over a socket, told or asked."""

from __future__ import annotations

import itertools
import json
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

from worker import log

logger = log.get_logger(__name__)

# Who does not read for so long is given up; it is also how often a waiting reader wakes, for nothing.
_PATIENCE = 5.0

Fields = dict[str, Any]


class Link:
    """
    One end of it; `start` it, and it speaks and hears until `close`, or until the other end is gone.

    Args:
        end: A connected socket, which is this link's from now on.
        hear: Called on the link's thread with a subject and its fields. What it returns is the answer if one was asked
            for; a future is answered when it is done.
        gone: Called on that thread when the other end is gone, once.
    """

    def __init__(
        self, end: socket.socket, name: str, hear: Callable[[str, Fields], Any], gone: Callable[[], object]
    ) -> None:
        end.settimeout(_PATIENCE)
        self._end = end
        self._hear = hear
        self._gone = gone
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._asked: dict[int, Future[Any]] = {}
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Twice is harmless."""
        self._closed = True
        with suppress(OSError):
            self._end.shutdown(socket.SHUT_RDWR)
        if self._thread.ident is not None and self._thread is not threading.current_thread():
            self._thread.join(_PATIENCE)
        self._end.close()

    def tell(self, subject: str, **fields: Any) -> None:
        """Say it; to nobody, when the other end is gone."""
        self._send({"subject": subject, "fields": fields})

    def ask(self, subject: str, **fields: Any) -> Future[Any]:
        """What the other end answers; a ConnectionError when it is gone, or could not answer."""
        number, answer = next(self._numbers), Future[Any]()
        with self._lock:
            self._asked[number] = answer
        if not self._send({"subject": subject, "fields": fields, "number": number}):
            self._fail(number, "the other end is gone")
        return answer

    def _send(self, message: Fields) -> bool:
        line = json.dumps(message).encode() + b"\n"
        try:
            with self._lock:
                self._end.sendall(line)
        except OSError:
            # Half a line may have gone: nothing that follows could be understood.
            with suppress(OSError):
                self._end.shutdown(socket.SHUT_RDWR)
            return False
        return True

    def _run(self) -> None:
        for line in self._lines():
            try:
                self._handle(json.loads(line))
            except Exception:
                logger.exception("link.failed", link=self._thread.name)
        for number in list(self._asked):
            self._fail(number, "the other end is gone")
        if not self._closed:
            self._gone()

    def _lines(self) -> Iterator[bytes]:
        received = b""
        while True:
            try:
                data = self._end.recv(65536)
            except TimeoutError:
                continue
            except OSError:
                return
            if not data:
                return
            *lines, received = (received + data).split(b"\n")
            yield from lines

    def _handle(self, message: Fields) -> None:
        if "answer_to" in message:
            answer = self._asked.pop(message["answer_to"], None)
            if answer is None or answer.done():
                return
            if "error" in message:
                answer.set_exception(ConnectionError(message["error"]))
            else:
                answer.set_result(message["value"])
        elif "number" in message:
            self._answer(message)
        else:
            self._hear(message["subject"], message["fields"])

    def _answer(self, message: Fields) -> None:
        number = message["number"]
        try:
            value = self._hear(message["subject"], message["fields"])
        except Exception as exc:
            self._send({"answer_to": number, "error": repr(exc)})
            return
        if isinstance(value, Future):
            value.add_done_callback(lambda done: self._send(_outcome(number, done)))
        else:
            self._send({"answer_to": number, "value": value})

    def _fail(self, number: int, reason: str) -> None:
        answer = self._asked.pop(number, None)
        if answer is not None and not answer.done():
            answer.set_exception(ConnectionError(reason))


def _outcome(number: int, done: Future[Any]) -> Fields:
    if done.cancelled():
        return {"answer_to": number, "error": "it was given up"}
    if (error := done.exception()) is not None:
        return {"answer_to": number, "error": repr(error)}
    return {"answer_to": number, "value": done.result()}
