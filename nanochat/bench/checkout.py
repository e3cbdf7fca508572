"""A checkout to measure against: karpathy/nanochat, or another commit of this project."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nanochat.spec.errors import UserError

# A file that only one of the two has.
KARPATHY, OWN = Path("nanochat/gpt.py"), Path("nanochat/stages/session.py")


@dataclass(frozen=True, slots=True)
class Checkout:
    """A folder with the code of a peer; `own` is another commit of this project."""

    root: Path
    own: bool

    @property
    def name(self) -> str:
        return self.root.name


def find_checkout(folder: Path | None) -> Checkout | None:
    """The checkout in a folder; UserError where there is none."""
    if folder is None:
        return None
    root = folder.expanduser().absolute()
    if (root / KARPATHY).is_file():
        return Checkout(root, own=False)
    if (root / OWN).is_file():
        return Checkout(root, own=True)
    raise UserError(
        f"--peer {folder} is no checkout of karpathy/nanochat: it has no {KARPATHY}; clone it and name its folder"
    )
