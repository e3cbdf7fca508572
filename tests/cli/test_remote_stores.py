"""A run in object storage, killed while it trains and begun again, ends with the weights of an undisturbed one."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from small_pipeline import launch_processes, lines, nanochat, output, started, wait_until, write_pipeline
from store_servers import StoreServer

from nanochat.storage import Store, open_store
from nanochat.storage.folder import FolderStore


def prepare(home: Path) -> Path:
    """The home with a pipeline that trains for some seconds before it is done with its first stage."""
    home.mkdir()
    write_pipeline(
        home,
        base={"steps": 300, "precision": "fp32", "checkpointEverySeconds": 1, "evalEvery": 0, "sampleEvery": 0},
        mid={"precision": "fp32"},
        sft={"precision": "fp32"},
        rl={"enabled": False},
    )
    return home


def weights(store: Store) -> dict[str, str]:
    """Stage -> SHA-256 of its weights."""
    found = {}
    for entry in store.list("artifacts/model"):
        if entry.path.count("/") == 3 and entry.path.endswith("/manifest.json"):
            manifest = store.read_json(entry.path, 1 << 20)
            digests = {record["path"]: record["sha256"] for record in manifest["files"]}
            found[manifest["recipe"]["stage"]] = digests["model.safetensors"]
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The weights of a run in a folder that nobody disturbs."""
    home = prepare(tmp_path_factory.mktemp("undisturbed") / "home")
    done = nanochat(home, "run", "small.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    return weights(FolderStore(home / "state"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["s3", "gcs", "azure"])
def test_a_killed_run_goes_on_from_object_storage(
    kind: str,
    request: pytest.FixtureRequest,
    undisturbed: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server: StoreServer = request.getfixturevalue(f"{kind}_server")
    for name, value in server.credentials.items():
        monkeypatch.setenv(name, value)
    store, home, variables = open_store(server.profile(kind)), prepare(tmp_path / "home"), server.variables(kind)

    process = started(home, "run", "small.yaml", **variables)
    try:
        saved = "checkpoints/base"
        wait_until(
            lambda: [entry for entry in store.list(saved) if entry.path.endswith("/manifest.json")],
            process=process,
            home=home,
        )
        stages = psutil.Process(process.pid).children(recursive=True)
    finally:
        process.kill()
        process.wait()
    for each in stages:
        with suppress(psutil.NoSuchProcess):
            each.kill()
    psutil.wait_procs([*stages, *launch_processes(home)], timeout=30)
    assert not launch_processes(home)
    assert weights(store) == {}

    again = nanochat(home, "run", "small.yaml", **variables)
    assert again.returncode == 0, again.stdout + again.stderr + output(home)
    assert lines(again.stdout)["base"].startswith("done")
    assert "resumed after step" in nanochat(home, "logs", "small", "base", **variables).stdout
    assert "Succeeded" in nanochat(home, "status", "small", **variables).stdout
    assert set(undisturbed) == {"base", "mid", "sft"}
    assert weights(store) == undisturbed
