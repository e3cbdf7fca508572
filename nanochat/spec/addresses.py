"""An address that a user gave, by the name of the setting, option or variable that holds it."""

from __future__ import annotations

from nanochat.parse import Malformed
from nanochat.parse.address import Address, Kind, resolve
from nanochat.spec.errors import UserError


def given_address(text: str, kind: Kind, name: str) -> Address:
    """The resolved address; UserError, which begins with `name`, where it is none."""
    try:
        return resolve(text, kind)
    except Malformed as error:
        raise UserError(f"{name}: {error}") from None
