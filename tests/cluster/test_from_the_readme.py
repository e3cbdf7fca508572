"""README.md's way to a model on GPU pools, typed from an empty cluster: images pushed, chart installed, a question.

The commands are the README's. What differs has to: the registry is Debian's docker-registry on this machine, trainer
and server are built for CPUs, the pipeline is a small one, and the training operator's manifest is a copy of what its
command names. How long each step took, what the images weigh and how long nodes pulled them is printed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import doc_pages
import pytest
import yaml
from doc_pages import commands
from documents import WORLD, document
from site_of_tests import MANIFESTS, ROOT, Site, lacks, path, say

from nanochat.spec.chatpipeline import TRAINING_OPERATOR

pytestmark = pytest.mark.cluster

REGISTRY, PIPELINE = "registry.example.org/team", "k8s/pipelines/speedrun.yaml"  # the README's
PLACE = ("-n", "nanochat")
IMAGES = ("trainer", "server", "operator", "mlflow")
MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A registry's address, with which Docker and nodes that share this machine's network speak HTTP."""
    if shutil.which("docker-registry") is None:
        lacks("no registry can be started here: install Debian's package docker-registry")
    folder = tmp_path_factory.mktemp("registry")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {
        "version": 0.1,
        "log": {"level": "warn", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(folder / "images")}},
        "http": {"addr": f"127.0.0.1:{port}"},
    }
    (folder / "config.yml").write_text(yaml.safe_dump(settings))
    with (folder / "log").open("w") as log:
        command = ["docker-registry", "serve", str(folder / "config.yml")]
        process = subprocess.Popen(command, stdout=log, stderr=log)
    address = f"localhost:{port}/team"
    try:
        yield address
    finally:
        names = Site("").run(
            "docker", "images", "--filter", f"reference={address}/*", "--format", "{{.Repository}}:{{.Tag}}"
        )
        if names:
            Site("").run("docker", "image", "rm", *names.split())
        process.terminate()
        process.wait(30)
        shutil.rmtree(folder)


@dataclass
class Typist:
    """Somebody who types the README's commands in a checkout, and looks at the clock."""

    site: Site
    registry: str
    pipeline: Path
    minutes: dict[str, float] = field(default_factory=dict)

    def type(self, command: str, *, seconds: float = 3000) -> str:
        """What a command printed, in this test's place."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("NANOCHAT_")}
        home = str(self.pipeline.parent / "home")
        environment |= {"PATH": path(), "ACCELERATOR": "cpu", "NANOCHAT_HOME": home, "COLUMNS": "200"}
        command = command.replace(REGISTRY, self.registry).replace(PIPELINE, str(self.pipeline))
        manifest = MANIFESTS / "training-operator" / "manifests.yaml"
        command = re.sub(r"-k ('|\")https://github.com/kubeflow/trainer.git/.*?\1", f"-f {manifest}", command)
        say(f"$ {command}")
        return doc_pages.run(command, ROOT, environment, timeout=seconds)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        self.minutes[name] = (time.monotonic() - began) / 60
        say(f"{name}: {self.minutes[name]:.1f} min")


def readme(*parts: str) -> Iterator[str]:
    """The commands of the README's GPU path in their order, each of which has its part."""
    blocks = [block for block in doc_pages.read_blocks(ROOT / "README.md") if block.mark == "gpu"]
    typed = [command for block in blocks for command in commands(block.text)]
    assert len(typed) == len(parts), typed
    for command, part in zip(typed, parts, strict=True):
        assert part in command, f"{command}: {part} was expected here"
        yield command


def install_operator(typist: Typist, command: str) -> None:
    with typist.step("training operator"):
        typist.type(command)
        typist.site.kubectl("-n", "kubeflow", "rollout", "status", "deployment/training-operator", "--timeout=180s")


@pytest.mark.parametrize("operator", ["before", "after"])
def test_from_nothing_to_an_answer(empty: Site, registry: str, tmp_path: Path, operator: str) -> None:
    """With the training operator there, and with it installed once the pipeline's status has said how."""
    if empty.run("docker", "ps", "--quiet", "--filter", f"name=^{empty.nodes()[0]}$").strip():
        pytest.skip(
            "these nodes are containers: localhost is another machine for them, and the registry is on this one"
        )
    small = tmp_path / "speedrun.yaml"
    release = {"stages.base.steps": 40, "stages.release": {"enabled": True}}
    small.write_text(yaml.safe_dump(document(WORLD, "speedrun", **release)))
    typist = Typist(empty, registry, small)
    push, install, apply, setup, follow, wait, forward, ask = readme(
        "make push", "helm install", "kubectl apply", "make setup", "--follow", " wait ", " port-forward ", "curl"
    )
    if operator == "before":
        install_operator(typist, TRAINING_OPERATOR)

    with typist.step("make push"):
        pushed = typist.type(push)
    assert all(f"pushed {registry}/nanochat-{image}:" in pushed for image in IMAGES)
    for image in IMAGES:
        say(f"{image}: {weight(registry, image) / 1e6:,.0f} MB pushed")
    with typist.step("helm install"):
        notes = typist.type(install)
    say(notes)
    assert (TRAINING_OPERATOR in notes) == (operator == "after")
    with typist.step("kubectl apply"):
        typist.type(apply)
    if operator == "after":
        install_operator(typist, told(empty))

    typist.type(setup)
    with typist.step("pipeline"):
        say(typist.type(follow))
    status = empty.get("cp", "speedrun", *PLACE)["status"]
    assert status["phase"] == "Succeeded", status
    with typist.step("model served"):
        typist.type(wait)
    with forwarded(typist, forward), typist.step("answer"):
        answer = json.loads(typist.type(retried(ask)))
    assert answer["choices"][0]["finish_reason"] in ("stop", "length") and answer["usage"]["completion_tokens"] > 0
    say(f"the answer: {answer['choices'][0]['message']['content']!r}")

    for pull in pulls(empty):
        say(pull)
    say(f"operator {operator}: {', '.join(f'{name} {took:.1f} min' for name, took in typist.minutes.items())}")


def told(site: Site) -> str:
    """The command that the pipeline's status tells for want of the training operator."""
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline:
        status = site.get("cp", "speedrun", *PLACE).get("status") or {}
        if found := re.search(r"kubectl apply .*$", status.get("message", "")):
            say(f"{status['phase']}: {status['message']}")
            assert found[0] == TRAINING_OPERATOR, status["message"]
            return found[0]
        time.sleep(1)
    raise AssertionError(f"the status tells no command: {status}")


@contextmanager
def forwarded(typist: Typist, command: str) -> Iterator[None]:
    """`kubectl port-forward ... &` as long as it is wanted."""
    plain, ampersand, _ = command.partition(" &")
    assert ampersand, f"{command} would never end"
    environment = {**os.environ, "PATH": path()}
    process = subprocess.Popen(["sh", "-c", f"exec {plain}"], env=environment, stdout=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        process.wait(30)


def retried(command: str) -> str:
    """The question, again until the port is forwarded: people type more slowly."""
    return command.replace("curl -s ", "curl -s --fail-with-body --retry 20 --retry-connrefused --retry-delay 1 ")


def weight(registry: str, image: str) -> int:
    """The bytes that a node without any of its layers pulls."""
    host, _, team = registry.partition("/")
    with urllib.request.urlopen(f"http://{host}/v2/{team}/nanochat-{image}/tags/list") as answer:
        (tag,) = json.load(answer)["tags"]
    asked = urllib.request.Request(
        f"http://{host}/v2/{team}/nanochat-{image}/manifests/{tag}", headers={"Accept": MANIFEST}
    )
    with urllib.request.urlopen(asked) as answer:
        return sum(layer["size"] for layer in json.load(answer)["layers"])


def pulls(site: Site) -> list[str]:
    """What the nodes say of the images that they pulled."""
    events = site.get("events", *PLACE, "--field-selector", "reason=Pulled")["items"]
    return sorted(event["message"] for event in events if "Successfully pulled" in event["message"])
