"""Who may read a pipeline's stored logs and report through the controller: whoever may read the pipeline itself.

The controller publishes a token in the pipeline's status, so that the API server's own rights in the namespace decide.
A token is an HMAC-SHA256 of the pipeline's uid and the day, under a key that each controller process draws anew; it is
good on its day and the next.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass

DAY = 86_400
INVALID_TOKEN = "InvalidToken"  # the endpoint's reason where it refuses a token


@dataclass(frozen=True, slots=True)
class Access:
    """The tokens of one controller process."""

    key: bytes

    def token(self, uid: str, now: float) -> str:
        """The token of a pipeline on the day of `now` (seconds since 1970)."""
        return self._token(uid, int(now // DAY))

    def accepts(self, uid: str, token: str, now: float) -> bool:
        """Whether a token is the pipeline's, of this day or the one before."""
        day = int(now // DAY)
        return any(hmac.compare_digest(self._token(uid, d).encode(), token.encode()) for d in (day, day - 1))

    def _token(self, uid: str, day: int) -> str:
        return hmac.new(self.key, f"{uid} {day}".encode(), hashlib.sha256).hexdigest()
