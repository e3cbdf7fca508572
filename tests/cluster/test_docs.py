"""The `cluster` blocks of the documentation, run in their order as somebody who reads would type them.

The kubeconfig's context is the test's cluster, the release's namespace is another one, and `k8s/pipelines/cpu.yaml`
holds a small pipeline. Blocks about the chat API are skipped where no model was ever released.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import doc_pages
import pytest
import yaml
from doc_pages import PAGES, ROOT, Block, commands
from documents import WORLD, document
from site_of_tests import MLFLOW, NAMESPACE, SERVER, SYSTEM, Site, path

from nanochat.data.identity import generate
from nanochat.spec.chatpipeline import RETRY

pytestmark = pytest.mark.cluster

# The order in which somebody would read them: the pipeline is submitted before it is looked at.
ORDER = ("install.md", "cluster.md")
BLOCKS = [block for page in PAGES for block in doc_pages.read_blocks(page) if block.mark == "cluster"]
BLOCKS.sort(key=lambda block: ORDER.index(block.page.name) if block.page.name in ORDER else len(ORDER))
# What is run by something else: a part of the command, and the file with what runs it.
ELSEWHERE = {
    "make kind-": "Makefile",
    "nanochat rollback": "tests/cli/test_rollback.py",
}
PARTS = {
    MLFLOW: (MLFLOW,),
    SERVER: (SERVER, "127.0.0.1:8000"),
}


@dataclass(frozen=True)
class Reader:
    """A folder with what the commands read, and the variables under which they run."""

    site: Site
    folder: Path
    environment: dict[str, str]

    def run(self, command: str) -> str:
        return doc_pages.run(command, self.folder, self.environment, timeout=900)

    def start(self, command: str) -> subprocess.Popen[bytes]:
        nowhere = subprocess.DEVNULL
        command = f"exec {command}"
        return subprocess.Popen(
            ["sh", "-c", command], cwd=self.folder, env=self.environment, stdout=nowhere, stderr=nowhere
        )

    def lacks(self, text: str) -> str:
        """A Deployment of the release that commands need and that has no pod ready; '' where all are there."""
        for name, signs in PARTS.items():
            if any(sign in text for sign in signs):
                field = "jsonpath={.status.readyReplicas}"
                command = ("-n", SYSTEM, "get", "deployment", name, "-o", field, "--ignore-not-found")
                if not self.site.kubectl(*command).strip("0"):
                    return name
        return ""


@pytest.fixture(scope="module")
def reader(site: Site, chat: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    """Whoever reads the pages, with the test's cluster as the current context."""
    folder = tmp_path_factory.mktemp("reader")
    for name in ("helm", "docs"):
        (folder / name).symlink_to(ROOT / name)
    pipelines = folder / "k8s" / "pipelines"
    pipelines.mkdir(parents=True)
    generate(folder / "me.jsonl", name="Robin", maker="the Example team", facts=[], count=40)
    mid = {"stages.mid.identity": "me.jsonl", "stages.mid.mixture": [{"task": "identity"}]}  # `submit` uploads the file
    (pipelines / "cpu.yaml").write_text(yaml.safe_dump(document(WORLD, "cpu", **{"stages.base.steps": 100}, **mid)))
    doc_pages.program(folder / "bin", "nanochat", "nanochat.cli.main")
    kubeconfig = folder / "kubeconfig"
    kubeconfig.write_text(site.kubectl("config", "view", "--raw", "--minify", "--flatten"))
    kubeconfig.chmod(0o600)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("NANOCHAT_")}
    environment |= {
        "KUBECONFIG": str(kubeconfig),
        "NANOCHAT_HOME": str(folder / "state"),
        "PATH": os.pathsep.join([str(folder / "bin"), path()]),
        "COLUMNS": "200",
    }
    site.delete("cpu")
    yield Reader(site, folder, environment)
    site.delete("cpu")


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.name)
def test_cluster_commands_work(block: Block, reader: Reader) -> None:
    """Each ends well. What would take the release away is tried as a dry run."""
    lacking = reader.lacks(block.text)
    if lacking:
        pytest.skip(f"the test's release has no {lacking} that is ready")
    servers: list[subprocess.Popen[bytes]] = []
    try:
        for command in commands(block.text):
            if any(part in command for part in ELSEWHERE):
                continue
            command = in_the_tests_place(command)
            if "port-forward" in command:
                servers.append(reader.start(command))
            elif "nanochat logs cpu release" not in command:  # the small pipeline releases nothing
                reader.run(command)
            if command.startswith("nanochat retry"):  # people type more slowly than the controller looks
                asked = reader.site.get("cp", "cpu", "-n", NAMESPACE)["metadata"]["annotations"][RETRY]
                reader.site.wait("cpu", lambda status, asked=asked: status.get("retriedAt") == asked, seconds=60)
    finally:
        for server in servers:
            server.terminate()
            server.wait(30)


def in_the_tests_place(command: str) -> str:
    """A command with the test's namespace and images; what would take the release away or back is a dry run."""
    command = re.sub(r"-n nanochat\b(?!-)", f"-n {SYSTEM}", command)
    command = re.sub(r"(nanochat-(?:trainer|operator)):dev", r"\1:test", command)
    changed = {
        "helm rollback": "helm rollback --dry-run=server",
        "helm uninstall": "helm uninstall --dry-run",
        "curl -s": "curl -s --fail --retry 20 --retry-connrefused --retry-delay 1",
    }
    for text, other in changed.items():
        command = command.replace(text, other)
    return command


def test_what_is_run_elsewhere_is_run_there() -> None:
    for file in ELSEWHERE.values():
        assert (ROOT / file).is_file()


def test_the_namespaces_are_told_apart() -> None:
    assert in_the_tests_place("kubectl -n nanochat get deployments") == f"kubectl -n {SYSTEM} get deployments"
    assert in_the_tests_place("nanochat status cpu -n chat") == f"nanochat status cpu -n {NAMESPACE}"
    assert "--dry-run" in in_the_tests_place("helm uninstall nanochat -n nanochat")
