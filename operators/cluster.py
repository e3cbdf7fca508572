"""The controller's single requests to the API server, but for jobs, which are a backend's (`operators.job_backend`).

    cluster = Cluster(kube)
    cluster.patch_status(namespace, name, status, uid=uid)

Every method raises KubeError where the API server refuses or does not answer. An object that does not exist is None.
"""

from __future__ import annotations

from kubernetes.client import CoreV1Event, V1ConfigMap, V1Deployment, V1LabelSelector, V1Pod

from operators.kube_client import CONFIG_MAPS, DEPLOYMENTS, EVENTS, MERGE, PIPELINES, PODS, KubeClient
from operators.kube_error import KubeError, Object
from operators.kube_models import from_json, to_json
from operators.kueue import LOCAL_QUEUES
from operators.objects import Condition, Pod, seconds

FIELD_MANAGER = "nanochat-controller"


class Cluster:
    """The API server's calls; safe to use from several threads."""

    def __init__(self, kube: KubeClient) -> None:
        self._kube = kube

    def patch_status(self, namespace: str, name: str, status: Object, *, uid: str, only: str = "") -> Object | None:
        """Replace the fields of a pipeline's status; returns the pipeline, None where that one is gone or has another
        resourceVersion than `only`, if that is given."""
        try:
            return self._kube.json(
                "patch",
                PIPELINES.path(namespace, name, "status"),
                what=f"the status of ChatPipeline {namespace}/{name}",
                body={"metadata": {"uid": uid, **({"resourceVersion": only} if only else {})}, "status": status},
                content_type=MERGE,
            )
        except KubeError as error:
            if error.status in (404, 409):  # another one of the name has another uid
                return None
            raise

    def has_queue(self, namespace: str, name: str) -> bool:
        """Whether there is a LocalQueue."""
        return self._kube.get(LOCAL_QUEUES, namespace, name) is not None

    def warning(self, namespace: str, uid: str) -> Condition | None:
        """The newest Event about an object, by its uid, where that is a warning; but for those of the scheduler."""
        listed = self._kube.listing(EVENTS, namespace, fieldSelector=f"involvedObject.uid={uid}").items
        events = [event for body in listed if (event := from_json(CoreV1Event, body)).reason != "FailedScheduling"]
        newest = max(events, key=_when, default=None)
        if newest is None or newest.type != "Warning":
            return None
        return Condition(newest.reason or "", newest.message or "")

    def config_value(self, namespace: str, name: str, key: str) -> bytes | None:
        """The bytes of one key of a ConfigMap; None where it is missing."""
        found = self._kube.get(CONFIG_MAPS, namespace, name) or {}
        text = (found.get("data") or {}).get(key)
        return None if text is None else text.encode()

    def has_config_map(self, namespace: str, name: str) -> bool:
        """Whether there is a ConfigMap."""
        return self._kube.get(CONFIG_MAPS, namespace, name) is not None

    def replace_config_map(self, config_map: V1ConfigMap, *, owner: str) -> None:
        """Create a ConfigMap in place of one that `owner` has already: those with plans cannot be changed."""
        body = to_json(config_map)
        meta = body["metadata"]
        if self._kube.create(CONFIG_MAPS, body) is None:
            self.delete_config_map(meta["namespace"], meta["name"], owner=owner)
            if self._kube.create(CONFIG_MAPS, body) is None:
                name = f"{meta['namespace']}/{meta['name']}"
                raise KubeError(f"ConfigMap {name} exists and is not this pipeline's: delete it")

    def delete_config_map(self, namespace: str, name: str, *, owner: str) -> None:
        """Delete a ConfigMap that the object with the uid `owner` owns; any other of the name is left alone."""
        meta = (self._kube.get(CONFIG_MAPS, namespace, name) or {}).get("metadata", {})
        if owner in {reference["uid"] for reference in meta.get("ownerReferences") or ()}:
            self._kube.delete(CONFIG_MAPS, namespace, name, uid=meta["uid"])

    def delete_pod(self, pod: Pod, *, grace: int | None = None) -> None:
        """Delete one very pod; `grace` seconds instead of its own."""
        self._kube.delete(PODS, pod.meta.namespace, pod.meta.name, uid=pod.meta.uid, grace=grace)

    def deployment(self, namespace: str, name: str) -> V1Deployment | None:
        found = self._kube.get(DEPLOYMENTS, namespace, name)
        return None if found is None else from_json(V1Deployment, found)

    def pods_of(self, namespace: str, selector: V1LabelSelector) -> list[V1Pod]:
        """The pods that a Deployment's selector names."""
        labels = ",".join(f"{name}={value}" for name, value in (selector.match_labels or {}).items())
        return [from_json(V1Pod, body) for body in self._kube.listing(PODS, namespace, labelSelector=labels).items]

    def apply_deployment(self, body: Object) -> None:
        """Server-side apply: these fields are the controller's, all others stay as they are."""
        self._kube.apply(DEPLOYMENTS, body, manager=FIELD_MANAGER, strict=False)


def _when(event: CoreV1Event) -> tuple[float, bool]:
    """When an Event happened last; of those of one second warnings are the newer ones."""
    last = event.series.last_observed_time if event.series else event.last_timestamp
    return seconds(last or event.event_time), event.type == "Warning"
