"""The faults of the storm: each is done to a pipeline in the midst of training, and undone.

    fault = random.choice(FAULTS)
    fault.inject(target)                      # returns when it is over
    fault.outcomes                            # how the attempts that it hits end; none: they go on

All is done as a person with the cluster's machines would do it: with kubectl, kind, and signals to the programs, which
in the local cluster are processes of this machine.
"""

from __future__ import annotations

import json
import random
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from site_of_tests import CONTROLLER, MLFLOW, NAMESPACE, SYSTEM, Site, patiently

from nanochat.storage.checkpoints import Checkpoints

PAUSE = 8.0  # seconds: shorter than whatever calls something lost
PREEMPTED, STALLED, INFRASTRUCTURE = frozenset({"Preempted"}), frozenset({"Stalled"}), frozenset({"Infrastructure"})
LATE_CLOCK = "import time\nnow = time.time\ntime.time = lambda: now() - 3600.0\n"


class MissedError(Exception):
    """The stage had ended before the fault came."""


@dataclass
class Target:
    """A stage of a pipeline that trains, and what is hit of it by chance."""

    site: Site
    document: Mapping[str, Any]
    stage: str
    random: random.Random
    cut: set[str] = field(default_factory=set)  # nodes that were cut off: what runs there is nobody's fault

    @property
    def name(self) -> str:
        return self.document["metadata"]["name"]

    def pod(self) -> dict[str, Any]:
        """One of the stage's pods."""
        return self.random.choice(self.site.pods(self.name, self.stage))

    def pod_name(self) -> str:
        return self.pod()["metadata"]["name"]

    def job(self) -> str:
        return self.pod()["metadata"]["labels"]["training.kubeflow.org/job-name"]

    def node(self) -> str:
        """A node of the stage, but not the one with storage."""
        used = {pod["spec"]["nodeName"] for pod in self.site.pods(self.name, self.stage)}
        return self.random.choice(sorted(used - {self.site.nodes()[-1]}) or self.site.nodes()[:-1])

    def kubectl(self, *arguments: str, input: str | None = None) -> str:
        return self.site.kubectl("-n", NAMESPACE, *arguments, input=input)

    def ranks(self) -> list[psutil.Process]:
        """The ranks in one of the stage's pods."""
        found = self.processes("nanochat.stages")
        return [process for process in found if "torch.distributed.run" not in process.cmdline()]

    def processes(self, word: str = "") -> list[psutil.Process]:
        """The processes of one of the stage's pods with a word in their command."""
        return processes_of(self.pod_name(), word)


@dataclass(frozen=True)
class Fault:
    """One kind of fault."""

    name: str
    inject: Callable[[Target], object]
    outcomes: frozenset[str] = frozenset()
    may: frozenset[str] = frozenset()  # outcomes that depend on what the stage was at


# ---- processes --------------------------------------------------------------------------------------------------


def processes_of(pod: str, word: str = "") -> list[psutil.Process]:
    """A pod's processes, by the name that its containers have for their machine."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.environ().get("HOSTNAME") == pod and word in " ".join(process.cmdline()):
                found.append(process)
    if not found:
        raise MissedError(f"no process of {pod} was found on this machine")
    return found


def program(name: str) -> list[psutil.Process]:
    """A program of the control plane; others of the name, which tests start, lie elsewhere."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            command = process.cmdline()
            if command and command[0].endswith(f"/{name}") and any("/var/lib/kind-local" in part for part in command):
                found.append(process)
    assert found, f"no {name} of the cluster was found on this machine"
    return found


def send(found: list[psutil.Process], number: int) -> None:
    for process in found:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)


@contextmanager
def paused(found: list[psutil.Process]) -> Iterator[None]:
    send(found, signal.SIGSTOP)
    try:
        yield
    finally:
        send(found, signal.SIGCONT)


def pause(found: list[psutil.Process], seconds: float = PAUSE) -> None:
    with paused(found):
        time.sleep(seconds)


def slow(found: list[psutil.Process], seconds: float = 30.0) -> None:
    """One part in ten of the time."""
    for _ in range(int(seconds)):
        pause(found, 0.9)
        time.sleep(0.1)


def part(target: Target, namespace: str, selector: str) -> list[psutil.Process]:
    """The processes of a part of the system, by a label of its pod."""
    pods = target.site.get("pods", "-n", namespace, "-l", selector)["items"]
    assert pods, f"no pod {selector} in {namespace}"
    return processes_of(pods[0]["metadata"]["name"])


S3, OPERATOR = ("storage", "app=s3"), ("kubeflow", "control-plane=kubeflow-training-operator")
CONTROLLERS, TRACKING = (
    (SYSTEM, "app.kubernetes.io/component=controller"),
    (SYSTEM, "app.kubernetes.io/component=mlflow"),
)


def kill(target: Target, namespace: str, selector: str, deployment: str) -> None:
    """SIGKILL; the Deployment starts another one."""
    target.site.kubectl("-n", namespace, "delete", "pod", "-l", selector, "--force", "--grace-period=0")
    target.site.kubectl("-n", namespace, "rollout", "status", f"deployment/{deployment}", "--timeout=180s")


# ---- faults of pods and nodes -----------------------------------------------------------------------------------


def wait_ended(target: Target) -> None:
    """Until the running attempt of the stage has ended, if that takes no longer than it may."""
    wait_for_end(target, target.site.status(target.name))


def wait_for_end(target: Target, before: Mapping[str, Any], seconds: float = 240.0) -> None:
    """Until an attempt of the stage has ended since the status `before`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with suppress(AssertionError):  # the API server may be away
            status = target.site.status(target.name)
            if status.get("run") != before.get("run") or ended(status, target.stage) != ended(before, target.stage):
                return
        time.sleep(1)


def ended(status: Mapping[str, Any], stage: str) -> list[str]:
    """The outcomes of a stage's attempts."""
    own = [item for item in status.get("attempts") or () if item["stage"] == stage]
    return [item["reason"] for item in own if item["reason"] != "Running"]


def cut_network(target: Target) -> None:
    """Nothing comes in or goes out of a pod."""
    into = ("nsenter", "-n", "-t", str(target.processes()[0].pid), "iptables", "-w")
    for verb, wait in (("-I", 2 * PAUSE), ("-D", 0.0)):
        for chain in ("INPUT", "OUTPUT"):
            target.site.run(*into, verb, chain, "!", "-i" if chain == "INPUT" else "-o", "lo", "-j", "DROP")
        time.sleep(wait)


def fill_disk(target: Target) -> None:
    """A pod's folder lies on a disk on which there is room for nothing more."""
    found = target.processes("nanochat.pipeline.launcher")[0]
    move = "mkdir /tmp/disk && mount -t tmpfs -o size=64m none /tmp/disk && cp -a /work/. /tmp/disk/"
    fill = "mount --bind /tmp/disk /work && (cat /dev/zero > /work/full || true)"
    target.site.run("nsenter", "-m", "-t", str(found.pid), "sh", "-c", f"{move} && {fill}")
    wait_ended(target)


def drain(target: Target) -> None:
    node = target.node()
    target.site.kubectl("drain", node, "--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout=120s")
    target.site.kubectl("uncordon", node)


def lose_node(target: Target) -> None:
    node = target.node()
    patiently(lambda: target.site.run("kind", "stop-node", node))  # it may miss a pod that ends just then
    try:
        wait_ended(target)
    finally:
        target.site.run("kind", "start-node", node)


def cut_off_node(target: Target) -> None:
    """Its kubelet says nothing while its pods go on."""
    node = target.node()
    target.cut.add(node)
    target.site.kubelet(node, signal.SIGSTOP)
    try:
        wait_ended(target)
    finally:
        target.site.kubelet(node, signal.SIGCONT)


def pause_kubelet(target: Target) -> None:
    node = target.node()
    target.site.kubelet(node, signal.SIGSTOP)
    try:
        time.sleep(PAUSE)
    finally:
        target.site.kubelet(node, signal.SIGCONT)


def stop_ranks(target: Target) -> None:
    send(target.ranks(), signal.SIGSTOP)
    wait_ended(target)


def stop_pod(target: Target) -> None:
    send(target.processes(), signal.SIGSTOP)
    wait_ended(target)


# ---- faults of the control plane and of storage -----------------------------------------------------------------


def stop_program(name: str) -> Callable[[Target], None]:
    def stop(target: Target) -> None:
        target.site.run("kind", "stop-program", name)
        time.sleep(20)
        target.site.run("kind", "start-program", name)
        patiently(lambda: target.site.kubectl("get", "nodes", "--request-timeout=20s"))

    return stop


def stop_s3(target: Target) -> None:
    target.site.scale("storage", "s3", 0)
    time.sleep(30)
    target.site.scale("storage", "s3", 1)


def read_only_s3(target: Target) -> None:
    command, flag = "/spec/template/spec/containers/0/command/1", "--readonly"
    for change in ({"op": "add", "path": command, "value": flag}, {"op": "remove", "path": command}):
        patch = ("-n", "storage", "patch", "deployment", "s3", "--type=json", "-p", json.dumps([change]))
        patiently(lambda patch=patch: target.site.kubectl(*patch))  # Kueue's webhook may be on its way back
        target.site.kubectl("-n", "storage", "rollout", "status", "deployment/s3", "--timeout=120s")
        time.sleep(20)


def damage_checkpoint(target: Target) -> None:
    """The newest checkpoint is cut short, and the next attempt has to do without it."""
    status, store = target.site.status(target.name), target.site.store()
    keys = next(stage["keys"] for stage in status["stages"] if stage["name"] == target.stage)
    newest = Checkpoints(store, target.stage, keys[f"model/{target.stage}"], Path(tempfile.mkdtemp())).newest()
    if newest is not None:
        victim = target.random.choice([file for file in store.list(newest.path) if file.size > 1000])
        store.write(victim.path, store.read(victim.path, 1 << 30)[: victim.size // 2])
    target.kubectl("delete", "pod", target.pod_name(), "--wait=false")


def set_clock_back(target: Target) -> None:
    """The controller's clock is an hour late for a while, then right again."""
    source = target.site.kubectl(
        "create", "configmap", "late-clock", "-n", SYSTEM, f"--from-literal=sitecustomize.py={LATE_CLOCK}",
        "--dry-run=client", "-o", "yaml",
    )  # fmt: skip
    target.site.kubectl("apply", "-f", "-", input=source)
    deployment = target.site.get("deployment", CONTROLLER, "-n", SYSTEM)
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    container["env"] = [
        *container.get("env", []),
        {"name": "PYTHONPATH", "value": "/clock:/opt/nanochat:/opt/packages"},
    ]
    change = {
        "containers": [
            {
                "name": container["name"],
                "env": container["env"],
                "volumeMounts": [*container.get("volumeMounts", []), {"name": "clock", "mountPath": "/clock"}],
            }
        ],
        "volumes": [{"name": "clock", "configMap": {"name": "late-clock"}}],
    }
    system = ("-n", SYSTEM)
    target.site.kubectl(
        *system, "patch", "deployment", CONTROLLER, "-p", json.dumps({"spec": {"template": {"spec": change}}})
    )
    target.site.kubectl(*system, "rollout", "status", f"deployment/{CONTROLLER}", "--timeout=180s")
    time.sleep(30)
    target.site.kubectl(*system, "rollout", "undo", f"deployment/{CONTROLLER}")
    target.site.kubectl(*system, "rollout", "status", f"deployment/{CONTROLLER}", "--timeout=180s")


# ---- faults of objects ------------------------------------------------------------------------------------------


def delete_secret(target: Target) -> None:
    kept = target.site.get("secret", "s3", "-n", NAMESPACE)
    kept["metadata"] = {"name": "s3", "namespace": NAMESPACE}
    target.kubectl("delete", "secret", "s3")
    time.sleep(PAUSE)
    target.kubectl("apply", "-f", "-", input=json.dumps(kept))


def patch(target: Target, change: Mapping[str, Any], *more: str) -> None:
    target.kubectl("patch", "cp", target.name, "--type=merge", "-p", json.dumps(change), *more)


def suspend(target: Target) -> None:
    patch(target, {"spec": {"suspend": True}})
    wait_ended(target)
    patch(target, {"spec": {"suspend": False}})


def apply_again(target: Target) -> None:
    target.site.delete(target.name)
    target.site.apply(target.document)


def tamper_with_status(target: Target) -> None:
    patch(
        target, {"status": {"phase": "Failed", "attempts": [], "stages": [], "run": "runs/x"}}, "--subresource=status"
    )


FAULTS = (
    Fault("rank killed", lambda t: send(t.ranks(), signal.SIGKILL), INFRASTRUCTURE),
    Fault("rank stopped", stop_ranks, STALLED),
    Fault("rank paused", lambda t: pause(t.ranks())),
    Fault(
        "launcher killed", lambda t: send(t.processes("nanochat.pipeline.launcher")[:1], signal.SIGKILL), INFRASTRUCTURE
    ),
    Fault("launcher paused", lambda t: pause(t.processes("nanochat.pipeline.launcher")[:1])),
    Fault("pod deleted", lambda t: t.kubectl("delete", "pod", t.pod_name(), "--wait=false"), PREEMPTED),
    Fault("pod deleted by force", lambda t: t.kubectl("delete", "pod", t.pod_name(), "--force"), PREEMPTED),
    Fault("pod evicted", lambda t: t.site.evict(t.pod_name()), PREEMPTED),
    Fault("pod stopped", stop_pod, STALLED),
    Fault("pod's network cut", cut_network),
    Fault("pod's disk full", fill_disk, frozenset({"UserError"})),
    Fault("node drained", drain, PREEMPTED),
    Fault("node lost", lose_node, PREEMPTED),
    Fault("node cut off", cut_off_node, PREEMPTED),
    Fault("kubelet paused", pause_kubelet),
    Fault("controller killed", lambda t: t.site.kill_controller()),
    Fault("controller paused", lambda t: pause(part(t, *CONTROLLERS), 40.0)),
    Fault("controller's clock set back", set_clock_back),
    Fault("API server stopped", stop_program("kube-apiserver")),
    Fault("API server paused", lambda t: pause(program("kube-apiserver"))),
    Fault("etcd stopped", stop_program("etcd")),
    Fault("etcd paused", lambda t: pause(program("etcd"))),
    Fault("S3 stopped", stop_s3),
    Fault("S3 paused", lambda t: pause(part(t, *S3), 20.0)),
    Fault("S3 slow", lambda t: slow(part(t, *S3))),
    Fault("S3 read-only", read_only_s3, may=frozenset({"UserError"})),  # a save that is refused is for a person to mend
    Fault("MLflow killed", lambda t: kill(t, *TRACKING, MLFLOW)),
    Fault("MLflow paused", lambda t: pause(part(t, *TRACKING), 30.0)),
    Fault("training operator killed", lambda t: kill(t, *OPERATOR, "training-operator")),
    Fault("training operator paused", lambda t: pause(part(t, *OPERATOR), 20.0)),
    Fault("plan deleted", lambda t: t.kubectl("delete", "configmap", t.job())),
    Fault("job deleted", lambda t: t.kubectl("delete", "pytorchjob", t.job(), "--wait=false"), PREEMPTED),
    Fault("job orphaned", lambda t: t.kubectl("delete", "pytorchjob", t.job(), "--cascade=orphan"), PREEMPTED),
    Fault("Secret deleted", delete_secret),
    Fault("pod's label taken", lambda t: t.kubectl("label", "pod", t.pod_name(), "nanochat.dev/pipeline-uid-")),
    Fault("job's label taken", lambda t: t.kubectl("label", "pytorchjob", t.job(), "nanochat.dev/pipeline-uid-")),
    Fault(
        "job's annotation tampered with",
        lambda t: t.kubectl("annotate", "pytorchjob", t.job(), "--overwrite", "nanochat.dev/attempt=no JSON"),
    ),
    Fault("status tampered with", tamper_with_status),
    Fault("suspended and resumed", suspend, PREEMPTED),
    Fault("edited", lambda t: patch(t, {"spec": {"retries": {"limit": t.random.randint(20, 90)}}})),
    Fault("deleted and applied again", apply_again),
    Fault("newest checkpoint damaged", damage_checkpoint, PREEMPTED),
)
