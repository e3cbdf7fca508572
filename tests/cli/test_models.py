"""The word by which `chat` and `serve` find a model: a run, `champion`, NAME:VERSION, a folder, an address."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest

from nanochat.cli.models import find_model
from nanochat.model.artifact import SERVED, WEIGHTS
from nanochat.pipeline.ref import ArtifactRef
from nanochat.pipeline.run_status import RunStatus, StageRunStatus
from nanochat.spec.errors import UserError
from nanochat.storage import Artifacts, Profile, open_store
from nanochat.tracking.registry import Candidate, Registry

pytestmark = pytest.mark.filterwarnings(
    "ignore::Warning:mlflow", "ignore::DeprecationWarning", "ignore::ResourceWarning"
)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with the runs `demo`, which releases `robin`, and `champion`; robin and nanochat have versions."""
    home = tmp_path_factory.mktemp("home")
    store = open_store(Profile(root=str(home)))
    artifacts, registry = Artifacts(store, home / "cache"), Registry(f"sqlite:///{home}/mlflow.db")
    for key in ("1" * 32, "2" * 32):
        with artifacts.writer("model", key, "01-a") as writer:
            for file in SERVED:
                (writer.folder / file).write_bytes(key.encode())
            manifest = writer.commit(recipe={}, inputs={})
        for model in ("robin", "nanochat"):
            tags = {"nanochat.run": f"runs/default.demo/{key[:4]}"}
            candidate = Candidate(source=artifacts.uri(manifest), key=key, metrics={}, tags=tags)
            registry.promote(model, registry.register(model, candidate).version)
    for name, key in (("demo", "1" * 32), ("champion", "2" * 32)):
        stage = StageRunStatus("base", "Succeeded", keys={ArtifactRef.of("model", "base"): key})
        store.write_json(f"runs/default.{name}/uid/status.json", asdict(RunStatus(name, "default", stages=(stage,))))
        spec = {"stages": {"release": {"model": "robin"}}}
        store.write_json(f"runs/default.{name}/uid/pipeline.json", {"metadata": {"name": name}, "spec": spec})
    return home


@pytest.fixture(autouse=True)
def _own(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NANOCHAT_ROOT", "NANOCHAT_ENDPOINT", "NANOCHAT_PROFILES", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NANOCHAT_HOME", str(home))


@pytest.mark.parametrize(
    ("word", "key", "said"),
    [
        ("demo", "1", "base of the run default.demo/uid"),
        ("demo.yaml", "1", "base of the run default.demo/uid"),
        ("champion", "2", "version 2 of nanochat (champion), released by default.demo/2222"),
        ("former", "1", "version 1 of nanochat (former), released by default.demo/1111"),
        ("champion.yaml", "2", "base of the run default.champion/uid"),
        ("robin:1", "1", "version 1 of robin, released by default.demo/1111"),
        ("robin:champion", "2", "version 2 of robin (champion), released by default.demo/2222"),
        ("demo:1", "1", "version 1 of robin, released by default.demo/1111"),
    ],
)
def test_the_model_that_is_meant_is_said(word: str, key: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = find_model(word, stage=None, store="default")
    assert (folder / WEIGHTS).read_text() == key * 32
    told = capsys.readouterr()
    assert (told.out, told.err) == ("", f"Model: {said}\n"), "an answer alone is on standard output"


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("robin:7", "robin has no version 7: there are 1, 2"),
        ("robin:", "robin has no version : there are 1, 2"),
        ("nobody:1", "the registry has no model 'nobody', and this store no run of that name"),
        ("nobody", "no run of 'nobody' in this store"),
    ],
)
def test_one_that_is_not_there_is_one_sentence(word: str, said: str) -> None:
    with pytest.raises(UserError) as refused:
        find_model(word, stage=None, store="default")
    assert said in refused.value.message


def test_one_whose_weights_are_gone_is_one_sentence(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(home, copy)
    manifest = json.loads((copy / "artifacts/model" / ("1" * 32) / "manifest.json").read_text())
    source = f"{copy}/artifacts/model/{'1' * 32}/{manifest['launch']}"
    registry = Registry(f"sqlite:///{copy}/mlflow.db")
    registry.promote("nanochat", registry.register("nanochat", Candidate(source, "k", {})).version)
    monkeypatch.setenv("NANOCHAT_HOME", str(copy))
    shutil.rmtree(copy / "artifacts/model" / ("1" * 32))
    with pytest.raises(UserError, match="version 3 of nanochat cannot be used: there is no model at"):
        find_model("champion", stage=None, store="default")
