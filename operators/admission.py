"""From the object in the API server to a pipeline that can run: its ConfigMaps and store profile are looked up here.

The checks themselves are those of `nanochat run`, in `nanochat.pipeline.admission`.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

from nanochat.parse.json_text import read_json
from nanochat.pipeline.admission import Admitted, admit
from nanochat.spec.errors import UserError
from nanochat.spec.fields import nearest
from nanochat.spec.load import check_pipeline
from nanochat.spec.pipeline import Pipeline, PipelineSpec
from nanochat.spec.validation import MISTAKES, split_unknown, validate
from nanochat.storage.records import RECORD
from operators import resources
from operators.cluster import Cluster
from operators.config import Config, StoreProfile
from operators.kube_error import Object

CONFIG_MAP = "configmap://"
LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"


@dataclass(frozen=True, slots=True)
class Accepted(Admitted):
    """A pipeline that passed all checks, with its store."""

    profile: StoreProfile
    remark: str = ""  # what is to be told of a declaration that holds


class Graphs:
    """The graphs of the latest declarations, each of half a megabyte: pipelines with the same settings share one."""

    def __init__(self, most: int = 64) -> None:
        self._most, self._lock = most, threading.Lock()
        self._known: OrderedDict[bytes, Admitted] = OrderedDict()

    def admit(self, pipeline: Pipeline, contents: Mapping[str, str]) -> Admitted:
        """As `nanochat.pipeline.admission.admit`."""
        key = hashlib.sha256(f"{pipeline.spec.model_dump_json()} {sorted(contents.items())}".encode()).digest()
        with self._lock:
            known = self._known.pop(key, None)
        admitted = known or admit(pipeline, contents)
        with self._lock:
            self._known[key] = admitted
            while len(self._known) > self._most:
                self._known.popitem(last=False)
        return Admitted(pipeline.model_copy(update={"spec": admitted.spec}), admitted.graph)


def admit_object(found: Object, config: Config, cluster: Cluster, graphs: Graphs | None = None) -> Accepted:
    """Check a ChatPipeline; UserError with all that is wrong, KubeError where the API server does not answer."""
    meta = found["metadata"]
    pipeline = check_pipeline(
        {
            "apiVersion": found["apiVersion"],
            "kind": found["kind"],
            "metadata": {"name": meta["name"], "namespace": meta["namespace"]},
            "spec": found.get("spec"),
        },
        where="spec",
    )
    remark = _dropped(meta, pipeline.spec)
    try:
        admitted = (graphs or Graphs()).admit(pipeline, _contents(pipeline.spec, meta["namespace"], cluster))
        profile = profile_of(found.get("status") or {}, pipeline.spec.store, config)
        resources.check(config, admitted.spec, admitted.graph)
    except UserError as error:
        raise UserError("; ".join(filter(None, (error.message, remark)))) from None
    return Accepted(admitted.pipeline, admitted.graph, profile, remark)


def _dropped(meta: Object, spec: PipelineSpec) -> str:
    """The unknown fields that the API server left out of the declaration, as it does where kubectl does not validate.

    kubectl keeps what it was given in an annotation, which counts as long as nobody else has changed the spec.
    """
    try:
        given = read_json((meta.get("annotations") or {}).get(LAST_APPLIED, "null"), limit=RECORD)
        known, unknown = split_unknown(given["spec"], PipelineSpec, within="spec")
        declared = validate(known, PipelineSpec, where="spec")
    except (ValueError, TypeError, KeyError, UserError):
        return ""
    switches = {"suspend": spec.suspend, "cancel": spec.cancel}
    if not unknown or declared.model_copy(update=switches) != spec:
        return ""
    return f"the API server left out what kubectl gave: {'; '.join(unknown[:MISTAKES])}"


def profile_of(status: Object, store: str, config: Config) -> StoreProfile:
    """The store: where the pipeline began, whatever the profile `store` says by now; its credentials are today's."""
    declared = config.profiles.get(store)
    if declared is None:
        raise UserError(
            f"spec.store names the profile '{store}', which the controller does not have."
            f"{nearest(store, list(config.profiles))}"
        )
    frozen = status.get("profile")
    if not frozen:
        return declared
    return StoreProfile.model_validate(declared.to_yaml_dict() | frozen)


def _contents(spec: PipelineSpec, namespace: str, cluster: Cluster) -> dict[str, str]:
    """SHA-256 of the files that ConfigMaps hold: their content is part of keys, as a local file's is."""
    for setting, address in spec.sources.local():
        raise UserError(f"{setting} is {address}, a path: pods read from an address such as https:// or s3://")
    uri = spec.stages.mid.identity
    if not uri:
        return {}
    if not uri.startswith(CONFIG_MAP):
        if "://" not in uri or uri.startswith("file://"):
            raise UserError(
                f"stages.mid.identity is the local file {uri}, which a cluster does not have: `nanochat submit` "
                "uploads it, or name configmap://NAME/KEY or an s3:// address"
            )
        return {}
    name, _, key = uri.removeprefix(CONFIG_MAP).partition("/")
    if not name or not key:
        raise UserError(f"stages.mid.identity: {uri} must have the form configmap://NAME/KEY")
    data = cluster.config_value(namespace, name, key)
    if data is None:
        raise UserError(f"stages.mid.identity: there is no ConfigMap {namespace}/{name} with a key '{key}'")
    return {uri: hashlib.sha256(data).hexdigest()}
