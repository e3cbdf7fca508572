"""Lets the inference server follow the registry: looks at the alias and the Deployment, decides, applies, tells.

    follower = Follower(config.serving, profile, cluster, changed=wake_all)
    delay = follower.turn()          # seconds until the next look
    follower.about(run, told_before=False)

Where MLflow or the store does not answer nothing new is begun; a rollout that fails meanwhile is still taken back.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from nanochat.model.artifact import ModelAddress, fingerprint, read_manifest
from nanochat.spec.errors import NanochatError, UserError
from nanochat.storage.failures import Damaged
from nanochat.storage.store import Profile, open_store
from nanochat.tracking.registry import FOLDER_TAG, PROMOTED_TAG, Registry
from operators import metrics, serving
from operators.cluster import Cluster, ClusterError
from operators.config import Serving, StoreProfile
from operators.serving import Champion, Condition, News, Target

log = logging.getLogger(__name__)

LONGEST_DELAY = 300.0  # seconds between looks while nothing answers


class Follower:
    """Of one Deployment. `turn` is called by one thread at a time, `about` by any."""

    def __init__(
        self, settings: Serving, profile: StoreProfile, cluster: Cluster, *, changed: Callable[[], None]
    ) -> None:
        """`changed` is called when there is something new to tell."""
        self._settings, self._profile, self._cluster, self._changed = settings, profile, cluster, changed
        self._registry = Registry(settings.tracking or profile.tracking or "")
        self._fingerprints: dict[str, str] = {}  # of the address that was looked at last
        self._news = News()
        self._failures = 0
        self._trouble = ""

    def about(self, run: str, *, told_before: bool) -> Condition | None:
        """What the pipeline of a run's folder is told of the serving of its model."""
        return self._news.about(run, told_before=told_before)

    def turn(self) -> float:
        """Look and act once; returns the seconds until the next look. What fails is counted, and done by the next."""
        trouble = ""
        champion = None
        try:
            champion = self._champion()
        except NanochatError as error:
            trouble = f"the registry's champion is not known: {error.message}"
        try:
            self._follow(champion)
        except ClusterError as error:
            trouble = error.message
        if trouble:
            metrics.errors.labels(kind="serving").inc()
            if trouble != self._trouble:
                log.warning("serving: %s", trouble)
        self._trouble = trouble
        self._failures = self._failures + 1 if trouble else 0
        return min(LONGEST_DELAY, self._settings.poll_seconds * 2 ** min(self._failures, 8))

    def _follow(self, champion: Champion | None) -> None:
        settings = self._settings
        found = self._cluster.deployment(settings.namespace, settings.deployment)
        if found is None:
            raise ClusterError(f"there is no Deployment {settings.namespace}/{settings.deployment}")
        deployed = serving.read(found)
        decision = serving.decide(champion, deployed)
        if decision.write:
            assert decision.target is not None
            self._cluster.apply_deployment(serving.applied(found, decision))
            rejected = decision.memory.rejected
            if rejected is not None and rejected != deployed.memory.rejected:
                metrics.serving_rejected.inc()
                log.warning("serving: version %s did not become ready: %s", rejected.version, rejected.why)
            if not decision.target.same(deployed.current):
                log.info("serving: version %s (%s)", decision.target.version, decision.target.uri)
        metrics.set_serving(decision.target.version if decision.target else "")
        if decision.news != self._news:
            self._news = decision.news
            self._changed()

    def _champion(self) -> Champion | None:
        """The version with the alias; StorageError or UserError where the registry or the store cannot be asked."""
        found = self._registry.champion(self._settings.model)
        if found is None:
            return None
        run, promoted = found.tags.get(FOLDER_TAG, ""), found.tags.get(PROMOTED_TAG, "")
        try:
            address = ModelAddress.parse(found.source)
        except UserError as error:
            return Champion(found.version, run, promoted, refused=error.message)
        try:
            known = self._fingerprints.get(found.source) or self._fingerprint(address)
        except Damaged as damage:
            return Champion(found.version, run, promoted, refused=damage.message)
        self._fingerprints = {found.source: known}
        return Champion(found.version, run, promoted, Target(found.source, found.version, known, run, promoted))

    def _fingerprint(self, address: ModelAddress) -> str:
        own = self._profile
        profile = Profile(root=address.root, endpoint=own.endpoint, region=own.region, anonymous=own.anonymous)
        credentials = Path(own.credentials) if own.credentials else None
        return fingerprint(read_manifest(open_store(profile, patient=False, credentials=credentials), address))
