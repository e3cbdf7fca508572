"""`nanochat export` and `import`, and a pipeline that starts from what was imported."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_pipeline import UNTRACKED, called, mistake, nanochat, write_pipeline

from nanochat.model.artifact import WEIGHTS
from nanochat.model.export import save_model
from nanochat.model.sizes import ModelConfig
from nanochat.model.transformer import Transformer
from nanochat.tokenizer import Tokenizer
from tasks.world.text import documents

SHAPE = ModelConfig(depth=2, width=32, heads=2, kv_heads=1, sequence_length=64, vocab_size=400)
LATER = {"rl": {"enabled": False}, "release": {"enabled": False}, "evalChat": {"enabled": False}}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model's folder as a stage writes it."""
    folder = tmp_path_factory.mktemp("model")
    made = Transformer(SHAPE)
    made.init_weights(1)
    save_model(folder, made, {"stage": "base", "step": 5})
    Tokenizer.train(list(documents(0, 300)), vocab_size=400).save(folder)
    return folder


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    """A home with the model's export in `exported`."""
    home = tmp_path_factory.mktemp("home")
    done = called(home, "export", str(model), "exported")
    assert done.returncode == 0 and "transformers loads it" in done.stdout, done.stderr
    return home


@pytest.fixture(scope="module")
def imported(home: Path) -> list[str]:
    """The lines that an import says."""
    done = called(home, "import", "exported")
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def stored(home: Path) -> list[Path]:
    return sorted(path for path in (home / "state").rglob("*") if path.is_file() and "artifacts" in path.parts)


def test_a_folder_is_imported_once(home: Path, imported: list[str]) -> None:
    before = stored(home)
    assert [path.name for path in before] == [
        "byte_lengths.bin", "config.json", WEIGHTS, "tokenizer.json", "manifest.json",
    ]  # fmt: skip
    assert called(home, "import", "exported").stdout.splitlines() == imported
    assert stored(home) == before


def test_what_is_not_sound_leaves_nothing(home: Path, imported: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "spoilt"
    assert called(home, "export", str(address(imported)), str(folder)).returncode == 0, "the import is a model"
    weights = load_file(folder / WEIGHTS)
    weights["lm_head.weight"][0, 0] = torch.inf  # what is read last
    save_file(weights, folder / WEIGHTS)
    before = stored(home)
    done = called(home, "import", str(folder))
    assert "lm_head.weight holds numbers that are not finite" in mistake(done)
    assert stored(home) == before
    assert len(list((home / "state/artifacts/model").iterdir())) == 1


def address(said: list[str]) -> Path:
    found = re.match(r"The model is in (\S+): chat, serve, eval and export take this address\.", said[0])
    assert found, said
    return Path(found[1])


def test_gguf_is_refused_in_a_sentence(home: Path, model: Path) -> None:
    done = called(home, "export", str(model), "gguf", "--format", "gguf")
    assert "llama.cpp's converter does not know NanoChatForCausalLM" in mistake(done)
    assert not (home / "gguf").exists()


def test_a_pipeline_starts_from_it(home: Path, imported: list[str], model: Path) -> None:
    key = imported[1].partition("stages.mid.initialModel=")[2].split()[0]
    settings = [word for setting in imported[2].split() for word in ("--set", setting)]
    write_pipeline(home, **LATER, mid={"initialModel": key, "initLrFraction": 1e-9})
    for command in ("plan", "run"):
        wrong = mistake(called(home, command, "small.yaml", **UNTRACKED))
        assert f"another model than {key}, which has model.depth=2, model.kvHeads=1: set that" in wrong
    assert not list((home / "state").glob("runs/*")), "nothing was started"
    done = nanochat(home, "run", "small.yaml", *settings, **UNTRACKED)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "base" not in re.findall(r"^(\w+) +(?:starts|done|cached)", done.stdout, re.MULTILINE)
    assert called(home, "export", "small", "mid", "--stage", "mid").returncode == 0
    before, after = load_file(home / "exported" / WEIGHTS), load_file(home / "mid" / WEIGHTS)
    for name, weight in before.items():
        torch.testing.assert_close(after[name], weight, rtol=0, atol=1e-6)
    assert any(not torch.equal(after[name], weight) for name, weight in before.items()), "it was trained"
    assert (home / "mid/tokenizer.json").read_bytes() == (home / "exported/tokenizer.json").read_bytes()
    again = nanochat(home, "run", "small.yaml", *settings, **UNTRACKED)
    assert again.returncode == 0 and "starts" not in again.stdout, "all of it is there"
    none = ("--set", f"stages.mid.initialModel={'a' * 32}")
    assert f"this store has no model {'a' * 32}" in mistake(
        called(home, "run", "small.yaml", *settings, *none, **UNTRACKED)
    )
