"""Who asks for what, as far as the queue has to know a request again that it sent away.

await visitor(request, by_key=True)
"""

from __future__ import annotations

import ipaddress
from contextlib import suppress

from fastapi import Request

from nanochat.serving.reservations import Visitor


async def visitor(request: Request, *, by_key: bool) -> Visitor:
    """The client, by its key, which the gate has checked, or else by its address; and the request, by its body."""
    client = request.client.host if request.client else ""
    if by_key:
        client = request.headers["Authorization"].partition(" ")[2].strip()
    else:
        with suppress(ValueError):
            client = _network(ipaddress.ip_address(client))
    return Visitor(client, hash(await request.body()))


def _network(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
    """The address; of IPv6 the 64 bits that are one client's, who may choose the others freely."""
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    return str(address.ipv4_mapped or ipaddress.ip_network((address, 64), strict=False))
