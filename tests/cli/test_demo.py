"""The demo shows what each stage is for, and its model answers what its card proposes. It trains for some minutes."""

from __future__ import annotations

import re
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from small_pipeline import called, started, stored

from tasks.world.tasks import WorldTalk
from tasks.world.text import OTHER_STATEMENTS
from tasks.world.things import STATEMENTS, facts

pytestmark = pytest.mark.slow

DEMO = Path(__file__).resolve().parents[2] / "k8s" / "pipelines" / "demo.yaml"
KINDS = tuple(f"world-{kind}" for kind in ("identity", "facts", "sums", "counts", "spelling"))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the demo has run to its end."""
    found = tmp_path_factory.mktemp("demo")
    process = started(found, "run", str(DEMO))
    assert process.wait(1800) == 0, (found / "output.log").read_text()
    return found


def by_stage(home: Path, kind: str) -> dict[str, dict[str, Any]]:
    """Stage -> the metadata of its artifact of this kind."""
    manifests = stored(home, f"artifacts/{kind}/*/manifest.json")
    return {manifest["recipe"]["stage"]: manifest["metadata"] for manifest in manifests}


def test_each_stage_of_the_chat_has_its_worth(home: Path) -> None:
    scores = {stage: found["metrics"] for stage, found in by_stage(home, "evaluation").items()}
    mid, sft, rl = scores["mid"], scores["sft"], scores["rl"]
    assert min(mid["world-identity"], mid["world-facts"]) > 0.9
    assert max(mid["world-counts"], mid["world-spelling"]) < 0.3, "sft has something to teach"
    assert min(sft["world-counts"], sft["world-spelling"]) > 0.7
    assert 0.15 < sft["world-sums"] < 0.95, "rl has something to teach"
    assert rl["world-sums"] >= 0.9
    of_all = sum(rl[kind] for kind in KINDS) / len(KINDS)
    assert of_all >= 0.9


def test_base_speaks_of_its_own_world(home: Path) -> None:
    """What it said last of a thing is stated somewhere in its text: most often what is so."""
    journal = "".join(path.read_text() for path in home.glob("state/runs/*/*/metrics/base/*/*.jsonl"))
    begins = [fact for fact in facts() if fact.thing in ("cat", "ball")]
    true = {
        form.format(thing=fact.thing, value=fact.value)
        for fact in begins
        for form in (STATEMENTS[fact.kind], *OTHER_STATEMENTS[fact.kind])
    }
    assert sum(sentence in journal for sentence in true) >= 2
    assert re.search(r"My name is Nano\.", journal)


def test_what_the_card_proposes_is_answered(home: Path) -> None:
    asked = by_stage(home, "model")["rl"]["questions"]
    known = {row.messages[0]["content"]: row.messages[1]["content"] for row in islice(WorldTalk(Path(), "train"), 100)}
    assert len(asked) == 6
    for question in asked:
        content = known[question]
        answer = content if isinstance(content, str) else content[-1]["text"]
        said = called(home, "chat", "demo", "--prompt", question, "--temperature", "0")
        assert said.stdout.strip().endswith(answer), (question, said)
