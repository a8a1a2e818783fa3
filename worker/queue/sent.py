"""What a send returns."""

from __future__ import annotations

import time
from typing import Any, TypeVar
from uuid import UUID

from dramatiq import Message

R = TypeVar("R", covariant=True)


class Sent(Message[R]):
    """
    A message as it was sent: Dramatiq's, and whether there is a new job.

    `is_new` is False when a job with the same unique key was there: nothing was enqueued, `message_id` is the id of
    that job, and what became of it, its unique key's `on_conflict` says.
    """

    is_new = True
    # Of a message that was made for this send: its id as the row has it.
    row_id: UUID | None = None

    @classmethod
    def fresh(
        cls,
        queue_name: str,
        actor_name: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: dict[str, Any],
        row_id: UUID,
    ) -> Sent[R]:
        """A message of now, under the id *row_id*."""
        sent = cls.__new__(cls)
        # Beside the constructor of a frozen class, which takes a call for each field.
        sent.__dict__.update(
            queue_name=queue_name,
            actor_name=actor_name,
            args=args,
            kwargs=kwargs,
            options=options,
            message_id=str(row_id),
            message_timestamp=int(time.time() * 1000),
            row_id=row_id,
        )
        return sent

    @classmethod
    def of(cls, message: Message[R], *, existing: str | None = None) -> Sent[R]:
        """*message*; with an *existing* job's id, as one that this job stands for."""
        sent = cls(**message.asdict())
        if existing is not None:
            object.__setattr__(sent, "message_id", existing)
            object.__setattr__(sent, "is_new", False)
        return sent

    # Messages compare within one class only, and this is not another kind of message.
    def __eq__(self, other: object) -> bool:
        return isinstance(other, Message) and bool(self.asdict() == other.asdict())

    __hash__: Any = None  # the same as a Message's, whose options cannot be hashed
