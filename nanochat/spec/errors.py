"""The errors that a user can meet, each with one sentence that says what to change."""

from __future__ import annotations

import importlib.util
import sys


def first_line(error: Exception) -> str:
    """The first line of what a library says, or the error's name where it says nothing."""
    return next(iter(str(error).splitlines()), type(error).__name__)


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


def is_own(module: str | None) -> bool:
    """Whether a module is the project's, which is never missing where it is installed whole."""
    return (module or "").partition(".")[0] in ("nanochat", "operators")


NO_TORCH = "PyTorch is not installed"
TORCH_ADVICE = f"run 'make setup', or install the extra 'local' of nanochat-kubernetes into {sys.prefix}"


def require_torch() -> None:
    """UserError where PyTorch is not installed."""
    if importlib.util.find_spec("torch") is None:
        raise UserError(f"{NO_TORCH}: {TORCH_ADVICE}")


def missing_module(error: ImportError) -> str:
    """One sentence about a module that cannot be imported."""
    name = (error.name or "").partition(".")[0]
    if name == "torch" and isinstance(error, ModuleNotFoundError):
        return f"{NO_TORCH}: {TORCH_ADVICE}"
    if isinstance(error, ModuleNotFoundError) and name:
        return (
            f"the Python module '{name}' is missing: install the package that has it into {sys.prefix}, or on a "
            "cluster into the image that spec.pods.image names"
        )
    return f"a Python module cannot be loaded: {error}: install its package anew in {sys.prefix}"
