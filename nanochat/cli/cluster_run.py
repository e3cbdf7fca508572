"""A pipeline on a cluster: what its object and the controller's endpoint tell, with nothing but a kubeconfig.

run = ClusterRun.find("demo", namespace=None, context=None)
run.change(spec={"suspend": True})
data = run.stored("logs/base")     # from the controller's endpoint, through the API server
"""

from __future__ import annotations

import re
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nanochat.cli.cluster_errors import to_error, translate_errors
from nanochat.cli.display import details, steps
from nanochat.cli.mlflow_proxy import registry_of
from nanochat.cli.run_handle import Happened, RunHandle, StageProgress, Unanswered, pipeline_name
from nanochat.parse.json_text import read_json
from nanochat.pipeline.log_reader import LaunchLogs
from nanochat.pipeline.planner import Phase
from nanochat.pipeline.run_status import StageRunStatus
from nanochat.pipeline.spending import Spending
from nanochat.spec.chatpipeline import RETRY
from nanochat.spec.errors import NanochatError, UserError
from nanochat.storage.records import RECORD
from nanochat.storage.store import check_path
from nanochat.tracking.quantities import duration
from nanochat.tracking.registry import Registry
from operators import lease
from operators.access import INVALID_TOKEN
from operators.kube_client import EVENTS, MERGE, PIPELINES, KubeClient
from operators.kube_error import KubeError

LISTED = 5  # attempts that the remarks tell of
LOOK = 0.3  # seconds between looks for the controller's word
AWAY = 20.0  # seconds without a renewal of its lease after which no controller runs
FIELD_MANAGER = "nanochat"
FIRST_RANK = "rank0"  # the log's name
MOST_LOG = 8 << 20  # bytes of a launch's log in which losses are looked for
STEP_LINE = re.compile(rb"step (\d[\d,]{0,18}) of [\d,]{1,19}: loss (\d{1,9}\.\d{4})")  # of nanochat.training.step_log


@dataclass(slots=True)
class ClusterRun(RunHandle):
    """A ChatPipeline; `context` is the kubeconfig's where the command line names one."""

    kube: KubeClient
    namespace: str
    context: str | None
    found: dict[str, Any]
    looked: bool = False

    @classmethod
    def find(cls, name: str, *, namespace: str | None, context: str | None) -> ClusterRun:
        """By its name or its file. UserError or Unanswered where it cannot be found."""
        kube = KubeClient.connect(context)
        namespace = namespace or kube.namespace
        return cls(kube, namespace, context, _get(kube, namespace, pipeline_name(name)))

    @classmethod
    def all(cls, *, namespace: str | None, context: str | None) -> list[ClusterRun]:
        """All pipelines of a namespace. UserError or Unanswered where they cannot be listed."""
        kube = KubeClient.connect(context)
        namespace = namespace or kube.namespace
        with translate_errors(f"the pipelines of namespace {namespace}"):
            found = kube.listing(PIPELINES, namespace).items
        return [cls(kube, namespace, context, item) for item in found]

    @property
    def name(self) -> str:
        return self.found["metadata"]["name"]

    @property
    def status(self) -> dict[str, Any]:
        return self.found.get("status") or {}

    @property
    def spec(self) -> Mapping[str, Any]:
        return self.found["spec"]

    @property
    def phase(self) -> str:
        """As the controller said last; "new" before it has looked at the pipeline."""
        return self.status.get("phase", "new")

    @property
    def place(self) -> str:
        return self.found["metadata"]["uid"]

    @property
    def is_live(self) -> bool:
        """Whether it has not ended, or was changed since the controller said so."""
        retried = (self.found["metadata"].get("annotations") or {}).get(RETRY) != self.status.get("retriedAt")
        return not self._is_seen() or retried or self.phase not in (Phase.SUCCEEDED, Phase.FAILED, Phase.CANCELLED)

    def _is_seen(self) -> bool:
        """Whether a controller has looked at the declaration as it is now."""
        told = self.status
        looks = [c.get("observedGeneration", 0) for c in told.get("conditions", ())]
        return self.found["metadata"].get("generation", 0) <= max([told.get("observedGeneration") or 0, *looks])

    def refusal(self, *, within: float = 0.0) -> str:
        """Why the controller refuses the declaration; '' where it does not, or has said nothing `within` seconds."""
        until = time.monotonic() + within
        while not self._is_seen() and time.monotonic() < until:
            time.sleep(LOOK)
            self.refresh()
        accepted = next((c for c in self.status.get("conditions", ()) if c["type"] == "Accepted"), {"status": ""})
        return accepted.get("message", "") if self._is_seen() and accepted["status"] == "False" else ""

    @property
    def document(self) -> Mapping[str, Any]:
        return self.status

    @property
    def headline(self) -> str:
        place = f"{self.namespace}/{self.name}"
        if not self.status:
            return (
                f"{place}: no controller has looked at it yet; see that one runs: "
                "kubectl get deployments -A -l app.kubernetes.io/component=controller"
            )
        if self.is_live and (away := self.controller_away()):
            return f"{place}: {self.phase} when a controller saw it last; {away}"
        message = self.status.get("message", "")
        return f"{place}: {self.phase}" + (f", {message}" if message and message != self.phase.lower() else "")

    def controller_away(self) -> str:
        """Why nothing goes on: the sentence that no controller runs; '' where one does, or where that is not known."""
        access = self.status.get("access")
        if not access:
            return ""
        namespace, _, service = access["service"].partition("/")
        name, see = f"{namespace}/{lease.NAME}", f"kubectl -n {namespace} get deployment {service.partition(':')[0]}"
        then = f"nothing is started or changed until one does; see: {see}"
        try:
            age = lease.since_renewal(self.kube, namespace)
        except KubeError as error:
            if error.status != 403:
                return ""
            return (
                f"whether a controller runs cannot be seen, for you may not read its Lease {name}: its chart was "
                f"uninstalled, or did not give you that right; see: {see}"
            )
        if age is None:
            return f"no controller runs, for there is no Lease {name}: {then}"
        return f"no controller runs, for its Lease {name} was renewed {duration(age)} ago: {then}" if age > AWAY else ""

    @property
    def stages(self) -> Sequence[StageRunStatus]:
        return [
            StageRunStatus(
                stage=item["name"],
                phase=item["phase"],
                message=item.get("message", ""),
                attempts=item.get("attempts", 0),
                started=_seconds(item.get("started")),
                ended=_seconds(item.get("ended")),
                why=item.get("why", ""),
            )
            for item in self.status.get("stages", ())
        ]

    def progress(self, stage: str) -> StageProgress | None:
        item = next(item for item in self.status["stages"] if item["name"] == stage)
        if item.get("step") is None:
            return None
        losses = {"loss": item["loss"]} if item.get("loss") is not None else {}
        rates = [item["rate"]] if item.get("rate") else []
        parts = steps(item["step"], item.get("total")), details(item.get("pause", ""), losses, rates, item.get("eta"))
        return StageProgress(", ".join(filter(None, parts)), item["step"], item.get("loss"))

    def losses(self, stage: str) -> Sequence[tuple[int, float]]:
        """The losses that the first rank's log tells."""
        found: dict[int, float] = {}
        for launch in self.launches(stage):
            data = b""
            size = min(launch.files.get(FIRST_RANK, 0), MOST_LOG)
            while len(data) < size and (more := self.read(stage, launch.name, FIRST_RANK, len(data))):
                data += more
            for step, loss in STEP_LINE.findall(data):
                found[int(step.replace(b",", b""))] = float(loss)
        return sorted(found.items())

    def events(self, most: int) -> Sequence[Happened]:
        """The object's Events, or none where they may not be read."""
        try:
            query = {"fieldSelector": f"involvedObject.uid={self.found['metadata']['uid']}"}
            found = self.kube.listing(EVENTS, self.namespace, **query).items
        except KubeError as error:
            if error.status in (403, 404):
                return []
            raise to_error(error, f"the Events of {self.name}") from None
        told = [
            Happened(
                _seconds(item.get("lastTimestamp") or item["metadata"].get("creationTimestamp")) or 0.0,
                f"{item.get('reason', '')}: {item.get('message', '')}",
            )
            for item in found
        ]
        return sorted(told, key=lambda event: event.time)[-most:]

    def remarks(self) -> Iterator[str]:
        told = self.status
        ended = [item for item in told.get("attempts", ()) if item.get("reason") not in ("Succeeded", "Running")]
        for item in ended[-LISTED:]:
            where = f" (on {', '.join(item['nodes'])})" if item.get("nodes") else ""
            yield f"{item['stage']}, attempt {item['number']}: {item['reason']}, {item.get('message', '')}{where}"
        if queue := told.get("queue"):
            state = f"queue {queue['name']}: {queue.get('state', '')}"
            yield ", ".join(filter(None, (state, queue.get("message"))))
        figures = (told.get(name) or 0.0 for name in ("gpuHours", "cost", "lostCost", "waitingCost"))
        yield from Spending(*figures).lines()
        for item in told.get("conditions", ()):
            tells = item["status"] == "False" or item["type"] == "Accepted"  # which also says what was left out of it
            if tells and item.get("message") and item["message"] not in told.get("message", ""):
                yield f"{item['type']}: {item['message']}"

    def command(self, verb: str) -> str:
        context = ["--context", self.context] if self.context else []
        return shlex.join(["nanochat", verb, self.name, "-n", self.namespace, *context])

    # ---- acting -----------------------------------------------------------------------------------------------------

    def cancel(self) -> None:
        self.change(spec={"cancel": True})

    def retry(self) -> int:
        succeeded = self.phase == Phase.SUCCEEDED
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        refused = self.refusal()
        self.change(spec={"cancel": False}, annotations={RETRY: now})
        if refused:
            print(f"{self.name} is checked again, but until it is corrected nothing is started: {refused}")
        elif self.spec.get("suspend"):
            print(f"{self.name} is tried again when it is resumed: {self.command('resume')}")
        elif succeeded:
            print(f"{self.name} has succeeded: what is gone or damaged is made anew; see: {self.command('status')}")
        else:
            print(f"{self.name} is tried again; see: {self.command('status')}")
        return 0

    def refresh(self) -> None:
        """Read the object again."""
        self.found = _get(self.kube, self.namespace, self.name)

    def change(self, *, spec: Mapping[str, Any], annotations: Mapping[str, str] | None = None) -> None:
        """Merge into the spec and the annotations."""
        body: dict[str, Any] = {"spec": dict(spec)}
        if annotations:
            body["metadata"] = {"annotations": dict(annotations)}
        with translate_errors(what := f"pipeline {self.namespace}/{self.name}"):
            self.found = self.kube.json(
                "patch",
                PIPELINES.path(self.namespace, self.name),
                what=what,
                body=body,
                content_type=MERGE,
                query={"fieldManager": FIELD_MANAGER, "fieldValidation": "Strict"},
            )
        self.warn_if_away()

    def warn_if_away(self) -> None:
        """Say on standard error where nobody is there to carry out what was asked."""
        if away := self.controller_away():
            print(f"warning: {away}", file=sys.stderr)

    # ---- what is stored ---------------------------------------------------------------------------------------------

    def look(self) -> tuple[bool, Sequence[StageRunStatus]]:
        if self.looked:
            self.refresh()
        self.looked = True
        return self.is_live, self.stages

    def launches(self, stage: str) -> Sequence[LaunchLogs]:
        found = read_json(self.stored(f"logs/{stage}"), limit=RECORD)
        return [LaunchLogs(item["launch"], {file["name"]: file["bytes"] for file in item["files"]}) for item in found]

    def read(self, stage: str, launch: str, file: str, offset: int) -> bytes:
        return self.stored(f"logs/{stage}/{launch}/{file}", offset=str(offset))

    def report(self, folder: Path, *, markdown: bool) -> None:
        """Copy the report that the pipeline has made; the summary is all that stands before its second section."""
        for file in read_json(self.stored("report"), limit=RECORD):
            try:
                path = folder / check_path(file)
            except ValueError:
                raise UserError(f"the report has a file '{file}', which would lie outside its folder") from None
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self.stored(f"report/{file}"))
        text = (folder / "report.md").read_text(encoding="utf-8")
        print(text if markdown else "\n## ".join(text.split("\n## ")[:2]).rstrip())

    def missing_weights(self, uri: str, fingerprint: str = "") -> str:
        found = read_json(self.stored("model", uri=uri, fingerprint=fingerprint), limit=RECORD)
        return str(found.get("missing", ""))

    def registry(self) -> Registry:
        uri = (self.status.get("profile") or {}).get("tracking")
        if not uri:
            raise UserError(f"{self.name} has no tracking server: its store profile names none, so nothing is released")
        return registry_of(uri, self.kube)

    def stored(self, path: str, **query: str) -> bytes:
        """The bytes under a path of the controller's endpoint (`operators.endpoint`): logs, the report."""
        try:
            try:
                return self._request(path, query)
            except KubeError as error:
                if error.code != INVALID_TOKEN:
                    raise
            self.refresh()  # there is another token each day
            return self._request(path, query)
        except KubeError as error:
            raise self._endpoint_error(error) from None

    def _request(self, path: str, query: Mapping[str, str]) -> bytes:
        access = self.status.get("access")
        if not access and not self.is_live:
            raise UserError(f"no stage of {self.name} has run: {self.status.get('message', self.phase)}")
        if not access:
            raise Unanswered(
                f"the controller has not said yet where the logs of {self.name} are: is the controller running? "
                f"See: {self.command('status')}"
            )
        namespace, _, service = access["service"].partition("/")
        return self.kube.request(
            "get",
            f"/api/v1/namespaces/{namespace}/services/http:{service}/proxy/v1/{self.namespace}/{self.name}/{path}",
            what=path,
            query=query,
            headers={"X-Nanochat-Token": access["token"]},
        )

    def _endpoint_error(self, error: KubeError) -> NanochatError:
        """One sentence on an error of the endpoint, or on the way to it."""
        if error.code == INVALID_TOKEN:
            return Unanswered(
                f"the controller does not know {self.name} yet: it has just started; ask again in a moment"
            )
        kept = f"they are kept in the store, below {self._folder()}"
        if error.status == 403:
            return UserError(
                "logs and reports come through a service of the controller, which you may not reach: its chart was "
                f"uninstalled, or did not give you that right ({error.said}); {kept}"
            )
        if error.status == 404 and error.kind == "services":
            return UserError(
                "logs and reports come through a service of the controller, which is not there: install its chart "
                f"again ({error.said}); {kept}"
            )
        if error.status >= 500:
            return Unanswered(f"the controller does not answer ({error.said}); {self.controller_away() or kept}")
        return to_error(error, self.name)

    def _folder(self) -> str:
        """The address of the run's folder, as the status has it."""
        root = (self.status.get("profile") or {}).get("root", "")
        return "/".join(filter(None, (root.rstrip("/"), self.status.get("run", ""))))


def _get(kube: KubeClient, namespace: str, name: str) -> dict[str, Any]:
    """The object; UserError where there is none."""
    with translate_errors(what := f"pipeline {namespace}/{name}"):
        return kube.json("get", PIPELINES.path(namespace, name), what=what)


def _seconds(text: str | None) -> float | None:
    """A time of the status in seconds since 1970."""
    return datetime.fromisoformat(text).timestamp() if text else None
