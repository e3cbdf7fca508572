"""The errors that a user can meet, each with one sentence that says what to change."""

from __future__ import annotations


class NanochatError(Exception):
    """Base of all errors with a message for people. `reason` is the stable name that outcomes and status carry."""

    reason = "Error"

    def __init__(self, message: str, *, detail: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.detail = detail


class UserError(NanochatError):
    """Something the user gave is wrong: it fails at once and is not tried again."""

    reason = "UserError"


class StorageError(NanochatError):
    """Storage could not be reached or refused: infrastructure, so it may be tried again."""

    reason = "Infrastructure"


class PeerLost(NanochatError):
    """A collective operation failed, most often because another process of the launch is gone."""

    reason = "Infrastructure"


class Diverged(NanochatError):
    """Training diverged: the loss is not finite or stayed far above its usual range."""

    reason = "Diverged"


class OutOfMemory(NanochatError):
    """The device or the host has too little memory for the device batch size."""

    reason = "OutOfMemory"


class Stopped(NanochatError):
    """The stage was asked to stop, has saved a checkpoint, and can be resumed."""

    reason = "Preempted"
