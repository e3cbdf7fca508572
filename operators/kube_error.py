"""The error of a request to the API server that fails.

    except KubeError as error:
        if error.is_unserved: ...

Whoever handles it decides by its codes (`status`, `code`, `kind`, `causes`), never by its message's words.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nanochat.spec.errors import NanochatError, UserError

Object = dict[str, Any]  # an object as the API server gives it


class NoCluster(UserError):
    """No cluster is configured here."""


@dataclass(frozen=True, slots=True)
class Cause:
    """One fault of an object that the API server refused, an entry of its Status's `details.causes`."""

    reason: str  # FieldValueInvalid, FieldValueRequired, ...
    field: str
    message: str


class KubeError(NanochatError):
    """A request failed. `status`, `code`, `kind` and `causes` are for programs, `said` and `message` for people.

    `status` is the HTTP status, 0 where no answer came. `code`, `kind` and `causes` are `reason`, `details.kind` and
    `details.causes` of the answer, a Kubernetes Status; a server behind the API server's proxy may give a `reason`
    and `detail` of its own. `code` is empty where the answer has none. `said` is the message of the answer alone.
    """

    reason = "Infrastructure"

    def __init__(
        self,
        message: str,
        *,
        said: str = "",
        status: int = 0,
        code: str = "",
        kind: str = "",
        causes: Sequence[Cause] = (),
    ) -> None:
        super().__init__(message)
        self.said, self.status, self.code, self.kind, self.causes = said or message, status, code, kind, tuple(causes)

    @property
    def is_passing(self) -> bool:
        """Whether the same request may succeed later: no answer, too many requests, or the server's own fault."""
        return self.status == 0 or self.status == 429 or self.status >= 500

    @property
    def is_unserved(self) -> bool:
        """Whether the API server has no such kind of object: its definition is not installed."""
        return self.status == 404 and not self.kind and self.code in ("", "NotFound")

    @classmethod
    def of_answer(cls, doing: str, status: int, body: bytes) -> KubeError:
        """The error that an answer means; `doing` is what was asked."""
        try:
            found = _dict(json.loads(body))
        except ValueError:
            found = {}
        details = _dict(found.get("details"))
        text = found.get("message") or found.get("detail") or body.decode(errors="replace").strip()[:300]
        said = str(text or f"HTTP status {status}")
        return cls(
            f"cannot {doing}: {said}",
            said=said,
            status=status,
            code=str(found.get("reason") or ""),
            kind=str(details.get("kind") or ""),
            causes=[
                Cause(cause.get("reason", ""), cause.get("field", ""), cause.get("message", ""))
                for cause in map(_dict, details.get("causes") or ())
            ],
        )


def _dict(value: object) -> Object:
    """A JSON object; an empty one for a value that is none, as servers behind the proxy may send."""
    return value if isinstance(value, dict) else {}
