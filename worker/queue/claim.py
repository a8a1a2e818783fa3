"""A claimed job, as the database hands it out."""

from __future__ import annotations

from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

import msgspec
from dramatiq import Message


class Claim(NamedTuple):
    """
    A job under this worker's lease: proven by *token*, not decoded yet.

    Args:
        ahead: It was claimed before there was a slot for it.
        suspect: Two workers died while it ran, so it runs alone.
    """

    id: UUID
    token: int
    queue: str
    actor: str
    attempt: int
    enqueued_at: datetime
    args: str | None
    options: str | None
    message: bytes | None
    ahead: bool = False
    suspect: bool = False
    waited: float = 0.0
    """Seconds from when it was due to this claim, database clock."""

    @property
    def proof(self) -> tuple[UUID, int]:
        """What every write about this run is fenced by."""
        return self.id, self.token

    @property
    def holder(self) -> str:
        """What a checkout of this run is called; with the token, because a lost run and its successor may overlap."""
        return f"job {self.actor} {self.id} run {self.token}"

    def decode(self) -> Message[Any]:
        """
        The message of the job.

        Raises:
            Exception: Whatever the encoder makes of bytes that are not a message.
        """
        if self.message is not None:
            message: Message[Any] = Message.decode(self.message)
            message.options.pop("eta", None)
            return message
        return Message(
            queue_name=self.queue,
            actor_name=self.actor,
            args=(),
            kwargs=_decoded(self.args),
            options=_decoded(self.options),
            message_id=str(self.id),
            message_timestamp=int(self.enqueued_at.timestamp() * 1000),
        )


def _decoded(text: str | None) -> Any:
    return {} if text is None or text == "{}" else msgspec.json.decode(text)
