"""What the documentation says to type works: `local` blocks are run, all blocks are checked against the code.

Every shell block is marked: `local` ones run here, `cluster` ones in tests/cluster/test_docs.py, `gpu` ones nowhere.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import doc_pages
import jsonschema
import mlflow_server
import pytest
import typer.main
import yaml
from doc_pages import PAGES, ROOT, Block, commands, words
from pydantic import BaseModel

from nanochat.cli.main import app
from nanochat.parse.yaml_text import read_yaml
from nanochat.pipeline.graph import build_graph
from nanochat.pipeline.profiles import DeclaredProfile
from nanochat.spec.errors import UserError
from nanochat.spec.gates import parse as parse_gate
from nanochat.spec.load import apply_override, check_pipeline
from nanochat.spec.pipeline import PipelineSpec
from nanochat.spec.validation import validate
from nanochat.storage.files import walk
from tasks.task import Task

BLOCKS = [block for page in PAGES for block in doc_pages.read_blocks(page)]
SHELL = [block for block in BLOCKS if block.language == "sh"]
YAML = [block for block in BLOCKS if block.language == "yaml"]
LOCAL = [block for block in SHELL if block.mark == "local"]
CHART = ROOT / "helm" / "nanochat"
FOLDERS = ("docs", "helm", "k8s", "images", "nanochat", "operators", "tasks", "tests", ".ci")
KUBECTL = {"apply", "get", "create", "label", "annotate", "taint", "describe", "logs", "rollout", "exec", "scale"}
KUBECTL |= {"delete", "port-forward", "wait"}

# Commands that take too long to be run here, and the file with what runs them.
ELSEWHERE = {
    "make demo": ("Makefile", "demo: setup"),
    "make test": (".ci/run", "make test"),
    "make lint": (".ci/run", "make lint"),
}

SMALL = """
apiVersion: nanochat.dev/v1alpha1
kind: ChatPipeline
metadata: {name: NAME}
spec:
  model: {depth: 1, width: 32, headDim: 16, sequenceLength: 64}
  sources: {text: {kind: world, charactersPerShard: 200000, shards: 1, validationShard: 9}}
  stages:
    tokenizer: {vocabSize: 400, maxChars: 200000}
    base: {steps: 4, totalBatchTokens: 256, deviceBatchSize: 4, compile: never, evalTokens: 512}
    mid:
      enabled: MID
      mixture: [{task: world-facts, rows: 100}, {task: identity}]
      validation: [{task: world-facts, split: test, rows: 20}]
      steps: 3
      totalBatchTokens: 256
      deviceBatchSize: 4
      compile: never
      evalTokens: 512
    sft: {enabled: false}
    rl: {enabled: false}
    evalBase: {enabled: false}
    evalChat: {enabled: false}
    release: {enabled: false}
"""


def ids(block: Block) -> str:
    return block.name


# ---- marks ----------------------------------------------------------------------------------------------------------


def test_every_block_has_a_mark() -> None:
    for block in BLOCKS:
        marks = {"sh": ("local", "cluster", "gpu"), "yaml": ("values", "pipeline", "manifest", "profiles")}
        assert block.language in ("", "python", *marks), f"{block.name}: {block.language}"
        assert block.mark in marks.get(block.language, ("",)), f"{block.name}: the mark '{block.mark}' is not known"


def test_what_is_run_elsewhere_is_run_there() -> None:
    for file, text in ELSEWHERE.values():
        assert text in (ROOT / file).read_text(encoding="utf-8")


# ---- what is run ----------------------------------------------------------------------------------------------------


class Terminal:
    """A home and a folder as of somebody who reads the pages, where the pipelines' files hold small pipelines."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.programs = folder, folder / ".venv" / "bin"
        pipelines = folder / "k8s" / "pipelines"
        pipelines.mkdir(parents=True)
        for name in ("demo", "cpu"):
            text = SMALL.replace("NAME", name).replace("MID", str(name == "cpu").lower())
            (pipelines / f"{name}.yaml").write_text(text)
        doc_pages.program(self.programs, "nanochat", "nanochat.cli.main")
        doc_pages.program(self.programs, "mlflow", "mlflow")
        kept = {n: v for n, v in os.environ.items() if not n.startswith(("NANOCHAT_", "MLFLOW_", "KUBECONFIG"))}
        path = os.pathsep.join([str(self.programs), kept["PATH"]])
        self.environment = {**kept, **mlflow_server.LEAN, "HOME": str(folder), "PATH": path, "COLUMNS": "200"}

    def run(self, command: str) -> str:
        return doc_pages.run(command, self.folder, self.environment, timeout=300)

    def start(self, command: str) -> subprocess.Popen[bytes]:
        with (self.folder / "server.log").open("ab") as log:
            command = f"exec {command}"
            shell = ["sh", "-c", command]
            return subprocess.Popen(shell, cwd=self.folder, env=self.environment, stdout=log, stderr=log)


@pytest.fixture(scope="module")
def terminal(tmp_path_factory: pytest.TempPathFactory) -> Terminal:
    """Where `make demo` has run."""
    found = Terminal(tmp_path_factory.mktemp("reader"))
    found.run("nanochat run k8s/pipelines/demo.yaml")
    return found


@pytest.mark.parametrize("block", LOCAL, ids=ids)
def test_local_commands_work(block: Block, terminal: Terminal) -> None:
    """Servers are started on a free port, asked for their health, and stopped at the block's end."""
    servers: list[subprocess.Popen[bytes]] = []
    port = free_port()
    try:
        for command in commands(block.text):
            simple = next(words(command))
            if " ".join(simple[:2]) in ELSEWHERE:
                continue
            if simple[0].endswith("nanochat") and simple[1] in ("serve", "ui"):
                servers.append(terminal.start(f"{command.partition(' # ')[0].rstrip()} --port {port}"))
                terminal.run(f"{CURL} http://127.0.0.1:{port}/health")
            else:
                terminal.run(command.replace("curl ", f"{CURL} ").replace(":8000", f":{port}"))
    finally:
        for server in servers:
            server.send_signal(signal.SIGINT)
            server.wait(60)


def test_the_files_of_a_run_are_those_of_the_page(terminal: Terminal) -> None:
    """docs/architecture.md has a row for each file in the folder of the run."""
    rows = doc_pages.first_column(ROOT / "docs" / "architecture.md", "The run's folder")
    patterns = {row: re.compile(re.sub(r"<\w+>", "[^/]+", row.replace(".", r"\."))) for row in rows}
    runs = list((terminal.folder / ".cache" / "nanochat" / "runs").glob("*.demo/*"))
    files = {name for run in runs for name, _ in walk(run)}  # a process that ends in a write leaves a temporary one
    found = {file: [row for row, pattern in patterns.items() if pattern.fullmatch(file)] for file in files}
    assert [file for file, of in found.items() if len(of) != 1] == []
    # A cancelled run's, a release's, the controller's, and those of stages on several nodes.
    of_others = {"control.json", "release.json", "tracked.json", "standstills/<stage>/<launch>.json"}
    assert {row for of in found.values() for row in of} >= set(rows) - of_others


CURL = "curl --fail --silent --show-error --retry 60 --retry-connrefused --retry-delay 1"


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


# ---- what is checked ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", SHELL, ids=ids)
def test_commands_exist(block: Block) -> None:
    """Commands, options, make's targets, values of the chart, files."""
    for command in commands(block.text):
        for simple in words(command):
            check_command(simple, where=block.name)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_in_sentences_exist(page: Path) -> None:
    for span in doc_pages.inline_code(page):
        if span.startswith(("nanochat ", "make ")) and "..." not in span:
            plain = span.replace("[", "").replace("]", "")
            check_command(["1" if word == "N" else word for word in next(words(plain))], where=page.name)


def check_command(simple: list[str], *, where: str) -> None:
    name = simple[0].removeprefix(".venv/bin/")
    if name == "nanochat":
        check_nanochat(simple[1:], where)
    elif name == "make":
        for target in simple[1:]:
            assert "=" in target or re.search(rf"^{target}:", makefile(), re.MULTILINE), f"{where}: make {target}"
    elif name == "helm" and "helm/nanochat" in simple:
        for option, value in pairwise(simple):
            if option == "--set":
                check_value(value.partition("=")[0], where)
    elif name == "kubectl":
        verb = next(word for word in simple[1:] if not word.startswith("-") and word not in ("nanochat", "kubeflow"))
        assert verb in KUBECTL, f"{where}: kubectl {verb}"
    else:
        clouds = ("aws", "eksctl", "gcloud", "az", "export", "base64")
        known = ("docker", "curl", "kind", "mlflow", "python3", "helm", "pip", "lm_eval", *clouds)
        assert name in known, f"{where}: {name}"
    for word in simple[1:]:
        check_path(word, where)


@cache
def makefile() -> str:
    return (ROOT / "Makefile").read_text(encoding="utf-8")


def check_nanochat(arguments: list[str], where: str) -> None:
    """The command line parses; settings that it changes exist."""
    shown = f"{where}: nanochat {' '.join(arguments)}"
    found: Any = typer.main.get_command(app)
    context = typer.Context(found, info_name="nanochat")
    try:
        while hasattr(found, "resolve_command"):
            assert arguments, shown
            _, found, arguments = found.resolve_command(context, arguments)
        if not arguments or "--help" in arguments:
            return  # named in a sentence, without what it takes
        found.make_context(found.name, list(arguments), parent=context)
    except Exception as error:  # of typer's own click
        raise AssertionError(f"{shown}: {error}") from None
    for option, value in pairwise(arguments):
        if option == "--set":
            check_setting(value.partition("=")[0], where)


def check_setting(path: str, where: str) -> None:
    section: Any = PipelineSpec
    for part in path.split("."):
        assert isinstance(section, type) and issubclass(section, BaseModel), f"{where}: {path}"
        fields = {info.alias or name: info for name, info in section.model_fields.items()}
        assert part in fields, f"{where}: there is no setting {path}"
        section = fields[part].annotation
        if not (isinstance(section, type) and issubclass(section, BaseModel)):
            return


@cache
def schema() -> Mapping[str, Any]:
    return json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))


def check_value(path: str, where: str) -> None:
    """A value of the chart, by its path."""
    at: Any = schema()
    for part in path.split("."):
        while "$ref" in at:
            at = schema()[at["$ref"].split("/")[1]][at["$ref"].split("/")[2]]
        inner = at.get("properties", {})
        if part in inner:
            at = inner[part]
        elif isinstance(at.get("additionalProperties"), dict):
            at = at["additionalProperties"]
        else:
            assert at.get("type") == "object" and "properties" not in at, f"{where}: the chart has no value {path}"
            return


def check_path(text: str, where: str) -> None:
    """A file of the project, if the words name one."""
    path = text.strip("()'\"").partition("#")[0].rstrip("/:,")
    if path.split("/")[0] in FOLDERS and "/" in path and re.fullmatch(r"[\w./*-]+", path):
        assert list(ROOT.glob(path)), f"{where}: there is no {path}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_names_in_sentences_exist(page: Path) -> None:
    """Files, settings and values of the chart that stand between backticks."""
    if page.name == "settings.md":  # is generated from them
        return
    sections = {info.alias or name for name, info in PipelineSpec.model_fields.items()}
    for span in doc_pages.inline_code(page):
        name = span.partition(":")[0].removeprefix("spec.").replace("<stage>", "base").replace("NAME", "default")
        check_path(span, page.name)
        if not re.fullmatch(r"[a-z]\w*(\.\w+)+", name) or name.endswith(".json"):
            continue
        if name.split(".")[0] in schema()["properties"]:
            check_value(name, page.name)
        elif name.split(".")[0] in sections:
            check_setting(name, page.name)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in doc_pages.links(page):
        file, _, anchor = target.partition("#")
        path = (page.parent / file).resolve() if file else page
        assert path.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in doc_pages.anchors(path), f"{page.name}: {target}"


@pytest.mark.parametrize("block", [b for b in YAML if b.mark == "pipeline"], ids=ids)
def test_pipelines_load(block: Block) -> None:
    """A whole pipeline, or what stands under `spec`; tasks of one's own are those of docs/examples."""
    data = read_yaml(block.text)
    whole = {"apiVersion": "nanochat.dev/v1alpha1", "kind": "ChatPipeline", "metadata": {"name": "example"}}
    spec = check_pipeline(whole | data).spec
    for gate in spec.stages.release.gates:
        parse_gate(gate)
    try:
        build_graph(spec, contents={spec.stages.mid.identity or "": ""})
    except UserError as error:
        assert "there is no task 'capitals'" in error.message


@pytest.mark.parametrize("block", [b for b in YAML if b.mark == "values"], ids=ids)
def test_values_fit_the_chart(block: Block) -> None:
    given = read_yaml(block.text)
    jsonschema.validate(merged(yaml.safe_load((CHART / "values.yaml").read_text()), given), schema())
    helm = shutil.which("helm")
    if helm is None:
        return
    command = [helm, "template", "nanochat", str(CHART), "-f", "-"]
    command += [] if "images" in given else ["--set=images.loaded=true"]  # a part of a file, of which others name it
    environment = {**os.environ, "KUBECONFIG": os.devnull}
    done = subprocess.run(command, env=environment, input=block.text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def merged(below: Any, above: Any) -> Any:
    if isinstance(below, dict) and isinstance(above, dict):
        return {**below, **{name: merged(below.get(name), value) for name, value in above.items()}}
    return above


@pytest.mark.parametrize("block", [b for b in YAML if b.mark in ("manifest", "profiles")], ids=ids)
def test_other_documents_load(block: Block) -> None:
    for document in yaml.safe_load_all(block.text):
        if block.mark == "manifest":
            assert {"apiVersion", "kind", "metadata"} <= document.keys()
        else:
            for name, profile in document.items():
                validate(profile, DeclaredProfile, where=name)


def test_overrides_are_read_as_the_command_reads_them() -> None:
    """`--set` of every command makes a pipeline that is valid."""
    for block in SHELL:
        for command in commands(block.text):
            for simple in words(command):
                if not simple[0].endswith("nanochat"):
                    continue
                data: dict[str, Any] = {"apiVersion": "nanochat.dev/v1alpha1", "kind": "ChatPipeline"}
                data |= {"metadata": {"name": "example"}, "spec": {}}
                for option, value in pairwise(simple):
                    if option == "--set":
                        apply_override(data, value)
                check_pipeline(data)


# ---- examples and messages ------------------------------------------------------------------------------------------


def test_the_example_task_is_a_task(tmp_path: Path) -> None:
    """It has the interface of tasks, and its Dockerfile puts it where they are found."""
    space: dict[str, Any] = {"__name__": "tasks.capitals"}
    exec(compile((ROOT / "docs/examples/capitals.py").read_text(), "capitals.py", "exec"), space)
    kind = space["Capitals"]
    assert issubclass(kind, Task) and kind.rewards()
    trained, tested = kind(tmp_path, "train"), kind(tmp_path, "test")
    questions = [{example.prompt[0]["content"] for example in task} for task in (trained, tested)]
    assert questions[0] and questions[1] and not questions[0] & questions[1]
    example = tested[0]
    assert tested.grade(example, example.messages[-1]["content"]) and not tested.grade(example, "I do not know.")
    assert "COPY capitals.py /opt/nanochat/tasks/" in (ROOT / "docs/examples/Dockerfile").read_text()
    assert "COPY --from=code /code/tasks /opt/nanochat/tasks" in (ROOT / "images/Dockerfile").read_text()


# What others say: the scheduler, CUDA, MLflow, Kubernetes, the chart's own values.
OTHERS = ("nodes are available", "Insufficient nvidia.com/gpu", "Host header", "secret not found", "suspend: true")


def test_messages_are_the_programs_own() -> None:
    """What troubleshooting.md says one sees is in the code, but for its placeholders."""
    said = list(texts())
    missing = []
    for row in re.findall(r"^\| (.*?) \| ", doc_pages.prose(ROOT / "docs/troubleshooting.md"), re.MULTILINE):
        for message in re.findall(r"`([^`]+)`", row):
            for piece in re.split(r": |\.\.\.|\(|\)|\b[A-Z]{4,}\b|\b[NM]\b|'|\d+|spec\.stages\S+", message):
                piece = piece.strip(" :,;.")
                if len(piece) < 8 or any(other in piece or piece in other for other in OTHERS):
                    continue
                if piece.startswith("nanochat "):
                    check_nanochat([*piece.split()[1:], "NAME"], "troubleshooting.md")
                elif not any(spelling in text for spelling in spellings(piece) for text in said):
                    missing.append(f"{message}: {piece}")
    assert not missing, "\n".join(missing)


def spellings(piece: str) -> list[str]:
    """A piece as it may stand in the code: in a longer one any word may be filled in there, as `bucket` is."""
    parts = piece.split(" ")
    filled = [" ".join([*parts[:at], "\0", *parts[at + 1 :]]) for at in range(len(parts))]
    return [piece, *(filled if len(parts) > 3 else ())]


def texts() -> Iterator[str]:
    """All text in the code, the pieces of one expression joined."""
    for folder in ("nanochat", "operators", "tasks"):
        for file in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    yield "".join(part.value if isinstance(part, ast.Constant) else "\0" for part in node.values)
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield node.value
