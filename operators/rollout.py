"""The inference server follows the registry: the controller of its Deployment looks, applies and reports.

    rollout = RolloutController(config.serving, profile, cluster, changed=wake, stores=stores)
    delay = rollout.reconcile()      # seconds until the next look
    rollout.about(run, told_before=False)

What is decided is in `operators.rollout_decision`. What is remembered is in the Deployment: what was written in its pod
template, the rest in its annotation. They change in one request, so that a controller may be killed at any instant.
Where MLflow or the store does not answer nothing new is begun; a rollout that fails meanwhile is still taken back.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

from kubernetes.client import V1DeploymentStatus, V1Pod

from nanochat.model.artifact import ModelAddress, fingerprint, read_manifest
from nanochat.spec.errors import NanochatError, StorageError, UserError
from nanochat.storage.failures import Damaged
from nanochat.storage.store import Entry
from nanochat.tracking.registry import FOLDER_TAG, PROMOTED_TAG, Version
from nanochat.tracking.rest import light_registry
from operators import metrics
from operators.cluster import Cluster
from operators.config import Serving, StoreProfile
from operators.kube_error import KubeError, Object
from operators.rollout_decision import TOLD, Champion, Condition, Deployed, Memory, News, Target, decide
from operators.serving_pods import ask_readyz, why_unready
from operators.store_leases import StoreLeases
from operators.stores import Stores

log = logging.getLogger(__name__)

CONTAINER = "server"
MEMORY = "nanochat.dev/serving"  # the annotation
CHECK_SECONDS = 60.0  # between looks at the files of the served version
LONGEST_DELAY = 300.0  # seconds between looks while nothing answers
PATIENT = 8  # looks without an answer, as while MLflow starts beside the controller, before they get rarer

# ---- the Deployment -------------------------------------------------------------------------------------------------


def read(found: Any) -> Deployed:
    """The state of a Deployment, from its V1Deployment."""
    memory = Memory.parse((found.metadata.annotations or {}).get(MEMORY, ""))
    server = next((item for item in found.spec.template.spec.containers if item.name == CONTAINER), None)
    values = {item.name: item.value or "" for item in (server.env if server else None) or ()}
    told = {name: values.get(variable, "") for name, (variable, _) in TOLD.items()}
    current = Target(**told) if told["uri"] else None
    if current is not None and current.same(memory.written):
        current = memory.written
    rollout, why = _rollout(found)
    ready = bool((found.status or V1DeploymentStatus()).available_replicas)
    return Deployed(current, memory, rollout, why, found.metadata.uid, ready)


def _rollout(found: Any) -> tuple[Literal["going", "complete", "failed"], str]:
    """As `kubectl rollout status` judges it: a condition alone may still be that of the template before."""
    status, wanted = found.status or V1DeploymentStatus(), found.spec.replicas
    if (status.observed_generation or 0) < (found.metadata.generation or 0):
        return "going", ""
    if wanted and status.replicas == status.updated_replicas == status.available_replicas == wanted:
        return "complete", ""
    for condition in status.conditions or ():
        if condition.type == "Progressing" and condition.reason == "ProgressDeadlineExceeded":
            return "failed", (condition.message or "").rstrip(".")
    return "going", ""


def applied(settings: Serving, uid: str, target: Target, memory: Memory) -> Object:
    """The fields of the Deployment that are the controller's, for server-side apply: no model holds a part alone."""
    told = {name: getattr(target, name) for name in TOLD}
    env = [{"name": TOLD[name][0], "value": value} for name, value in told.items()]
    annotations = {TOLD[name][1]: value for name, value in told.items()}
    return {
        "metadata": {
            "name": settings.deployment,
            "namespace": settings.namespace,
            "uid": uid,  # another one of the name is left alone
            "annotations": {MEMORY: memory.to_text()},
        },
        "spec": {
            "template": {
                "metadata": {"annotations": annotations},
                "spec": {"containers": [{"name": CONTAINER, "env": env}]},
            }
        },
    }


# ---- the controller -------------------------------------------------------------------------------------------------


class RolloutController:
    """Of one Deployment. `reconcile` is called by one thread at a time, `about` by any."""

    def __init__(
        self,
        settings: Serving,
        profile: StoreProfile,
        cluster: Cluster,
        *,
        changed: Callable[[], None],
        stores: Stores,
        leases: StoreLeases | None = None,
        ask: Callable[[V1Pod], str] = ask_readyz,
    ) -> None:
        """`changed` is called when there is something new to tell; `leases` names what is served; `ask` is
        told why a pod is not ready, by itself."""
        self._leases, self._leased, self._stores = leases or StoreLeases(), frozenset[str](), stores
        self._settings, self._profile, self._cluster, self._changed = settings, profile, cluster, changed
        self._registry = light_registry(settings.tracking or profile.tracking or "")
        self._checked: tuple[Version, str, float] | None = None  # looked at last: its fingerprint, and when
        self._hashed: dict[Entry, str] = {}  # files that were changed after their manifest
        self._ask = ask
        self._news: News | None = None  # before the first look
        self._failures = 0
        self._trouble = ""

    def about(self, run: str, *, told_before: bool) -> Condition | None:
        """The news for the pipeline of a run's folder about the serving of its model."""
        return self._news.about(run, told_before=told_before) if self._news else None

    def reconcile(self) -> float:
        """Look and act once; returns the seconds until the next look. What fails is counted, and done by the next."""
        trouble = ""
        champion = None
        try:
            deployed = self._look()
            try:
                champion = self._champion(deployed)
            except NanochatError as error:
                trouble = f"the registry's champion is not known: {error.message}"
            self._roll_out(champion, deployed, trouble)
        except (KubeError, StorageError) as error:
            trouble = error.message
        if trouble:
            metrics.errors.labels(kind="serving").inc()
            if trouble != self._trouble:
                log.warning("serving: %s", trouble)
        self._trouble = trouble
        self._failures = self._failures + 1 if trouble else 0
        return min(LONGEST_DELAY, self._settings.poll_seconds * 2 ** min(max(0, self._failures - PATIENT), 8))

    def _look(self) -> Deployed:
        """The Deployment; where not all of its pods are ready, with what they say of it."""
        settings = self._settings
        found = self._cluster.deployment(settings.namespace, settings.deployment)
        if found is None:
            raise KubeError(f"there is no Deployment {settings.namespace}/{settings.deployment}")
        deployed = read(found)
        if found.spec is None or deployed.rollout == "complete" or deployed.current is None:
            return deployed
        pods = self._cluster.pods_of(settings.namespace, found.spec.selector)
        told = {TOLD[name][0]: getattr(deployed.current, name) for name in TOLD}
        return replace(deployed, why=why_unready(pods, CONTAINER, told, self._ask) or deployed.why)

    def _roll_out(self, champion: Champion | None, deployed: Deployed, trouble: str) -> None:
        settings = self._settings
        decision = decide(champion, deployed)
        if decision.write and decision.target is not None:
            self._cluster.apply_deployment(applied(settings, deployed.uid, decision.target, decision.memory))
            rejected = decision.memory.rejected
            if rejected is not None and rejected != deployed.memory.rejected:
                metrics.serving_rejected.inc()
                log.warning("serving: version %s did not become ready: %s", rejected.version, rejected.why)
            if not decision.target.same(deployed.current):
                log.info("serving: version %s (%s)", decision.target.version, decision.target.uri)
        self._lease_models(deployed.current, decision.target, decision.memory.good)
        metrics.set_serving(decision.target.version if decision.target else "")
        news = replace(decision.news, trouble=trouble)
        if news != self._news:
            self._news = news
            self._changed()

    def _lease_models(self, *targets: Target | None) -> None:
        """Name in the store what pods may load, also when they are made anew."""
        models = frozenset(target.uri for target in targets if target is not None)
        if models != self._leased:
            self._leases.serve(self._stores.open(self._profile), models)
            self._leased = models

    def _champion(self, deployed: Deployed) -> Champion | None:
        """The version with the alias; StorageError or UserError where the registry or the store cannot be asked."""
        found = self._registry.champion(self._settings.model)
        if found is None:
            return None
        champion = Champion(found.version, found.tags.get(FOLDER_TAG, ""), found.tags.get(PROMOTED_TAG, ""))
        champion = replace(champion, source=found.source)
        told = champion.among(deployed.current, deployed.memory.good)
        try:
            known = self._fingerprint(found, found.fingerprint or (told.fingerprint if told else ""))
        except (UserError, Damaged) as error:
            return replace(champion, refused=error.message)
        target = Target(found.source, found.version, known, champion.run, champion.promoted)
        return replace(champion, target=target)

    def _fingerprint(self, version: Version, wanted: str) -> str:
        """The fingerprint of a version whose artifact is whole; from time to time it is looked at again."""
        now = time.monotonic()
        last = self._checked if self._checked is not None and self._checked[0] == version else None
        if last is not None and now - last[2] < CHECK_SECONDS:
            return last[1]
        address = ModelAddress.parse(version.source)
        try:
            store = self._stores.open(self._profile, root=address.root)
            known = fingerprint(read_manifest(store, address, wanted=wanted, hashed=self._hashed))
        except Damaged:
            self._checked = None
            raise
        except StorageError:
            if last is None:
                raise
            return last[1]
        self._checked = (version, known, now)
        return known
