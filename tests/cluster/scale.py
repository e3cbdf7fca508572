"""Many pipelines and one controller, run by hand: what they cost, and how soon each is seen to.

    python tests/cluster/scale.py --pipelines 1000 --kind suspended
    python tests/cluster/scale.py --pipelines 200 --kind finished --rest 600 --checkout ../before

It starts an API server with etcd, an S3 server and a controller, all on this machine, makes the pipelines while the
controller is down, and prints one JSON object: seconds until each has a status, after a start and a restart; seconds
from an edit to its status, over 200 edits; memory; CPU and requests at rest, counted in the API server's audit log and
the S3 server's log; memory after 200 edits of one pipeline. No pods run: what has a job gets a pod that says that it
does, so that the others wait for a pipeline which can make what they need.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import urllib3
import yaml

from nanochat.pipeline.graph import build_graph
from nanochat.spec.load import check_pipeline
from nanochat.storage.artifacts import Artifacts
from nanochat.storage.opening import open_store
from nanochat.storage.store import Profile
from operators.kube_client import MERGE, PIPELINES, PODS, KubeClient, Resource
from operators.kube_error import KubeError
from operators.pytorchjob import PYTORCHJOBS

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from store_servers import free_port

ROOT = Path(__file__).resolve().parents[2]
TOOLS = Path(os.environ.get("NANOCHAT_TOOLS", ROOT / ".." / "shared" / "cluster" / "bin"))
NAMESPACE = "scale"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "scale", "AWS_SECRET_ACCESS_KEY": "scalescale"}
CRDS = Resource("apiextensions.k8s.io/v1", "CustomResourceDefinition", "customresourcedefinitions")
NAMESPACES = Resource("v1", "Namespace", "namespaces")
EDITS = 200
POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [{"level": "Metadata", "users": ["controller"]}, {"level": "None"}],
}
JOBS_DEFINITION = """
{apiVersion: apiextensions.k8s.io/v1, kind: CustomResourceDefinition, metadata: {name: pytorchjobs.kubeflow.org,
 annotations: {api-approved.kubernetes.io: unapproved}},
 spec: {group: kubeflow.org, scope: Namespaced,
  names: {kind: PyTorchJob, listKind: PyTorchJobList, plural: pytorchjobs, singular: pytorchjob},
  versions: [{name: v1, served: true, storage: true, subresources: {status: {}},
   schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}}]}}
"""


# ---- what runs ------------------------------------------------------------------------------------------------------


@contextmanager
def program(command: list[str], log: Path, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process until the end of the context."""
    with log.open("ab") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env={**os.environ, **environment})
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()


def until(what: str, holds: Callable[[], object], seconds: float = 300.0) -> None:
    """Wait for something; an error of it counts as not yet."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if holds():
                return
        except Exception:
            pass
        time.sleep(0.2)
    raise SystemExit(f"{what} did not come about in {seconds:.0f} s")


@dataclass
class Site:
    """An API server and an object store, with everything in one folder."""

    folder: Path
    kube: KubeClient
    profile: Profile

    @property
    def audit(self) -> Path:
        return self.folder / "audit.log"

    @property
    def accesses(self) -> Path:
        return self.folder / "store.log"

    @property
    def credentials(self) -> Path:
        return self.folder / "credentials"

    @classmethod
    @contextmanager
    def up(cls, folder: Path) -> Iterator[Site]:
        """Start both."""
        tools = {name: unpacked(name, folder) for name in ("hyperkube", "versitygw")}
        etcd, peers, api, s3 = (free_port() for _ in range(4))
        key, tokens, policy = folder / "sa.key", folder / "tokens.csv", folder / "policy.yaml"
        subprocess.run(["openssl", "genrsa", "-out", str(key), "2048"], check=True, capture_output=True)
        tokens.write_text("me,me,me,system:masters\ncontroller,controller,controller,system:masters\n")
        policy.write_text(json.dumps(POLICY))
        for name in ("me", "controller"):
            (folder / f"{name}.kubeconfig").write_text(json.dumps(kubeconfig(f"https://127.0.0.1:{api}", name)))
        (folder / "credentials").mkdir(exist_ok=True)
        for name, value in CREDENTIALS.items():
            (folder / "credentials" / name).write_text(value)
        (folder / "s3" / "bucket").mkdir(parents=True, exist_ok=True)
        os.environ["KUBECONFIG"] = str(folder / "me.kubeconfig")
        url, store, keys = f"http://127.0.0.1:{etcd}", f"http://127.0.0.1:{s3}", tuple(CREDENTIALS.values())
        commands = {
            "etcd": [tools["hyperkube"], "etcd", "--data-dir", str(folder / "etcd"), "--unsafe-no-fsync",
                     "--log-level=error", "--listen-client-urls", url, "--advertise-client-urls", url,
                     "--listen-peer-urls", f"http://127.0.0.1:{peers}"],
            "apiserver": [tools["hyperkube"], "kube-apiserver", "--etcd-servers", url, "--secure-port", str(api),
                          "--bind-address=127.0.0.1", "--cert-dir", str(folder / "certificates"),
                          "--token-auth-file", str(tokens), "--authorization-mode=AlwaysAllow",
                          "--service-account-issuer=https://scale", "--service-account-key-file", str(key),
                          "--service-account-signing-key-file", str(key),
                          "--disable-admission-plugins=ServiceAccount,ResourceQuota",
                          "--service-cluster-ip-range=10.0.0.0/24", "--audit-policy-file", str(policy),
                          "--audit-log-path", str(folder / "audit.log"), "--audit-log-mode=batch"],
            "versitygw": [tools["versitygw"], "--quiet", "--port", f"127.0.0.1:{s3}",
                          "--access-log", str(folder / "store.log"), "posix", str(folder / "s3")],
        }  # fmt: skip
        with ExitStack() as stack:
            for name, command in commands.items():
                started = program(command, folder / f"{name}.log", ROOT_ACCESS_KEY=keys[0], ROOT_SECRET_KEY=keys[1])
                stack.enter_context(started)
            kube = KubeClient.connect(connections=32)
            until("the API server", lambda: kube.request("get", "/readyz", what="readyz") == b"ok")
            site = cls(folder, kube, Profile(root="s3://bucket/scale", endpoint=store))
            site.define()
            yield site

    def define(self) -> None:
        """The kinds of objects and the namespace."""
        definition = ROOT / "helm" / "nanochat" / "files" / "chatpipelines.nanochat.dev.yaml"
        for body in (yaml.safe_load(definition.read_text()), yaml.safe_load(JOBS_DEFINITION)):
            self.kube.json("create", CRDS.path(), what=body["metadata"]["name"], body=body)
        body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}
        self.kube.json("create", NAMESPACES.path(), what=NAMESPACE, body=body)
        until("the definition", lambda: self.kube.serves(PIPELINES) and self.kube.listing(PIPELINES).items == [])

    def requests(self, since: int) -> tuple[int, Counter[str]]:
        """Where the audit log ends, and the controller's requests that it tells of from `since` on."""
        with self.audit.open("rb") as file:
            file.seek(since)
            found = Counter(
                f"{(e := json.loads(line))['verb']} {e.get('objectRef', {}).get('resource', '')}" for line in file
            )
            return file.tell(), found

    def store_requests(self) -> int:
        """Requests to the store so far."""
        return sum(1 for _ in self.accesses.open("rb")) if self.accesses.exists() else 0


def unpacked(name: str, folder: Path) -> str:
    """A program on PATH, or out of the folder of tools."""
    if found := shutil.which(name):
        return found
    target = folder / name
    if not target.exists():
        subprocess.run(["zstd", "-q", "-d", str(TOOLS / f"{name}.zst"), "-o", str(target)], check=True)
        target.chmod(0o755)
    return str(target)


def kubeconfig(server: str, user: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1", "kind": "Config", "current-context": "scale",
        "clusters": [{"name": "scale", "cluster": {"server": server, "insecure-skip-tls-verify": True}}],
        "users": [{"name": user, "user": {"token": user}}],
        "contexts": [{"name": "scale", "context": {"cluster": "scale", "user": user}}],
    }  # fmt: skip


@dataclass
class Controller:
    """The controller of a checkout, which may be started again and again; its log is kept."""

    site: Site
    checkout: Path
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None
    peak: int = 0  # bytes of memory
    _stack: ExitStack = field(default_factory=ExitStack)

    def start(self) -> float:
        """Start it; returns the time."""
        config = self.site.folder / "config.yaml"
        profile = {"root": self.site.profile.root, "endpoint": self.site.profile.endpoint}
        profile["credentials"] = str(self.site.credentials)
        config.write_text(json.dumps({"image": "trainer", "profiles": {"default": profile}}))
        command = [sys.executable, "-m", "operators.main", f"--config={config}", f"--port={self.port}"]
        began = time.monotonic()
        self.process = self._stack.enter_context(program(
            command, self.site.folder / "controller.log", KUBECONFIG=str(self.site.folder / "controller.kubeconfig"),
            NANOCHAT_CACHE=str(self.site.folder / "cache"), POD_NAMESPACE=NAMESPACE,
            NANOCHAT_SERVICE=f"{NAMESPACE}/nanochat-controller:8080", PYTHONWARNINGS="ignore",
            PYTHONPATH=str(self.checkout), PYTHONSAFEPATH="1",
        ))  # fmt: skip
        self.peak = 0
        threading.Thread(target=self._sample, args=(self.process,), daemon=True).start()
        return began

    def stop(self) -> None:
        self._stack.close()
        self.process = None

    def _sample(self, process: subprocess.Popen[bytes]) -> None:
        while process.poll() is None:
            self.peak = max(self.peak, self.memory())
            time.sleep(0.5)

    def memory(self) -> int:
        """Bytes of resident memory, of its children too."""
        try:
            main = psutil.Process(self.process.pid if self.process else 0)
            return sum(item.memory_info().rss for item in (main, *main.children(recursive=True)))
        except psutil.Error:
            return 0

    def cpu(self) -> float:
        """Seconds of CPU so far; 0 where it is gone."""
        if self.process is None or self.process.poll() is not None:
            return 0.0
        times = psutil.Process(self.process.pid).cpu_times()
        return times.user + times.system + times.children_user + times.children_system

    def known(self) -> int:
        """Pipelines that it counts."""
        text = urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=30).read().decode()
        return sum(
            round(float(line.split()[-1])) for line in text.splitlines() if line.startswith("nanochat_pipelines{")
        )


class Statuses:
    """When the status of each pipeline came to be that of its newest generation, as a watch tells."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._lock = threading.Lock()
        self.seen: dict[tuple[str, int], float] = {}  # name, generation -> when
        self.phases: dict[str, str] = {}
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        version = "0"
        while True:
            try:
                path = f"{PIPELINES.path()}?watch=1&resourceVersion={version}&timeoutSeconds=600"
                response: Any = self._site.kube.api.call_api(
                    path, "GET", auth_settings=["BearerToken"], _preload_content=False, _return_http_data_only=True
                )
                buffer = b""
                for chunk in response.stream(1 << 16):
                    *lines, buffer = (buffer + chunk).split(b"\n")
                    for line in lines:
                        self._take(json.loads(line)["object"])
            except Exception:
                time.sleep(1.0)

    def _take(self, body: dict[str, Any]) -> None:
        meta, status = body["metadata"], body.get("status") or {}
        generation = status.get("observedGeneration")
        with self._lock:
            if generation is not None:
                self.seen.setdefault((meta["name"], generation), time.monotonic())
            self.phases[meta["name"]] = status.get("phase", "")

    def count(self, generation: int = 1) -> int:
        """Pipelines with a status of a generation."""
        with self._lock:
            return sum(1 for _, at in self.seen if at == generation)


# ---- the pipelines --------------------------------------------------------------------------------------------------


def declaration(name: str, kind: str) -> dict[str, Any]:
    """A pipeline of one of KINDS."""
    return {
        "apiVersion": "nanochat.dev/v1alpha1",
        "kind": "ChatPipeline",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "model": {"depth": 4},
            "sources": {"text": {"kind": "world", "shards": 4}},
            **({"suspend": True} if kind == "suspended" else {}),
        },
    }


def play_operator(site: Site) -> None:
    """Give each job its first pod, which runs for ever; a deleted job's is deleted too."""
    while True:
        with suppress(KubeError):
            jobs = {job["metadata"]["uid"]: job for job in site.kube.listing(PYTORCHJOBS, NAMESPACE).items}
            there = {pod["metadata"]["ownerReferences"][0]["uid"]: pod for pod in site.kube.listing(PODS).items}
            for uid in jobs.keys() - there.keys():
                run_pod(site, jobs[uid])
            for uid in there.keys() - jobs.keys():
                site.kube.delete(PODS, NAMESPACE, there[uid]["metadata"]["name"], grace=0)
        time.sleep(1.0)


def run_pod(site: Site, job: dict[str, Any]) -> None:
    """The first pod of a job, as the training operator and a kubelet would leave it."""
    meta, (replicas,) = job["metadata"], job["spec"]["pytorchReplicaSpecs"].values()
    labels = {"training.kubeflow.org/job-name": meta["name"], "training.kubeflow.org/replica-index": "0"}
    owner = {"apiVersion": job["apiVersion"], "kind": job["kind"], "name": meta["name"], "uid": meta["uid"]}
    name = f"{meta['name']}-worker-0"
    body = {
        "metadata": {
            "name": name, "namespace": NAMESPACE, "ownerReferences": [{**owner, "controller": True}],
            "labels": {**replicas["template"]["metadata"]["labels"], **labels},
        },
        "spec": {"nodeName": "node", "containers": [{"name": "pytorch", "image": "trainer"}]},
    }  # fmt: skip
    site.kube.create(PODS, body)
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    states = [{"name": "pytorch", "image": "", "imageID": "", "ready": True, "restartCount": 0}]
    states[0]["state"] = {"running": {"startedAt": now}}
    body = {"status": {"phase": "Running", "startTime": now, "containerStatuses": states}}
    site.kube.json("patch", PODS.path(NAMESPACE, name, "status"), what=name, body=body, content_type=MERGE)


KINDS = ("suspended", "sharing", "finished")


def fill(site: Site) -> None:
    """Make all artifacts of the pipelines, so that they finish at once."""
    store = open_store(site.profile, credentials=site.credentials)
    with tempfile.TemporaryDirectory() as cache:
        artifacts = Artifacts(store, Path(cache))
        for node in build_graph(check_pipeline(declaration("filled", "finished")).spec).nodes:
            for out in node.outputs:
                with artifacts.writer(out.kind, out.key, "01-filled") as writer:
                    (writer.folder / "file").write_bytes(b"made")
                    writer.commit(recipe={}, inputs={})


def create(site: Site, name: str, kind: str) -> None:
    """Make a pipeline; an API server that is busy is asked again."""
    while True:
        try:
            site.kube.create(PIPELINES, declaration(name, kind))
            return
        except KubeError as error:
            if not error.is_passing:
                raise
            time.sleep(1.0)


def edit(site: Site, name: str, value: int) -> int:
    """Change a setting that changes no key; returns the new generation."""
    body = {"spec": {"jobTtlSeconds": value}}
    found = site.kube.json("patch", PIPELINES.path(NAMESPACE, name), what=name, body=body, content_type=MERGE)
    return found["metadata"]["generation"]


# ---- the measurements -----------------------------------------------------------------------------------------------


def measure(site: Site, options: argparse.Namespace) -> dict[str, Any]:
    """All figures."""
    names = [f"p{number:04d}" for number in range(options.pipelines)]
    if options.kind == "finished":
        fill(site)
    threading.Thread(target=play_operator, args=(site,), daemon=True).start()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: create(site, name, options.kind), names))
    statuses, controller = Statuses(site), Controller(site, options.checkout)
    told: dict[str, Any] = {"pipelines": options.pipelines, "kind": options.kind}

    def note(**figures: Any) -> None:
        told.update(figures)
        print(json.dumps(figures), file=sys.stderr, flush=True)

    try:
        began = controller.start()
        wait_for_all(statuses, controller, options, lambda: statuses.count() >= options.pipelines)
        took = sorted(at - began for (_, generation), at in statuses.seen.items() if generation == 1)
        note(
            with_status=len(took), last_status_s=round(took[-1], 1) if took else None, peak_mib=controller.peak >> 20,
            cpu_s=round(controller.cpu(), 1), api_requests=sum(site.requests(0)[1].values()),
            store_requests=site.store_requests(),
            phases=dict(Counter(statuses.phases.values())),
        )  # fmt: skip
        if len(took) < options.pipelines:
            return told
        time.sleep(options.settle)
        controller.stop()
        before, _ = site.requests(0)
        asked = site.store_requests()
        began = controller.start()
        wait_for_all(statuses, controller, options, lambda: controller.known() >= options.pipelines)
        note(restart_known_s=round(time.monotonic() - began, 1))
        time.sleep(options.settle)
        at, requests = site.requests(before)
        note(
            restart_peak_mib=controller.peak >> 20, restart_api_requests=sum(requests.values()),
            restart_store_requests=site.store_requests() - asked, restart_cpu_s=round(controller.cpu(), 1),
        )  # fmt: skip
        note(**rest(site, controller, at, options.rest))
        note(**edits(site, statuses, controller, names))
    finally:
        controller.stop()
    return told


def wait_for_all(
    statuses: Statuses, controller: Controller, options: argparse.Namespace, holds: Callable[[], bool]
) -> None:
    """Wait until all are known, the controller is gone, or the patience is over."""
    deadline = time.monotonic() + options.patience
    while time.monotonic() < deadline:
        try:
            if holds():
                return
        except OSError:
            pass
        if controller.memory() > options.limit << 20:
            print(
                f"the controller has more than {options.limit} MiB after {statuses.count()} statuses", file=sys.stderr
            )
            return
        time.sleep(0.2)


def rest(site: Site, controller: Controller, at: int, seconds: float) -> dict[str, Any]:
    """CPU and requests while nothing happens."""
    at, _ = site.requests(at)
    asked, used, began = site.store_requests(), controller.cpu(), time.monotonic()
    time.sleep(seconds)
    _, requests = site.requests(at)
    share = (controller.cpu() - used) / (time.monotonic() - began)
    return {
        "rest_s": seconds, "rest_cpu_percent": round(100 * share, 1), "rest_api_requests": sum(requests.values()),
        "rest_api": dict(requests.most_common(12)), "rest_store_requests": site.store_requests() - asked,
        "rest_mib": controller.memory() >> 20,
    }  # fmt: skip


def edits(site: Site, statuses: Statuses, controller: Controller, names: list[str]) -> dict[str, Any]:
    """Reactions to edits of many pipelines, then of one."""
    spread, before = [names[i * len(names) // EDITS] for i in range(EDITS)], controller.memory()
    reactions = [reaction(site, statuses, name, 4000 + i) for i, name in enumerate(spread)]
    between = controller.memory()
    alone = [reaction(site, statuses, names[0], 5000 + i) for i in range(EDITS)]
    ranked = sorted(reactions)
    return {
        "edit_p50_s": round(statistics.median(ranked), 2), "edit_p99_s": round(ranked[int(len(ranked) * 0.99) - 1], 2),
        "edit_max_s": round(ranked[-1], 2), "one_edited_p99_s": round(sorted(alone)[int(len(alone) * 0.99) - 1], 2),
        "mib_before_edits": before >> 20, "mib_before_edits_of_one": between >> 20,
        "mib_after_edits_of_one": controller.memory() >> 20,
    }  # fmt: skip


def reaction(site: Site, statuses: Statuses, name: str, value: int) -> float:
    """Seconds from an edit to its status; 60 where there was none until then."""
    began = time.monotonic()
    at = (name, edit(site, name, value))
    while at not in statuses.seen and time.monotonic() - began < 60:
        time.sleep(0.02)
    return statuses.seen.get(at, time.monotonic()) - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pipelines", type=int, default=200)
    parser.add_argument("--kind", choices=KINDS, default="suspended")
    parser.add_argument("--rest", type=float, default=600.0, help="seconds for which it is watched at rest")
    parser.add_argument("--settle", type=float, default=20.0, help="seconds between a start and what follows")
    parser.add_argument("--patience", type=float, default=300.0, help="seconds that all may take to get a status")
    parser.add_argument("--limit", type=int, default=1024, help="MiB of memory at which the controller is given up")
    parser.add_argument(
        "--checkout", type=Path, default=ROOT, help="the project's folder that the controller is run from"
    )
    parser.add_argument("--keep", type=Path, help="a folder for everything, which is left; else a temporary one")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # what was started is ended
    urllib3.disable_warnings()  # the API server's certificate is its own
    with ExitStack() as stack:
        folder = options.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        site = stack.enter_context(Site.up(folder.resolve()))
        print(json.dumps(measure(site, options), indent=1))


if __name__ == "__main__":
    main()
