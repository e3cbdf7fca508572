"""Every stage on real text and real tasks, on two nodes where it trains: the artifacts of a local run, key for key."""

from __future__ import annotations

from pathlib import Path

import pytest
from documents import REAL, document
from site_of_tests import Site, check_keys

from nanochat.storage.artifacts import Artifacts

pytestmark = pytest.mark.cluster


def test_every_stage_on_real_text(site: Site, mirror: Path, tmp_path: Path) -> None:
    """It succeeds, and what it measured and said is read with the kubeconfig alone."""
    site.fill_mirror(mirror)
    pipeline = document(REAL, "real")
    site.delete("real")
    site.apply(pipeline)
    status = site.wait("real", lambda s: s["phase"] == "Succeeded", seconds=1500, what="the end")
    check_keys(site, status, pipeline)
    ran = {attempt["stage"]: attempt for attempt in status["attempts"]}
    assert {stage["name"] for stage in status["stages"]} == set(ran), "every stage has run"
    assert all(len(ran[stage]["nodes"]) == 2 for stage in ("base", "sft"))
    assert all(len(ran[stage]["nodes"]) == 1 for stage in ("tokenizer", "mid", "rl", "report"))

    artifacts = Artifacts(site.store(), tmp_path)
    for stage in status["stages"]:
        for ref, key in stage["keys"].items():
            found = artifacts.find(ref.split("/")[0], key)
            assert found is not None, ref
            artifacts.fetch(found)  # every file by its SHA-256

    log = site.nanochat("logs", "real", "base", "--attempt", "1")
    assert "rank0: " in log and "rank1: " in log and "60 steps, on 2 x cpu" in log
    report = site.nanochat("report", "real", "--markdown")
    assert all(word in report for word in ("CORE", "ChatCORE", "GSM8K", "HumanEval", "bits per byte")), report
