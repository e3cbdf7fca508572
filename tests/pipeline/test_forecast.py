"""What a pipeline will take: the reference's figures, and times that are learned from the runs in a store."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nanochat.pipeline.admission import admit_local
from nanochat.pipeline.attempts import AttemptRecord
from nanochat.pipeline.devices import Devices
from nanochat.pipeline.estimate import Machine, assumed_seconds
from nanochat.pipeline.forecast import Forecast, Target, devices_of
from nanochat.pipeline.outcomes import Outcome, Reason
from nanochat.pipeline.outputs import Outputs
from nanochat.pipeline.planner import Phase, StageStatus, Status
from nanochat.pipeline.rates import Rates, learn, machine_of
from nanochat.pipeline.run_status import RunStatus, StatusFile
from nanochat.pipeline.runs import RunPaths
from nanochat.pipeline.work import Known, Sizing
from nanochat.spec.cost import Prices
from nanochat.spec.load import load_pipeline
from nanochat.storage import Artifacts, Profile, Store, open_store
from nanochat.tracking.journal import Journal

PIPELINES = Path(__file__).parents[2] / "k8s" / "pipelines"
BEGAN = 1_800_000_000.0
MACHINE: dict[str, Any] = {"cpu": "A CPU", "cpus": 2, "gpus": []}
CPU = machine_of(MACHINE, 0)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(Profile(root=str(tmp_path / "store")))


def forecast(
    store: Store, name: str, *overrides: str, gpu: str = "H100", here: bool = False, prices: Prices | None = None
) -> Forecast:
    """The forecast of one of the pipelines on the machine of these tests."""
    admitted = admit_local(load_pipeline(PIPELINES / f"{name}.yaml", list(overrides)))
    artifacts = Artifacts(store, Path(store.root).parent / "cache")
    outputs = Outputs(artifacts, admitted.graph)
    outputs.refresh()
    outputs.explain()
    target = Target(CPU, Devices(cores=2, gpus=0), gpu, here, prices or Prices())
    return Forecast.of(admitted, outputs, rates=learn(store, artifacts), target=target, known=Known(artifacts))


def has_run(
    store: Store,
    name: str,
    *overrides: str,
    slower: float = 1.0,
    uid: str = "0a",
    beside: bool = False,
    home: str = "h",
) -> float:
    """Store the records of a run on the machine of these tests, which took so many times as long as is assumed; returns
    its seconds. With `beside` base is evaluated while mid trains, each at half of its speed."""
    pipeline = load_pipeline(PIPELINES / f"{name}.yaml", list(overrides))
    admitted, paths = admit_local(pipeline), RunPaths.of(namespace="default", name=name, uid=uid)
    store.write_json(paths.pipeline, admitted.pipeline.to_yaml_dict())
    sizing, begun, other, records = Sizing(admitted.spec, admitted.graph, Known()), BEGAN, 0.0, []
    for node in admitted.graph.nodes:
        work, settings = sizing.work(node.stage, node.outputs), admitted.spec.of_stage(node.stage)
        took = slower * assumed_seconds(node.stage, work, settings, admitted.graph.horizon.model, CPU)
        both = beside and node.stage == "eval-base"
        record = AttemptRecord(
            stage=node.stage, number=1, started=begun, running_since=begun, launch="01-a",
            keys=tuple(out.key for out in node.outputs),
        )  # fmt: skip
        ends = begun + (2 * took if both else took + other)
        record = record.end(Outcome(Reason.SUCCEEDED), reached=1, now=ends)
        store.write_json(paths.attempt(node.stage, 1), record.to_dict())
        with Journal(store, paths.root, stage=node.stage, launch="01-a", interval=1e9) as journal:
            journal.event("environment", **MACHINE)
        begun, other = (begun, took) if both else (ends, 0.0)
        records.append(record)
    planned = Status(Phase.SUCCEEDED, tuple(StageStatus(s, Phase.SUCCEEDED) for s in admitted.graph.stages))
    document = RunStatus.of(admitted.pipeline, admitted.graph, planned, {}, {}, records, home=home)
    StatusFile(store, paths).write(document)
    return begun - BEGAN


@pytest.mark.parametrize(
    ("name", "parameters", "steps", "tokens"),
    [
        ("speedrun", 560_988_160, 21_400, 21_400 * 524_288),
        ("d26", 1_081_999_360, 41_275, 41_275 * 524_288),
        ("d32", 1_879_048_192, 71_680, 71_680 * 524_288),
    ],
)
def test_the_references_figures(store: Store, name: str, parameters: int, steps: int, tokens: int) -> None:
    found = forecast(store, name)
    assert (found.horizon["parameters"], found.horizon["steps"], found.horizon["tokens"]) == (parameters, steps, tokens)
    base = next(stage for stage in found.stages if stage.stage == "base")
    assert (base.work.steps, base.work.tokens, base.gpus) == (steps, tokens, 8)
    assert base.work.flops == found.horizon["flops"]
    rl = next(stage for stage in found.stages if stage.stage == "rl")
    assert rl.work.steps == 468, "467 whole steps of 16 prompts, and one with the rest of the 7,473"


def test_the_speedrun_comes_near_the_published_run(store: Store) -> None:
    """Pretraining on eight H100 took about three hours of 8 x 3 USD; mid has 765 steps, sft about 701."""
    found = {stage.stage: stage for stage in forecast(store, "speedrun").stages}
    assert found["base"].seconds == pytest.approx(3 * 3600, rel=0.1)
    assert found["base"].cost == pytest.approx(72, rel=0.1)
    assert found["mid"].work.steps == pytest.approx(765, rel=0.01)
    assert found["sft"].work.steps == pytest.approx(701, rel=0.01)
    assert not any(stage.measured or stage.cached for stage in found.values())


def test_what_a_store_has_seen_is_measured(store: Store) -> None:
    """On a machine that is half as fast as assumed: another seed of what has run, and a pipeline that has not."""
    took = has_run(store, "demo", slower=2.0)
    again = forecast(store, "demo", "seed=7")
    assert again.seconds == pytest.approx(took, rel=0.01)
    assert all(stage.measured for stage in again.stages)
    other = forecast(store, "cpu")
    assert other.seconds == pytest.approx(2 * _assumed("cpu"), rel=0.01)
    assert [stage.stage for stage in other.stages if not stage.measured] == ["dataset"], "text was not fetched before"


def test_stages_side_by_side_share_their_machine(store: Store) -> None:
    """An evaluation that took twice its time beside a training, which it slowed, is no slow evaluation elsewhere."""
    took = has_run(store, "demo", beside=True)
    again = forecast(store, "demo", "seed=7")
    assert again.seconds == pytest.approx(took, rel=0.01)
    assert again.seconds == pytest.approx(sum(stage.seconds for stage in again.stages))
    assert forecast(store, "cpu").seconds == pytest.approx(_assumed("cpu"), rel=0.01)


def test_pods_side_by_side_have_machines_of_their_own(store: Store) -> None:
    has_run(store, "demo", beside=True, home="")
    rates = learn(store, Artifacts(store, Path(store.root).parent / "cache"))
    assert rates.of(CPU.name, "eval-base").ratio == pytest.approx(2.0)
    assert rates.of(CPU.name, "mid").ratio > 1.0


def test_what_is_measured_while_training_is_counted() -> None:
    """CORE and tasks in between, samples of each problem; no more text than there is."""

    def read(stage: str, *overrides: str) -> float:
        admitted = admit_local(load_pipeline(PIPELINES / "cpu.yaml", list(overrides)))
        work = Sizing(admitted.spec, admitted.graph, Known()).work(stage, ())
        return work.read + work.drawn

    assert read("base", "stages.base.coreEvery=100") > read("base", "stages.base.coreEvery=299") > read("base")
    assert read("sft", "stages.sft.tasksEvery=30") > read("sft")
    assert read("rl", "stages.rl.evalSamples=16") > 2 * read("rl")
    few = "sources.text.charactersPerShard=1000000"
    assert read("base", few, "stages.base.evalTokens=10000000000") < 2e6
    assert read("eval-base", few, "stages.evalBase.bitsPerByteTokens=10000000000") < 2e6


def _assumed(name: str) -> float:
    admitted = admit_local(load_pipeline(PIPELINES / f"{name}.yaml", None))
    sizing, spec, model = Sizing(admitted.spec, admitted.graph, Known()), admitted.spec, admitted.graph.horizon.model
    return sum(
        assumed_seconds(node.stage, sizing.work(node.stage, node.outputs), spec.of_stage(node.stage), model, CPU)
        for node in admitted.graph.nodes
    )


def test_the_newest_runs_count(store: Store) -> None:
    for number, slower in enumerate((9.0, 9.0, 1.0, 1.0, 1.0)):
        has_run(store, "demo", slower=slower, uid=f"{number}a")
    rates = learn(store, Artifacts(store, Path(store.root).parent / "cache"))
    assert len(rates.seen[CPU.name, "base"]) == 5
    assert Rates({("x", "base"): [1.0, 1.0, 2.0, 9.0, 9.0]}).of("x", "base").ratio == 1.0
    assert Rates({("x", "base"): [3.0]}).of("x", "mid").ratio == 3.0, "what is not known is as what is"
    assert Rates({("x", "base"): [3.0]}).of("y", "mid") == Rates().of("y", "mid")


def test_a_run_that_makes_no_sense_teaches_nothing(store: Store) -> None:
    has_run(store, "demo")
    paths = RunPaths.of(namespace="default", name="demo", uid="0a")
    for path, content in ((paths.pipeline, b"[]"), (paths.attempt("base", 1), b"\x00")):
        kept = store.read(path, 1 << 20)
        store.write(path, content)
        assert learn(store, Artifacts(store, Path(store.root).parent / "cache")).seen.get((CPU.name, "base")) is None
        store.write(path, kept)
    forged = json.loads(store.read(paths.attempt("base", 1), 1 << 20)) | {"used": 1e11}
    store.write_json(paths.attempt("base", 1), forged)
    assert learn(store, Artifacts(store, Path(store.root).parent / "cache")).seen.get((CPU.name, "base")) is None


def test_prices(store: Store) -> None:
    """The pipeline's price wins over the profile's, and that over what a device is known to cost."""
    hours = forecast(store, "d26").gpu_hours
    assert forecast(store, "d26").cost == pytest.approx(3 * hours)
    assert forecast(store, "d26", prices=Prices(gpu_hour=2.0)).cost == pytest.approx(2 * hours)
    assert forecast(store, "d26", "cost.gpuHour=5", prices=Prices(gpu_hour=2.0)).cost == pytest.approx(5 * hours)
    there = forecast(store, "d26", gpu="A100")
    assert there.cost == pytest.approx(1.79 * there.gpu_hours) and there.gpu_hours > 2 * hours
    cores = forecast(store, "demo", prices=Prices(cpu_hour=0.1))
    assert cores.cost == pytest.approx(2 * 0.1 * sum(stage.seconds for stage in cores.stages) / 3600)
    assert forecast(store, "demo").cost == 0.0


def test_where_it_runs(store: Store) -> None:
    """As declared on GPUs that may be elsewhere, or all of it on this machine."""
    declared, here = forecast(store, "speedrun"), forecast(store, "speedrun", here=True)
    assert declared.gpu_hours > 10 and here.gpu_hours == 0.0
    assert here.seconds > 1000 * declared.seconds
    longest = sum(stage.seconds for stage in declared.stages)
    assert declared.seconds < longest, "evaluations run beside the next stage"
    assert len({each.gpu for each in devices_of(Target(CPU, Devices(2, 0), "H100"))}) >= 10


def test_what_is_cached_costs_nothing(store: Store, tmp_path: Path) -> None:
    admitted = admit_local(load_pipeline(PIPELINES / "demo.yaml", None))
    artifacts = Artifacts(store, tmp_path / "cache")
    for stage in ("dataset", "tokenizer"):
        for out in admitted.graph.node(stage).outputs:
            with artifacts.writer(out.kind, out.key, "01-a") as writer:
                (writer.folder / "file").write_bytes(b"made")
                writer.commit(recipe={"name": out.name}, inputs={}, metadata={})
    found = {stage.stage: stage for stage in forecast(store, "demo").stages}
    assert [name for name, stage in found.items() if stage.cached] == ["dataset", "tokenizer"]
    assert found["dataset"].seconds == found["dataset"].work.stored == 0
    assert found["base"].why and found["base"].seconds > 1


def test_mirrors_tell_sizes(store: Store, tmp_path: Path) -> None:
    folder = tmp_path / "mirror" / "datasets/karpathy/fineweb-edu-100b-shuffle/resolve/main"
    folder.mkdir(parents=True)
    (folder / "shard_00000.parquet").write_bytes(bytes(380_000))
    small = forecast(store, "cpu", f"sources.mirror={tmp_path / 'mirror'}")
    tokens = {stage.stage: stage for stage in small.stages}["tokens"].work.characters
    assert tokens < {stage.stage: stage for stage in forecast(store, "cpu").stages}["tokens"].work.characters / 10


def test_a_gpu_is_known_by_its_own_name() -> None:
    found = machine_of({"cpus": 16, "gpus": [{"name": "NVIDIA H100 80GB HBM3"}] * 8}, 8)
    assert found == Machine("H100", 16, 8)
    assert replace(CPU, cores=4) != CPU and CPU.name == "A CPU x 2"


def test_gpus_elsewhere_are_learned_of_too(store: Store) -> None:
    """A run on a cluster's H100 teaches how fast they are, wherever the plan is made."""
    has_run(store, "demo")
    paths = RunPaths.of(namespace="default", name="demo", uid="0a")
    store.delete(f"{paths.root}/metrics/base")
    with Journal(store, paths.root, stage="base", launch="01-a", interval=1e9) as journal:
        journal.event("environment", cpus=16, gpus=[{"name": "NVIDIA H100 80GB HBM3"}])
    base = next(stage for stage in forecast(store, "d26").stages if stage.stage == "base")
    assert base.measured == 1
