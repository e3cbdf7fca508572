"""The hub by its own variables: HF_ENDPOINT is its address, HF_TOKEN what opens gated and private data there.

The token goes to that address alone: not to other sources, and not to where the hub redirects.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import SplitResult, urlsplit

from nanochat.parse import Malformed
from nanochat.parse.address import SERVER, resolve
from nanochat.spec.errors import UserError
from nanochat.spec.sources import PUBLIC_HUB, Sources

_TOKEN = re.compile(r"[!-~]{1,2000}")


@dataclass(frozen=True, slots=True)
class HubAccess:
    """Where the hub is, and the token for it ('' for none)."""

    endpoint: str = PUBLIC_HUB
    token: str = field(default="", repr=False)

    @classmethod
    def of(cls, environment: Mapping[str, str] = os.environ) -> HubAccess:
        """As the environment says; UserError where a variable cannot be what it should."""
        endpoint = environment.get("HF_ENDPOINT", "").strip().rstrip("/") or PUBLIC_HUB
        try:
            endpoint = resolve(endpoint, SERVER).text
        except Malformed:
            raise UserError(
                f"HF_ENDPOINT must be an address such as {PUBLIC_HUB}, without a password or query"
            ) from None
        token = environment.get("HF_TOKEN", "").strip()
        if token and not _TOKEN.fullmatch(token):
            raise UserError("HF_TOKEN is no token: it must be printable ASCII without blanks")
        return cls(endpoint, token)

    def located(self, sources: Sources) -> Sources:
        """The sources' addresses: their mirror, their own hub, or this one where they have none of their own."""
        found = sources.located()
        return found.model_copy(update={"hub": self.endpoint}) if found.hub == PUBLIC_HUB else found

    def serves(self, url: str) -> bool:
        """Whether an address is the hub's: of the same scheme, host and port."""
        try:
            return _origin(urlsplit(url)) == _origin(urlsplit(self.endpoint))
        except ValueError:
            return False

    def headers(self, url: str) -> dict[str, str]:
        """The headers of a request for an address."""
        return {"Authorization": f"Bearer {self.token}"} if self.token and self.serves(url) else {}

    def advice(self, url: str) -> str:
        """Advice for who is refused at an address."""
        if not self.serves(url):
            also = f"; HF_TOKEN goes to {self.endpoint} alone (HF_ENDPOINT)" if self.token else ""
            return f"it needs rights{also}"
        if self.token:
            return "accept its terms on the hub with the account of HF_TOKEN, and give that token the right to read it"
        return (
            "it is gated or private: accept its terms on the hub and set HF_TOKEN to a token that may read it (on a "
            "cluster in the profile's Secret)"
        )


def _origin(parts: SplitResult) -> tuple[str, str, int]:
    return parts.scheme, (parts.hostname or "").rstrip("."), _port(parts)


def _port(parts: SplitResult) -> int:
    return parts.port or {"http": 80, "https": 443}.get(parts.scheme, -1)
