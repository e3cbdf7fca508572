"""Store profiles on a laptop: what the name in `spec.store` means here.

`default` is the folder ~/.cache/nanochat, unless NANOCHAT_ROOT (a folder or s3://, gs://, abfs://...) and
NANOCHAT_ENDPOINT say otherwise. Further ones are in ~/.config/nanochat/profiles.yaml (or the file that
NANOCHAT_PROFILES names):

    team: {root: s3://our-bucket/nanochat, endpoint: https://s3.example.org, tracking: https://mlflow.example.org}
    default: {prices: {gpuHour: 2.2, cpuHour: 0.04}}      # USD, of this machine
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nanochat.parse.address import SERVER, STORE, TRACKING, Kind, resolve
from nanochat.spec.addresses import given_address
from nanochat.spec.cost import Prices
from nanochat.spec.errors import UserError
from nanochat.spec.fields import Section, ServerAddress, StoreAddress, Text, TrackingAddress, nearest, setting
from nanochat.spec.validation import read_document, validate
from nanochat.storage import files
from nanochat.storage.store import Profile


class DeclaredProfile(Section):
    """A profile in the file of profiles."""

    root: StoreAddress | None = setting(None, "root is the place of all artifacts.")
    endpoint: ServerAddress | None = setting(None, "endpoint is the address of the object storage.")
    region: Text | None = setting(None, "region is the region of the bucket.")
    anonymous: bool = setting(False, "anonymous says whether requests are sent without a signature.")
    tracking: TrackingAddress | None = setting(None, "tracking is the tracking URI of MLflow.")
    prices: Prices = setting(Prices, "prices says what this machine costs.")


@dataclass(frozen=True, slots=True)
class ResolvedProfile:
    """A resolved profile: the store, MLflow's tracking URI, and the folders of this machine."""

    name: str
    profile: Profile
    tracking: str
    home: Path  # local state: locks, cached files, work folders
    prices: Prices = field(default_factory=Prices)  # of this machine

    @property
    def cache(self) -> Path:
        return self.home / "cache"

    @property
    def work(self) -> Path:
        return self.home / "work"

    @property
    def locks(self) -> Path:
        return self.home / "locks"

    @property
    def identity(self) -> str:
        """Tells this home from others that share a store; '' where it was never used."""
        try:
            return (self.home / "id").read_text(encoding="ascii").strip()[:64]
        except (OSError, ValueError):
            return ""

    def make_identity(self) -> str:
        """The identity, made where the home has none yet. UserError where the home cannot be written."""
        try:
            files.create(self.home / "id", uuid.uuid4().hex[:12].encode())
        except OSError as error:
            raise UserError(
                f"{self.home} cannot be written: {error.strerror}; set NANOCHAT_HOME to a folder that can"
            ) from None
        return self.identity

    def profile_dict(self) -> dict[str, Any]:
        return asdict(self.profile)


def resolve_profile(name: str = "default") -> ResolvedProfile:
    """The store and tracking that a profile name means on this machine; UserError where it is not declared."""
    home = home_folder()
    declared = _declared()
    found = declared.get(name, DeclaredProfile())
    root, endpoint = found.root, found.endpoint
    if name == "default":
        root = _address("NANOCHAT_ROOT", STORE) or root or str(home)
        endpoint = _address("NANOCHAT_ENDPOINT", SERVER) or endpoint
    if root is None:
        problem = "has no root" if name in declared else "is not declared"
        known = "" if name in declared else nearest(name, ["default", *declared])
        raise UserError(f"spec.store names the profile '{name}', which {problem}.{known}")
    address = resolve(root, STORE)
    tracking_folder = home if address.path is None else address.path.absolute()
    tracking = _address("MLFLOW_TRACKING_URI", TRACKING) or found.tracking or f"sqlite:///{tracking_folder}/mlflow.db"
    if tracking.startswith("sqlite:") and "?" in tracking:  # where the options of such an address begin
        raise UserError(f"{tracking}: SQLite's addresses take no '?': name another folder, or set MLFLOW_TRACKING_URI")
    profile = Profile(root=address.absolute(), endpoint=endpoint, region=found.region, anonymous=found.anonymous)
    return ResolvedProfile(name=name, profile=profile, tracking=tracking, home=home, prices=found.prices)


def _address(variable: str, kind: Kind) -> str | None:
    """The address that a variable holds; None where it is not set."""
    text = os.environ.get(variable)
    return given_address(text, kind, variable).text if text else None


def home_folder() -> Path:
    """The folder of what this user keeps on this machine; UserError where the user has no home."""
    try:
        return Path(os.environ.get("NANOCHAT_HOME") or "~/.cache/nanochat").expanduser().absolute()
    except RuntimeError:
        raise UserError("the home folder of this user is not known: set HOME, or NANOCHAT_HOME to a folder") from None


def _declared() -> Mapping[str, DeclaredProfile]:
    """The profiles of the file that is named, which has to be there, or else of the user's, which need not."""
    named = os.environ.get("NANOCHAT_PROFILES")
    try:
        path = Path(named or "~/.config/nanochat/profiles.yaml").expanduser()
    except RuntimeError:  # no home folder, and so none in it
        return {}
    if not named and not path.exists():
        return {}
    data = read_document(path)
    if data is None:
        return {}
    if not isinstance(data, dict) or not all(isinstance(item, dict) for item in data.values()):
        raise UserError(f"{path} must map profile names to {{root, endpoint, region, anonymous, tracking, prices}}")
    return {name: validate(fields, DeclaredProfile, where=str(path), within=name) for name, fields in data.items()}
