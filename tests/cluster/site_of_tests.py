"""A cluster with all that a pipeline needs, and what tests do to it: only through commands that a person would type.

site = Site("nanochat-test")
site.up()                            # cluster, images, operators, storage, the chart
site.apply(document); site.wait("small", lambda status: status["phase"] == "Succeeded")
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import psutil
import pytest
import yaml

from nanochat.pipeline.graph import build_graph
from nanochat.spec.load import check_pipeline
from nanochat.storage.opening import open_store
from nanochat.storage.store import Profile, Store

ROOT = Path(__file__).resolve().parents[2]
MANIFESTS = Path(os.environ.get("NANOCHAT_CLUSTER_MANIFESTS") or ROOT / ".." / "shared" / "cluster")
TOOLS = Path("/var/lib/kind-local/bin")  # where `kind` and `engine` put commands that the host lacks
SYSTEM, NAMESPACE = "nanochat-system", "chat"
CONTROLLER, MLFLOW, SERVER = "nanochat-controller", "nanochat-mlflow", "nanochat-inference"  # Deployments
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "testtest"}
TARGETS = ("trainer", "operator")  # images that all tests need
BUSY = 3.0

Status = dict[str, Any]


def path() -> str:
    """PATH behind the folders where the cluster's commands may be: a `docker` that builds with BuildKit among them."""
    return os.pathsep.join([str(TOOLS), str(MANIFESTS), os.environ["PATH"]])


def missing() -> list[str]:
    """What a cluster needs and this machine lacks. `engine` brings Docker where a host has none."""
    lacking = [] if shutil.which("kind", path=path()) else ["kind"]
    if not any(shutil.which(name, path=path()) for name in ("docker", "engine")):
        lacking.append("docker")
    return lacking + [str(f) for f in (MANIFESTS / "training-operator", MANIFESTS / "kueue") if not f.is_dir()]


def lacks(text: str) -> NoReturn:
    """Skip the test for what this machine lacks, or fail it where NANOCHAT_REQUIRE_CLUSTER is set."""
    if os.environ.get("NANOCHAT_REQUIRE_CLUSTER"):
        pytest.fail(text)
    pytest.skip(text)


@dataclass
class Site:
    """One cluster, by its name."""

    name: str

    # ---- commands -------------------------------------------------------------------------------------------

    def run(self, *command: str, input: str | None = None, check: bool = True, timeout: float = 300) -> str:
        """A command's standard output; it fails the test with what it said."""
        environment = {**os.environ, "PATH": path(), "COLUMNS": "200"}
        if shutil.which(command[0], path=path()) is None and not check:
            return ""
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=environment,
            input=input,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if check and done.returncode:
            raise AssertionError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        return done.stdout

    def kubectl(self, *arguments: str, input: str | None = None, check: bool = True, timeout: float = 240) -> str:
        command = ("kubectl", "--context", f"kind-{self.name}", *arguments)
        return self.run(*command, input=input, check=check, timeout=timeout)

    def get(self, *arguments: str) -> Any:
        """Objects as data."""
        return json.loads(self.kubectl("get", *arguments, "-o", "json"))

    def nanochat(self, *arguments: str, check: bool = True) -> str:
        """The project's own command, with nothing but the kubeconfig."""
        context = ("--context", f"kind-{self.name}", "-n", NAMESPACE)
        return self.run(sys.executable, "-m", "nanochat.cli.main", *arguments, *context, check=check)

    def kind(self, *arguments: str, timeout: float = 900) -> str:
        # Deleting takes minutes where the disk is mounted with `discard`: each file of each node's images is trimmed.
        return self.run("kind", *arguments, "--name", self.name, timeout=timeout)

    # ---- building it ----------------------------------------------------------------------------------------

    def start_docker(self) -> None:
        """Start Docker where it does not run and `engine` brings it."""
        if shutil.which("engine", path=path()) and not self.run("docker", "info", "-f", "{{.ID}}", check=False).strip():
            say("starting Docker")
            self.run("engine", "up", timeout=600)

    def exists(self) -> bool:
        return self.name in self.run("kind", "get", "clusters", check=False).split()

    def create(self) -> None:
        """Make the cluster, with nothing in it."""
        say("creating the cluster")
        self.kind("create", "cluster", "--config", "k8s/kind.yaml", "--wait", "2m")

    def destroy(self) -> None:
        """Remove the cluster. Pods that end in the middle of it may make that fail."""
        patiently(lambda: self.kind("delete", "cluster"))

    def up(self) -> None:
        """Make whatever is not there yet."""
        self.start_docker()
        for target in TARGETS:
            self.build(target)
        if not self.kubectl("get", "nodes", "-o", "name", "--request-timeout=20s", check=False):
            if self.exists():
                self.destroy()  # it does not answer any more
            self.create()
        say("loading the images")
        for target in TARGETS:
            self.load(f"nanochat-{target}:test")
        say("installing the operators, storage and the chart")
        for part in ("training-operator", "kueue"):
            self.kubectl("apply", "--server-side", "-f", str(MANIFESTS / part / "manifests.yaml"))
        # Their webhooks judge every pod and Deployment that comes after.
        self.kubectl("-n", "kubeflow", "rollout", "status", "deployment/training-operator", "--timeout=180s")
        self.kubectl("-n", "kueue-system", "rollout", "status", "deployment/kueue-controller-manager", "--timeout=180s")
        document = (ROOT / "tests" / "cluster" / "storage.yaml").read_text().replace("NODE", self.nodes()[-1])
        # A webhook that is ready is reached a little later, when the rules for its Service are there too.
        patiently(lambda: self.kubectl("apply", "-f", "-", input=document))
        for namespace in (SYSTEM, NAMESPACE):
            self.kubectl("create", "namespace", namespace, check=False)
            literals = [f"--from-literal={name}={value}" for name, value in CREDENTIALS.items()]
            secret = self.kubectl(
                "create", "secret", "generic", "s3", "-n", namespace, *literals, "--dry-run=client", "-o", "yaml"
            )
            self.kubectl("apply", "-f", "-", input=secret)
            self.kubectl("label", "ns", namespace, "--overwrite", "pod-security.kubernetes.io/enforce=restricted")
        self.kubectl("-n", "storage", "rollout", "status", "deployment/s3", "--timeout=120s")
        self.bucket()
        self.kubectl("apply", "--server-side", "-f", "helm/nanochat/files/chatpipelines.nanochat.dev.yaml")
        self.install()

    def build(self, target: str) -> None:
        """Build an image."""
        say(f"building {target}")
        chosen = ("--target", target, "--build-arg", "ACCELERATOR=cpu", "-t", f"nanochat-{target}:test")
        self.run("docker", "build", "-q", *chosen, "-f", "images/Dockerfile", ".", timeout=900)

    def load(self, image: str) -> None:
        """Bring an image to the nodes. A node may remove layers of the tag's former image in the middle of it."""
        patiently(lambda: self.kind("load", "docker-image", image, timeout=600))

    def image_id(self, image: str) -> str:
        return self.run("docker", "image", "inspect", "-f", "{{.ID}}", image).strip()

    def install(self, **values: str) -> None:
        """Install the chart, or change its values."""
        profile = {
            "root": "s3://chat/nanochat",
            "endpoint": "http://s3.storage:7070",
            "region": "us-east-1",
            "secret": "s3",
            "controllerSecret": "s3",
        }
        chosen = {
            "images": {"tag": "test", "loaded": True},
            "crds": {"install": False},
            "mlflow": {"enabled": False},
            "inference": {"enabled": False},
            "storePatienceSeconds": 120,
            "profiles": {"default": profile, "other": profile | {"root": "s3://chat/other"}},
            "pools": {"cpu": {"memoryLimit": "4Gi"}, "gpu": GPU_POOL},
            # Another image under the same tag is another controller.
            "controller": {"podAnnotations": {"image": self.image_id("nanochat-operator:test")}},
        }
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
            yaml.safe_dump(chosen, file)
            file.flush()
            sets = [f"--set={name}={value}" for name, value in values.items()]
            context = ("--kube-context", f"kind-{self.name}", "-n", SYSTEM)
            self.run(
                "helm",
                "upgrade",
                "--install",
                "nanochat",
                "helm/nanochat",
                "-f",
                file.name,
                *sets,
                *context,
            )
        self.kubectl("-n", SYSTEM, "rollout", "status", f"deployment/{CONTROLLER}", "--timeout=120s")

    @contextmanager
    def forward(self, namespace: str, target: str, port: int) -> Iterator[str]:
        """An address on this machine for a port in the cluster."""
        command = ["kubectl", "--context", f"kind-{self.name}", "-n", namespace, "port-forward", target, f":{port}"]
        environment = {**os.environ, "PATH": path()}
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout is not None
                line = process.stdout.readline()  # Forwarding from 127.0.0.1:41327 -> 5000
                assert "127.0.0.1:" in line, f"{' '.join(command)}: {line}"
                yield f"http://127.0.0.1:{line.split('127.0.0.1:')[1].split()[0]}"
            finally:
                process.terminate()

    def nodes(self) -> list[str]:
        """The machines that pods run on; storage is on the last one."""
        names = [node["metadata"]["name"] for node in self.get("nodes")["items"]]
        return sorted(name for name in names if "control-plane" not in name)

    def fill_mirror(self, mirror: Path) -> None:
        """Copy the data mirror to where pods read it: http://mirror.storage:8000."""
        self.kubectl("-n", "storage", "wait", "pod/mirror", "--for=condition=Ready", "--timeout=120s")
        # By its parts, for the folder in the pod has an owner of its own.
        pack, into = (
            f"cd {mirror} && tar --mode=u+w -c *",
            f"kubectl --context kind-{self.name} -n storage exec -i mirror --",
        )
        command = f"({pack}) | {into} tar -C /data -x"
        self.run("sh", "-c", command)

    # ---- storage --------------------------------------------------------------------------------------------

    @property
    def endpoint(self) -> str:
        """The S3 server, from the host."""
        node = self.get("node", self.nodes()[-1])
        address = next(a["address"] for a in node["status"]["addresses"] if a["type"] == "InternalIP")
        return f"http://{address}:30070"

    def bucket(self) -> None:
        """Make the bucket, once the server answers."""
        import s3fs

        deadline = time.monotonic() + 60
        while True:
            try:
                files = s3fs.S3FileSystem(
                    key="test", secret="testtest", endpoint_url=self.endpoint, skip_instance_cache=True
                )
                if not files.exists("chat"):
                    files.mkdir("chat")
                return
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(1)

    def store(self, root: str = "s3://chat/nanochat") -> Store:
        """The pipelines' store, from the host."""
        folder = Path(tempfile.mkdtemp())
        for name, value in CREDENTIALS.items():
            (folder / name).write_text(value)
        return open_store(Profile(root=root, endpoint=self.endpoint, region="us-east-1"), credentials=folder)

    # ---- pipelines ------------------------------------------------------------------------------------------

    def apply(self, document: Mapping[str, Any]) -> None:
        self.kubectl("-n", NAMESPACE, "apply", "-f", "-", input=yaml.safe_dump(dict(document)))

    def delete(self, name: str) -> None:
        self.kubectl("-n", NAMESPACE, "delete", "cp", name, "--ignore-not-found", "--wait=true")

    def status(self, name: str) -> Status:
        return self.get("cp", name, "-n", NAMESPACE).get("status") or {}

    def wait(self, name: str, until: Callable[[Status], Any], *, seconds: float, what: str = "") -> Status:
        """The status as soon as something holds of it; the test fails when the pipeline does, or after a while.

        `seconds` are more than a quiet machine needs; a busy one gets `BUSY` times as many.
        """
        deadline, said = time.monotonic() + BUSY * seconds, ""
        while True:
            try:
                status = self.status(name)
            except AssertionError:  # the API server may be down on purpose
                status = {}
            line = " ".join(str(status.get(key) or "") for key in ("phase", "stage", "progress", "message"))
            if line != said:
                said = line
                say(f"{name}: {line}")
            if status and until(status):
                return status
            if status.get("phase") == "Failed":
                raise AssertionError(f"{name} failed: {json.dumps(status, indent=1)}")
            if time.monotonic() > deadline:
                raise AssertionError(f"waited for {what or 'it'} in vain: {json.dumps(status, indent=1)}")
            time.sleep(1)

    def at_step(self, name: str, stage: str, step: int, *, seconds: float = 300) -> Status:
        """Wait until a stage trains and has come to a step."""

        def there(status: Status) -> bool:
            own = next((s for s in status.get("stages", ()) if s["name"] == stage), {})
            return own.get("phase") == "Running" and own.get("step", 0) >= step

        return self.wait(name, there, seconds=seconds, what=f"step {step} of {stage}")

    def pods(self, name: str, stage: str) -> list[dict[str, Any]]:
        """The pods of a stage's latest attempt, by their rank."""
        labels = f"nanochat.dev/pipeline={name},nanochat.dev/stage={stage}"
        found = self.get("pods", "-n", NAMESPACE, "-l", labels)["items"]
        last = max((int(p["metadata"]["labels"]["nanochat.dev/attempt"]) for p in found), default=0)
        own = [p for p in found if int(p["metadata"]["labels"]["nanochat.dev/attempt"]) == last]
        return sorted(own, key=lambda p: p["metadata"]["labels"]["training.kubeflow.org/replica-index"])

    # ---- faults ---------------------------------------------------------------------------------------------

    def exec(self, pod: str, program: str, *, check: bool = True) -> str:
        """Run a Python program in a trainer's pod."""
        return self.kubectl("-n", NAMESPACE, "exec", pod, "--", "python", "-c", program, check=check)

    def evict(self, pod: str) -> None:
        """Through the Eviction API, as a drain does."""
        body = {
            "apiVersion": "policy/v1",
            "kind": "Eviction",
            "metadata": {"name": pod, "namespace": NAMESPACE},
        }
        where = f"/api/v1/namespaces/{NAMESPACE}/pods/{pod}/eviction"
        self.kubectl("create", "--raw", where, "-f", "-", input=json.dumps(body))

    def kill_controller(self) -> None:
        """SIGKILL; the Deployment starts another one."""
        chosen = ("-l", "app.kubernetes.io/component=controller")
        self.kubectl("-n", SYSTEM, "delete", "pod", *chosen, "--force", "--grace-period=0")
        self.kubectl("-n", SYSTEM, "rollout", "status", f"deployment/{CONTROLLER}", "--timeout=120s")

    def scale(self, namespace: str, deployment: str, replicas: int) -> None:
        self.kubectl("-n", namespace, "scale", f"deployment/{deployment}", f"--replicas={replicas}")
        if replicas == 0:
            self.kubectl("-n", namespace, "wait", "pod", "-l", SELECTORS[deployment], "--for=delete", "--timeout=60s")
        else:
            self.kubectl("-n", namespace, "rollout", "status", f"deployment/{deployment}", "--timeout=120s")

    def kubelet(self, node: str, signal_: int) -> None:
        """Stop or continue a node's kubelet alone: the machine is cut off, and its pods go on."""
        found = [
            process
            for process in psutil.process_iter(["cmdline"])
            if "kubelet" in " ".join(process.info["cmdline"] or ())
            and any(word.endswith(f"={node}") or f"/{node}/" in word for word in process.info["cmdline"] or ())
        ]
        assert found, f"no kubelet of {node} was found on this machine"
        for process in found:
            process.send_signal(signal_)


SELECTORS = {CONTROLLER: "app.kubernetes.io/component=controller", "s3": "app=s3"}
GPU_POOL = {
    "pods": {
        "nodeSelector": {"pool": "gpu"},
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
    }
}


def check_keys(site: Site, status: Status, pipeline: Mapping[str, Any]) -> None:
    """The artifacts have the keys that a local run's would have, and all are there."""
    graph = build_graph(check_pipeline(dict(pipeline)).spec)
    local = {out.ref: out.key for node in graph.nodes for out in node.outputs}
    assert {ref: key for stage in status["stages"] for ref, key in stage["keys"].items()} == local
    store = site.store()
    for ref, key in local.items():
        assert store.exists(f"artifacts/{ref.split('/')[0]}/{key}/manifest.json"), ref


def patiently(step: Callable[[], object]) -> None:
    """Take a step of setting up or removing, again where it fails: at most three times in ten seconds."""
    for remaining in (2, 1, 0):
        try:
            step()
            return
        except AssertionError:
            if not remaining:
                raise
            time.sleep(5)


def say(text: str) -> None:
    """A line for whoever watches the test."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.__stderr__, flush=True)
