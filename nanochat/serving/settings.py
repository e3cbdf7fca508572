"""How a server treats requests, whatever model it serves.

ServerSettings.from_environment(os.environ, local=False)
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from nanochat.serving.gate import Hosts
from nanochat.spec.errors import UserError

NO_KEYS = "No key is asked for: everyone who reaches the server may use it. NANOCHAT_API_KEYS sets keys."

MOST_KEY_REQUESTS = 10_000
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s*?#@]+")


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """Defaults for requests, and the limits of the server."""

    temperature: float = 0.8
    top_k: int = 50
    api_keys: frozenset[str] = frozenset()  # none: everyone may ask
    key_requests: int | None = None  # that each key may make in any minute
    hosts: Hosts | None = None  # the names under which the server may be asked; None: under any
    origins: frozenset[str] = frozenset()  # of other web pages whose scripts may ask; "*": any
    queue_seconds: float = 60.0  # how long a request waits for its first token

    @classmethod
    def from_environment(cls, environment: Mapping[str, str], *, local: bool) -> ServerSettings:
        """With what NANOCHAT_API_KEYS, NANOCHAT_ALLOWED_HOSTS and NANOCHAT_ALLOWED_ORIGINS list, separated by commas.

        A `local` server, which listens on a loopback address, is asked under its own names alone; any other under all
        names, unless hosts are listed. NANOCHAT_KEY_REQUESTS_PER_MINUTE is a number.
        """
        keys, names = _listed(environment, "NANOCHAT_API_KEYS"), _listed(environment, "NANOCHAT_ALLOWED_HOSTS")
        hosts = Hosts(frozenset(name.lower() for name in names), addresses=not local) if local or names else None
        origins = frozenset(origin.lower() for origin in _listed(environment, "NANOCHAT_ALLOWED_ORIGINS"))
        for origin in origins:
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                has = f"NANOCHAT_ALLOWED_ORIGINS has {origin[:64]!r}"
                raise UserError(f"{has}, which is no origin; write it as https://chat.example.org, or * for any.")
        return cls(api_keys=keys, key_requests=_key_requests(environment), hosts=hosts, origins=origins)


def _key_requests(environment: Mapping[str, str]) -> int | None:
    name = "NANOCHAT_KEY_REQUESTS_PER_MINUTE"
    if (given := environment.get(name)) is None:
        return None
    if "NANOCHAT_API_KEYS" not in environment:
        raise UserError(f"{name} is set, and NANOCHAT_API_KEYS is not: it counts by key, so set that too.")
    if not re.fullmatch("[0-9]{1,5}", given.strip()) or not 1 <= int(given) <= MOST_KEY_REQUESTS:
        raise UserError(f"{name} is {given[:64]!r}; set it to a whole number from 1 to {MOST_KEY_REQUESTS}.")
    return int(given)


def _listed(environment: Mapping[str, str], name: str) -> frozenset[str]:
    """The items of a variable; UserError where it is set without any: who sets it does not mean everyone."""
    items = frozenset(item.strip() for item in environment.get(name, "").split(",") if item.strip())
    if name in environment and not items:
        raise UserError(f"{name} is set and lists nothing; list at least one item, separated by commas, or unset it.")
    if not all(item.isascii() and item.isprintable() for item in items):
        raise UserError(f"{name} has a character outside of printable ASCII, which no client can send; leave it out.")
    return items
