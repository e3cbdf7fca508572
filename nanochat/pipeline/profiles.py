"""Store profiles on a laptop: what the name in `spec.store` means here.

`default` is the folder ~/.cache/nanochat, unless NANOCHAT_ROOT (a folder or s3://, gs://, abfs://...) and
NANOCHAT_ENDPOINT say otherwise. Further ones are in ~/.config/nanochat/profiles.yaml (or the file that
NANOCHAT_PROFILES names):

    team: {root: s3://our-bucket/nanochat, endpoint: https://s3.example.org, tracking: https://mlflow.example.org}
"""

from __future__ import annotations

import os
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from nanochat.spec.errors import UserError
from nanochat.spec.fields import nearest
from nanochat.storage import files
from nanochat.storage.failures import translate_errors
from nanochat.storage.store import Profile

FIELDS = ("root", "endpoint", "region", "anonymous", "tracking")


@dataclass(frozen=True, slots=True)
class ResolvedProfile:
    """A resolved profile: the store, MLflow's tracking URI, and the folders of this machine."""

    name: str
    profile: Profile
    tracking: str
    home: Path  # local state: locks, cached files, work folders

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
        with translate_errors(doing="writing", where=str(self.home)):
            files.create(self.home / "id", uuid.uuid4().hex[:12].encode())
        return self.identity

    def profile_dict(self) -> dict[str, Any]:
        return asdict(self.profile)


def resolve_profile(name: str = "default") -> ResolvedProfile:
    """The resolved that a profile name means on this machine; UserError where it is not declared."""
    home = Path(os.environ.get("NANOCHAT_HOME") or Path.home() / ".cache" / "nanochat").absolute()
    declared = _declared()
    data = dict(declared.get(name) or {})
    if name == "default":
        data.setdefault("root", str(home))
        if os.environ.get("NANOCHAT_ROOT"):
            data["root"] = os.environ["NANOCHAT_ROOT"]
        if os.environ.get("NANOCHAT_ENDPOINT"):
            data["endpoint"] = os.environ["NANOCHAT_ENDPOINT"]
    if "root" not in data:
        raise UserError(
            f"spec.store names the profile '{name}', which is not declared.{nearest(name, ['default', *declared])}"
        )
    root = str(data["root"])
    if "://" not in root:
        root = str(Path(root).expanduser().absolute())
        tracking_folder = Path(root)
    else:
        tracking_folder = home
    tracking = os.environ.get("MLFLOW_TRACKING_URI") or data.get("tracking") or f"sqlite:///{tracking_folder}/mlflow.db"
    profile = Profile(
        root=root,
        endpoint=data.get("endpoint"),
        region=data.get("region"),
        anonymous=bool(data.get("anonymous", False)),
    )
    return ResolvedProfile(name=name, profile=profile, tracking=tracking, home=home)


def _declared() -> dict[str, dict[str, Any]]:
    path = Path(os.environ.get("NANOCHAT_PROFILES") or Path.home() / ".config" / "nanochat" / "profiles.yaml")
    if not path.exists():
        return {}
    data = yaml.safe_load(path.read_text())
    if not isinstance(data, dict) or not all(isinstance(item, dict) for item in data.values()):
        raise UserError(f"{path} must map profile names to {{root, endpoint, region, tracking}}")
    for name, fields in data.items():
        for field in fields:
            if field not in FIELDS:
                raise UserError(f"{path}: unknown field '{name}.{field}'.{nearest(field, list(FIELDS))}")
    return data
