"""The report: everything stored is in it, nothing is made up, and nothing that a model wrote is interpreted."""

from __future__ import annotations

import re
import threading
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from fake_run import EVIL, RUN, FakeRun

from nanochat.report.build import build, write_report
from nanochat.report.content import describe, headline
from nanochat.report.document import Bullets, Document, Facts, Paragraph, Table
from nanochat.report.record import Result, RunRecord, gather
from nanochat.report.tracked import RunTracker, Tracker, tracked_run
from nanochat.spec.errors import StorageError
from nanochat.tracking.client import connect
from nanochat.tracking.mlflow import EXPERIMENT, HIDDEN, find_run


class Page(HTMLParser):
    """Checks that tags are closed in order, and collects tags, attributes and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attrs
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def record(run: FakeRun) -> RunRecord:
    return gather(run.store, run.artifacts, run=RUN)


def section(document: Document, title: str) -> tuple[Any, ...]:
    return next(section.blocks for section in document.sections if section.title == title)


def table(document: Document, title: str) -> Table:
    return next(block for block in section(document, title) if isinstance(block, Table))


def bullets(document: Document, title: str) -> str:
    return "\n".join(item for block in section(document, title) if isinstance(block, Bullets) for item in block.items)


def test_the_stage_table_has_every_metric_with_its_error_and_n(record: RunRecord) -> None:
    found = table(describe(record), "Results")
    assert found.head == ("Metric", "BASE", "MID")
    assert found.rows == (
        ("Bits per byte (validation)", "0.8123 ± 0.0031\nn 81,920", "-"),
        ("ARC-Easy", "-", "38.8 ± 1.0 %\n969 of 2,500"),
        ("Sums", "-", "93.5 ± 1.7 %\n187 of 200"),
        ("ChatCORE", "-", "0.0884 ± 0.0040\nn 4,000"),
    )


def test_the_first_sentence_says_what_how_good_and_for_how_much(record: RunRecord) -> None:
    first = section(describe(record), "Results")[0]
    assert isinstance(first, Paragraph)
    assert first.text == (
        "demo is a chat model of 2.2 million parameters, trained on 2.5 million tokens of text by BASE and MID; its "
        "CORE was not measured (GPT-2 with 1.6 billion parameters has 0.2565, the reference's published d20 0.2219); "
        "it took 1 h and cost $24.00 for 8.0 GPU hours."
    )


def test_core_stands_beside_that_of_others(record: RunRecord) -> None:
    base = record.evaluations["base"]
    measured = replace(base, metrics={**base.metrics, "core": Result(0.21, 1000, 0.004)})
    told = headline(replace(record, evaluations={"base": measured, "mid": record.evaluations["mid"]}))
    assert "its base model's CORE is 0.2100 ± 0.0040 (GPT-2 with 1.6 billion parameters has 0.2565" in told


def test_time_and_cost(record: RunRecord) -> None:
    rows = {row[0]: row[1:] for row in table(describe(record), "Time and cost").rows}
    assert rows["dataset"] == ("reused", "-", "-", "-", "-")
    assert rows["tokenizer"] == ("made", "4.2 s", "1", "-", "-")
    assert rows["base"] == ("made", "4 min 42 s", "2", "-", "-")
    assert rows["mid"] == ("made", "1 h", "1", "8", "$24.00")
    assert "report" not in rows and "sft" not in rows
    facts = next(block for block in section(describe(record), "Results") if isinstance(block, Facts))
    assert dict(facts.items)["Cost"] == "$24.00 for 8.0 GPU hours"


def test_troubles_are_told(record: RunRecord) -> None:
    assert bullets(describe(record), "Time and cost") == (
        "base, attempt 1: Infrastructure (killed by SIGKILL) after 30 s"
    )
    remarks = bullets(describe(record), "Training")
    assert "BASE: the data of steps 100 to 149 was skipped after a divergence" in remarks
    assert "MID: 512 samples of 64 prompts, 9,805 tokens, with a mean reward of 0.996; in 62 groups" in remarks


def test_what_was_not_run_says_why(record: RunRecord) -> None:
    assert bullets(describe(record), "Not run").splitlines() == [
        "rl: disabled in the pipeline",
        "sft: failed, the loss is not finite",
        "CORE (BASE): it is switched off (stages.evalBase.core)",
        "HumanEval (MID): no sandbox here",
    ]


def test_compression_is_compared(record: RunRecord) -> None:
    found = table(describe(record), "Tokenizer")
    assert found.head == ("Text", "Bytes", "Ours\n1,024 tokens", "GPT-2\n50,256 tokens")
    assert found.rows == (("news", "1,000", "4.00", "5.00\n-20.0 %"),)
    assert bullets(describe(record), "Tokenizer") == "GPT-4: its vocabulary could not be had"


def test_the_environment_is_that_of_the_training(record: RunRecord) -> None:
    facts = dict(section(describe(record), "Environment")[0].items)
    assert facts["GPUs"] == "8 x Test GPU (80.0 GiB)"
    assert facts["CPUs"] == "2 x A CPU"


def test_lineage_has_the_keys(record: RunRecord) -> None:
    rows = {row[0]: row[1] for row in table(describe(record), "Lineage").rows}
    assert rows["model/base"] == "key-model-base"
    assert "model/sft" not in rows


def test_plots_are_of_the_journal(record: RunRecord) -> None:
    assert [plot.name for plot in describe(record).plots] == ["loss-base", "bits-per-byte-base"]


def test_files(record: RunRecord, tmp_path: Path) -> None:
    names = write_report(record, tmp_path / "out")
    assert sorted(names) == sorted(path.name for path in (tmp_path / "out").iterdir())
    assert set(names) == {"report.md", "report.html", "model-card.md", "loss-base.svg", "bits-per-byte-base.svg"}
    card = (tmp_path / "out" / "model-card.md").read_text()
    assert "Last training stage: MID" in card and "2.2 million" in card and "world-sums" in card


def test_the_page_stands_alone_and_interprets_nothing(record: RunRecord, tmp_path: Path) -> None:
    write_report(record, tmp_path)
    text = (tmp_path / "report.html").read_text()
    page = Page(text)
    assert page.open == []
    assert not page.tags & {"script", "link", "img", "iframe", "object", "form", "b", "strong"}
    assert EVIL in page.text
    targets = [value or "" for name, value in page.attributes if name in ("href", "src", "xlink:href")]
    assert all(target.startswith("#") for target in targets)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    urls = set(re.findall(r"(?:url\(|https?:)[^\s\"')]*", text))
    assert all(url.startswith(("url(#", "http://www.w3.org/")) for url in urls)
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert {target[1:] for target in targets} <= set(ids)


def test_markdown_interprets_nothing(record: RunRecord, tmp_path: Path) -> None:
    pytest.importorskip("markdown_it")
    from markdown_it import MarkdownIt

    write_report(record, tmp_path)
    page = Page(MarkdownIt("commonmark").enable("table").render((tmp_path / "report.md").read_text()))
    assert EVIL in page.text
    assert "script" not in page.tags
    assert "0.8123 ± 0.0031 (n 81,920)" in page.text


def test_the_same_record_gives_the_same_files(record: RunRecord, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_report(record, tmp_path / name, now=0.0)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_a_run_that_has_only_begun_has_a_report(tmp_path: Path) -> None:
    run = FakeRun(tmp_path)
    run.close()
    names = build(run.store, run.artifacts, RUN, tmp_path / "out")
    assert "report.html" in names
    assert "No model has been evaluated" in (tmp_path / "out" / "report.md").read_text()


def test_a_damaged_result_is_left_out(run: FakeRun, caplog: pytest.LogCaptureFixture) -> None:
    path = run.store.local_path("artifacts/evaluation/key-evaluation-mid/01-aa/results.json")
    assert path is not None
    path.write_text(path.read_text().replace("0.3876", "0.9876"))
    record = gather(run.store, run.artifacts, run=RUN)
    assert set(record.evaluations) == {"base"}
    assert "damaged" in caplog.text


def test_no_run_is_said(tmp_path: Path) -> None:
    run = FakeRun(tmp_path)
    with pytest.raises(StorageError, match="there is no run"):
        gather(run.store, run.artifacts, run="runs/default.none/0")


def test_what_a_repetition_needs_is_told(run: FakeRun, tmp_path: Path) -> None:
    run.spec |= {"seed": 7, "sources": {"text": {"kind": "hub", "path": "datasets/a/text/resolve/x", "revision": "v1"},
                                        "hubRevision": "v2"}}  # fmt: skip
    run.spec["stages"]["mid"] |= {"matrixLr": 0.02, "initLrFraction": 0.5}
    run.close()
    record = gather(run.store, run.artifacts, run=RUN)
    facts, rates, fold = section(describe(record), "Settings")
    told = {"Seed": "7", "Pretraining text": "a/text, revision v1", "Task data": "revision v2"}
    assert dict(facts.items) == told
    assert rates.rows == (("MID", "-", "-", "0.02", "0.5", "-"),)
    assert dict(fold.blocks[0].items)["stages.mid.gpusPerNode"] == "8", "all settings are there, folded"
    write_report(record, tmp_path)
    card, page = (tmp_path / "model-card.md").read_text(), (tmp_path / "report.html").read_text()
    assert all(f"{name}: {value}" in card for name, value in told.items()) and "| MID |" in card
    assert "<details><summary>All settings</summary>" in page


def test_several_samples_tell_pass_at_k(run: FakeRun) -> None:
    record = gather(run.store, run.artifacts, run=RUN)
    mid = record.evaluations["mid"]
    measured = replace(mid, metrics={**mid.metrics, "gsm8k-pass8": Result(0.25, 100, 0.04)})
    shown = table(describe(replace(record, evaluations={"mid": measured})), "Results")
    rows = {row[0]: row[1] for row in shown.rows}
    assert rows["GSM8K, pass@8"] == "25.0 ± 4.0 %\n25 of 100"


def test_mlflow_is_told_of_results_and_attempts(record: RunRecord) -> None:
    run = tracked_run(record)
    assert run.results["mid.arc-easy"] == 0.3876
    assert run.status == "running" and run.uid == "0123456789ab"
    assert run.name == "default.demo-01234567", "it is told from the pipeline's other runs"
    base = next(stage for stage in run.stages if stage.name == "base")
    assert base.tags["nanochat.attempts"] == "2"
    assert base.tags["nanochat.outcomes"] == "Infrastructure Succeeded"
    assert base.tags[f"{HIDDEN}key.model/base"] == "key-model-base"
    assert [stage.name for stage in run.stages] == ["tokenizer", "base", "eval-base", "mid", "eval-mid"]


@pytest.mark.parametrize(
    ("moved", "ended", "trouble", "looks"),
    [
        (False, True, "", 1),
        (True, True, "", 2),
        pytest.param(False, False, "", 2, id="it was under way when it was told last"),
        pytest.param(False, False, "no answer", 1, id="MLflow is out of reach"),
    ],
)
def test_the_end_of_a_run_that_came_to_nothing_new_waits_for_no_second_look(
    run: FakeRun, monkeypatch: pytest.MonkeyPatch, moved: bool, ended: bool, trouble: str, looks: int
) -> None:
    told: list[RunTracker] = []
    first = threading.Event()

    def sync(self: RunTracker) -> bool:
        told.append(self)
        self.ended, self.trouble = ended, trouble
        first.set()
        return not trouble

    monkeypatch.setattr(RunTracker, "sync", sync)
    with Tracker(run.store, run.artifacts, run=RUN, uri="none", interval=1e9, moved=lambda: moved):
        assert first.wait(60), "the first look is made at once"
    assert len(told) == looks


@pytest.mark.filterwarnings("ignore::Warning:mlflow", "ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_a_tracker_sends_a_run_with_its_report(run: FakeRun, uri: str) -> None:
    run.store.write(f"{RUN}/report/report.html", b"<p>")
    with Tracker(run.store, run.artifacts, run=RUN, uri=uri, interval=1e9):
        pass
    client = connect(uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    parent = find_run(client, experiment.experiment_id, "0123456789ab")
    base = find_run(client, experiment.experiment_id, "0123456789ab", "base")
    assert parent is not None and base is not None
    assert parent.data.metrics["mid.arc-easy"] == 0.3876
    assert f"{HIDDEN}file.report.html" in parent.data.tags
    assert parent.data.tags["mlflow.user"] == "ami" and parent.data.tags["mlflow.source.git.commit"] == "0123456789ab"
    assert parent.data.tags["mlflow.note.content"].startswith("demo is a chat model of 2.2 million parameters")
    assert len(client.get_metric_history(base.info.run_id, "train/loss")) == 600


def test_mlflow_gets_the_data_that_a_stage_read(run: FakeRun) -> None:
    run.spec["sources"] = {"text": {"kind": "hub", "path": "datasets/a/text/resolve/{revision}/{index}.parquet",
                                    "revision": "v1", "validationShard": 7}, "hubRevision": "v2"}  # fmt: skip
    run.spec["stages"]["mid"]["validation"] = [{"task": "world-sums", "split": "test"}]
    for name in ("shard_00000", "shard_00001", "shard_00007"):
        run.stage("dataset", {f"text/{name}": run.artifact(f"text/{name}", {"a": name})})
    run.stage("tokens", {f"chat-tokens/world-sums-{split}": run.artifact(f"chat-tokens/world-sums-{split}", {"a": ""})
                         for split in ("train", "test")})  # fmt: skip
    run.close()
    told = {stage.name: stage for stage in tracked_run(gather(run.store, run.artifacts, run=RUN)).stages}
    text, kept = told["base"].data
    assert (text.name, text.context, text.profile) == ("a/text", "training", {"shards": 2})
    assert (text.source_type, text.source) == ("hugging_face", {"path": "a/text", "revision": "v1"})
    assert (kept.name, kept.digest, kept.context) == ("a/text (validation)", "key-text-shard_00007", "validation")
    assert [(each.name, each.context) for each in told["mid"].data] == [
        ("world-sums-train", "training"), ("world-sums-test", "validation"),
    ]  # fmt: skip
