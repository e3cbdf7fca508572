"""Who may read a pipeline's stored logs and report through the controller: whoever may read the pipeline itself.

    told = publish(service, status.get("access"), now)      # for its status: the same while that is good
    accepts(status.get("access"), token, now)

The controller draws a token and publishes it in the pipeline's status, so that the API server's own rights in the
namespace decide. It is good for two days and replaced after one. A controller that starts finds it there and keeps it:
a restart writes no status anew.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Mapping
from datetime import UTC, datetime

DAY = 86_400
INVALID_TOKEN = "InvalidToken"  # the endpoint's reason where it refuses a token
TOKEN_BYTES = 32


def publish(service: str, before: Mapping[str, str] | None, now: float) -> Mapping[str, str]:
    """The address of the controller's Service with the pipeline's token: `before`, what its status says, where that is
    good for another day at least."""
    if before and before.get("service") == service and _left(before, now) > DAY:
        return before
    ends = datetime.fromtimestamp(int(now) + 2 * DAY, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {"service": service, "token": secrets.token_hex(TOKEN_BYTES), "expiresAt": ends}


def accepts(published: Mapping[str, str] | None, token: str, now: float) -> bool:
    """Whether a token is the one that a pipeline's status has, and has not expired."""
    if not published or _left(published, now) <= 0:
        return False
    return hmac.compare_digest(published["token"].encode(), token.encode())


def _left(published: Mapping[str, str], now: float) -> float:
    """Seconds for which a token is good; 0 where no controller can have published it so."""
    try:
        left = datetime.fromisoformat(published["expiresAt"]).timestamp() - now
    except (KeyError, ValueError):
        return 0.0
    return left if left <= 2 * DAY and len(published.get("token", "")) == 2 * TOKEN_BYTES else 0.0
