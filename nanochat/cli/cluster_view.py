"""The cluster that `nanochat doctor --cluster` looks at, and what its checks have found out so far.

    view = ClusterView(kube, namespace, pipeline)
    yield from looked("operator", lambda: operator_checks(view))

A check never calls broken what it may not see: a refused look is a `skip`, with the API server's words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from nanochat.cli.checks import Check
from nanochat.pipeline.sentences import Sentence
from nanochat.spec.errors import NanochatError
from nanochat.spec.pipeline import Pipeline
from operators.admission import Accepted
from operators.cluster import Cluster
from operators.config import Config
from operators.kube_client import PODS, KubeClient, Resource
from operators.kube_error import KubeError, Object
from operators.objects import read_pod
from operators.observation import CONTAINER_WAITS, STARTING_REASONS
from operators.sentences import Wait

NAMESPACES = Resource("v1", "Namespace", "namespaces")
NODES = Resource("v1", "Node", "nodes")
RIGHTS = Resource("authorization.k8s.io/v1", "SelfSubjectAccessReview", "selfsubjectaccessreviews")


@dataclass(slots=True)
class ClusterView:
    """A namespace of a cluster, and a pipeline that is to run there."""

    kube: KubeClient
    namespace: str
    pipeline: Pipeline | None = None
    config: Config | None = None  # of the controller that runs pipelines here, once it was found and could be read
    passed: Accepted | None = None  # the pipeline, or one with all defaults, once the controller's checks passed
    pods: dict[str, Object] = field(default_factory=dict)  # stage -> its pod, as the API server would take it
    homeless: set[str] = field(default_factory=set)  # stages whose pods no node could ever hold
    broken: set[str] = field(default_factory=set)  # names of the checks that failed

    @property
    def accepted(self) -> Accepted:
        """The pipeline that passed the controller's checks; only checks that come after those ask for it."""
        assert self.passed is not None
        return self.passed

    @property
    def stages(self) -> Sequence[str]:
        """The stages that are looked at: all of the file's, or one that stands for any pipeline's."""
        return tuple(self.accepted.graph.stages) if self.pipeline else ("dataset",)

    def listed(self, stages: Sequence[str]) -> str:
        """Stages in a sentence."""
        return f"all {len(stages)} stages" if len(stages) == len(self.stages) > 1 else ", ".join(stages)

    def may(self, verb: str, resource: Resource) -> bool:
        """Whether whoever asks has a right in the namespace."""
        group = resource.api_version.rpartition("/")[0]
        wanted = {"namespace": self.namespace, "verb": verb, "group": group, "resource": resource.plural}
        body = {"apiVersion": RIGHTS.api_version, "kind": RIGHTS.kind, "spec": {"resourceAttributes": wanted}}
        answer = self.kube.json("create", RIGHTS.path(), what="a look at your rights", body=body)
        return bool((answer.get("status") or {}).get("allowed"))

    def holdup(self, namespace: str, selector: str) -> str:
        """Why the pods that a selector names are not ready, in one sentence; '' where nothing tells."""
        for body in self.kube.listing(PODS, namespace, labelSelector=selector).items:
            pod = read_pod(body, job_label="", index_label="")
            name = f"pod {pod.meta.name}"
            if pod.unschedulable is not None:
                return f"{name} {said(Wait.UNSCHEDULABLE, why=pod.unschedulable.text)}"
            for waiting in pod.waiting:
                if waiting.reason not in STARTING_REASONS:
                    wait = CONTAINER_WAITS.get(waiting.reason, Wait.CONTAINER)
                    return said(wait, pod=name, kind=waiting.reason, why=waiting.text)
            if pod.phase == "Pending" and (warning := Cluster(self.kube).warning(namespace, pod.meta.uid)):
                return said(Wait.NODE, pod=name, node=pod.node or "its node", kind=warning.reason, why=warning.text)
        return ""


def said(sentence: Sentence, **values: object) -> str:
    """A sentence of the controller's, without what it does about it."""
    return Sentence.of(sentence, **values).message


def selector_of(labels: Object) -> str:
    """A label selector in the form of a query."""
    return ",".join(f"{name}={value}" for name, value in labels.items())


def looked(view: ClusterView, name: str, check: Callable[[], Iterator[Check]]) -> Iterator[Check]:
    """The findings of a check. What it may not see is a skip, what is wrong a failure."""
    try:
        for found in check():
            if found.level == "fail":
                view.broken.add(found.name)
            yield found
    except KubeError as error:
        if error.status == 403:
            yield Check(name, "skip", f"you may not look: {error.said}", "ask for that right, or who has it to look")
        else:
            yield Check(name, "skip", f"the API server does not tell: {error.said}", "try again")
    except NanochatError as error:
        view.broken.add(name)
        yield Check(name, "fail", error.message)
    except (KeyError, TypeError, ValueError, AttributeError) as error:  # an object in a form that was not thought of
        yield Check(name, "skip", f"{type(error).__name__}: {error}", "this is a fault of nanochat: please report it")


def names(found: Sequence[str]) -> str:
    """Names in a sentence; 'none' where there are none."""
    return ", ".join(found) or "none"
