"""docs/conditions.md has a row for every sentence that the controller can write into a status, and no other rows.

The sentences are found in the code: all texts of several words in the modules that write a status, but for docstrings,
log lines and what only other programs read. A place for a value is `...` on the page.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from nanochat.pipeline.outcomes import Reason
from nanochat.pipeline.planner import Phase

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "conditions.md"
# Modules of `operators` whose texts are read elsewhere: generated files, the command line, the log, other programs.
SILENT = {
    "cluster", "config", "controller", "crd", "crd_rules", "endpoint", "job_backend", "kube_client", "kube_error",
    "lease", "logs", "main", "metrics", "mlflow_sync", "mlflow_worker", "networks", "status_schema",
    "values_schema", "values_table",
}  # fmt: skip
UNREAD = ("log.", "KubeError", "RuntimeError", "AssertionError")  # calls whose texts stay in the log
NO_SENTENCES = {  # the system's own words, a pod's name, what the log says of records
    "No space left on device",
    "pod ... of ... on",
    "it is another attempt's",
    "too many, too large, or no record's name",
}
OTHERS = (
    "model/sizes",
    "pipeline/attempts",
    "pipeline/explain",
    "pipeline/graph",
    "pipeline/initial_model",
    "pipeline/outputs",
    "pipeline/planner",
    "pipeline/preflight",
    "pipeline/release_record",
    "pipeline/resolve",
    "pipeline/spending",
    "pipeline/task_selection",
    "storage/failures",
)
WORDS = 3  # that make a sentence, or a part of one
# Modules of which only some sentences are the controller's.
SHARED = [ROOT / "nanochat" / "spec" / f"{name}.py" for name in ("gates", "validation")]


def modules() -> list[Path]:
    files = [path for path in sorted((ROOT / "operators").glob("*.py")) if path.stem not in SILENT]
    return files + [ROOT / "nanochat" / f"{name}.py" for name in OTHERS]


def texts(node: ast.AST) -> Iterator[str]:
    """All texts below a node, with `...` for values, without docstrings and log lines."""
    if isinstance(node, ast.Call) and ast.unparse(node.func).startswith(UNREAD):
        return
    if isinstance(node, ast.JoinedStr):
        yield "".join(str(part.value) if isinstance(part, ast.Constant) else "..." for part in node.values)
        return
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant)):
            yield from texts(child)


def plain(text: str) -> str:
    """A text as it is compared: places are `...`, of which neighbours are one."""
    text = re.sub(r"\{[a-z_]*\}", "...", text)
    return re.sub(r"(\.\.\.[ /]?)+(?=\.\.\.)", "", " ".join(text.split())).strip(" .;:,/`")


def sentences(source: str, *, words: int = WORDS) -> set[str]:
    """The sentences of a module, and parts of them."""
    found = {plain(text) for text in texts(ast.parse(source))} - NO_SENTENCES
    return {text for text in found if sum(bool(re.search("[a-z]{2}", word)) for word in text.split()) >= words}


def reasons(source: str) -> set[str]:
    """The reasons of conditions: the second of three, after True, False or Unknown."""
    triples = [node.elts for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Tuple) and len(node.elts) == 3]
    found = [[part.value for part in parts[:2] if isinstance(part, ast.Constant)] for parts in triples]
    return {str(pair[1]) for pair in found if len(pair) == 2 and pair[0] in ("True", "False", "Unknown")}


def rows() -> list[str]:
    """The first cells of the page's tables of sentences, as they are compared."""
    page = PAGE.read_text().split("| you see | why | do |")[1:]
    lines = [line for part in page for line in part.partition("\n\n")[0].splitlines() if line.startswith("| `")]
    return [plain(line.split(" | ")[0].strip("|` ")) for line in lines]


def test_every_sentence_of_the_controller_has_a_row() -> None:
    page = rows()
    missing = {
        path.name: absent
        for path in modules()
        if (absent := sorted(text for text in sentences(path.read_text()) if not any(text in row for row in page)))
    }
    assert missing == {}


def test_every_row_is_a_sentence_of_the_controller() -> None:
    known = set().union(*(sentences(path.read_text(), words=2) for path in (*modules(), *SHARED)))
    assert [row for row in rows() if not any(text in row for text in known)] == []


def test_every_reason_phase_and_condition_is_named() -> None:
    page = PAGE.read_text()
    told = set().union(*(reasons(path.read_text()) for path in modules())) | {str(phase) for phase in Phase}
    assert told > {"Superseded", "NotServed", "Unreachable", "Failed"}
    assert sorted(name for name in told if f"`{name}`" not in page) == []
    outcomes = (ROOT / "docs" / "cluster.md").read_text()
    assert [reason for reason in Reason if f"| {reason} |" not in outcomes] == []


def test_texts_are_found_as_they_are_compared() -> None:
    source = (
        'def f(a):\n    "A docstring of words."\n    log.info("a line of the log")\n    g(f"{a} is not {a}{b} there.")'
    )
    assert sentences(source) == {"is not ... there"}
    assert reasons('x = ("False", "Refused", why) if why else ("True", "Accepted", "")') == {"Refused", "Accepted"}
