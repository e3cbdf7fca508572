"""The ablation: what it compares, what it concludes, what it does not do twice, and one run in truth."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nanochat.bench import recipe
from nanochat.bench.recipe import ALL, CLASSIC, KEPT, PARTS, PRESET, Ablation, Variant, judge, without
from nanochat.bench.recipe_run import Run
from nanochat.spec.errors import UserError
from nanochat.spec.fields import Section
from nanochat.spec.load import check_pipeline
from nanochat.spec.pipeline import PipelineSpec


def modern_settings(section: type[Section], path: str = "") -> dict[str, Any]:
    """All settings that have another default in the modern recipe, by their paths."""
    found = {}
    for name, info in section.model_fields.items():
        place = f"{path}{info.alias or name}"
        if isinstance(info.annotation, type) and issubclass(info.annotation, Section):
            found |= modern_settings(info.annotation, f"{place}.")
        elif isinstance(info.json_schema_extra, dict) and "x-modern" in info.json_schema_extra:
            found[place] = info.json_schema_extra["x-modern"]
    return found


def test_the_modern_recipe_is_made_of_whole_parts() -> None:
    modern = modern_settings(PipelineSpec)
    assert modern.pop("stages.base.tokensPerParameter") == 10.5
    kept = [settings for settings in PARTS.values() if settings.keys() <= modern.keys()]
    assert modern == {path: value for settings in kept for path, value in settings.items()}


def test_a_variant_is_classic_with_some_parts() -> None:
    classic, whole = Variant(CLASSIC, ()).spec(PRESET), Variant(ALL, tuple(PARTS)).spec(PRESET)
    assert classic == check_pipeline(dict(PRESET), where="test").spec
    assert (classic.model.smear, whole.model.smear) == (False, True)
    less = Variant("", without("smear", "long warm-down")).spec(PRESET)
    assert (less.model.smear, less.model.backout) == (False, True)
    assert (less.stages.base.warmdown_ratio, less.stages.base.final_lr_fraction) == (0.2, 0)
    for part in PARTS:
        assert Variant("", (part,)).spec(PRESET) != classic != Variant("", without(part)).spec(PRESET) != whole
    given = {**PRESET, "spec": {**PRESET["spec"], "stages": {"tokenizer": {"vocabSize": 300}}}}
    assert Variant("", tuple(PARTS)).spec(given).stages.tokenizer.vocab_size == 300


@pytest.mark.parametrize(
    ("figures", "word"),
    [
        ([1.10, 1.21, 1.30], "wins"),
        ([0.90, 0.99, 1.10], "loses"),
        ([1.10, 0.90, 1.25], "no difference"),
        ([1.10, math.nan, 1.30], "not known"),
    ],
)
def test_a_verdict_needs_twice_the_error_of_the_seeds(figures: list[float], word: str) -> None:
    assert judge("smear", [1.0, 1.1, 1.2], figures).word == word


def test_one_seed_proves_nothing() -> None:
    verdict = judge("smear", [1.0], [2.0])
    assert (verdict.difference, verdict.error, verdict.word) == (1.0, None, "not known")


def text(folder: Path, shards: int = 3) -> Path:
    folder.mkdir()
    for number in range(shards):
        documents = [
            f"Document {i} of {number}: " + "the cat sat on the mat and sang. " * (1 + i % 5) for i in range(120)
        ]
        pq.write_table(pa.table({"text": documents}), folder / f"shard_{number:05d}.parquet")
    return folder


def ablation(folder: Path, *, seeds: int = 2) -> Ablation:
    return Ablation(text=folder / "text", folder=folder / "out", data=PRESET, seconds=1, seeds=seeds, threads=1)


def test_finished_runs_are_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Smear alone wins, so that classic with it is trained and scored; it is stopped on the way, twice."""
    text(tmp_path / "text")
    made: list[tuple[str, str, int]] = []
    left = 7

    def start(task: Mapping[str, Any], threads: int, name: str) -> None:
        nonlocal left
        if not left:
            raise KeyboardInterrupt
        left -= 1
        made.append((task["do"], name, task["seed"]))
        place = Path(task["folder"])
        place.mkdir(parents=True, exist_ok=True)
        worse = 0.1 if name == "without smear" else 0.0
        if task["do"] == "train":
            (place / "result.json").write_text(
                json.dumps({"choosing": 1.0 + worse + 0.01 * task["seed"] * (worse > 0)})
            )
        else:
            (place / "score.json").write_text(json.dumps({"bitsPerByte": 2.0}))

    monkeypatch.setattr(recipe, "_start", start)
    monkeypatch.setattr(recipe, "write_tokens", lambda shards, settings, folder: folder.mkdir(parents=True))
    for allowed in (7, 20):
        left = allowed
        with pytest.raises(KeyboardInterrupt):
            ablation(tmp_path).run(say=lambda line: None)
    left = 100
    document = ablation(tmp_path).run(say=lambda line: None)
    assert len(made) == len(set(made)) == 2 * (2 + len(PARTS)) + 2 + 3 * 2  # all, those of what is kept, scores
    assert document["kept"] == ["smear"]
    assert document["scores"] == {CLASSIC: [2.0, 2.0], ALL: [2.0, 2.0], KEPT: [2.0, 2.0]}
    words = {item["part"]: item["verdict"] for item in document["verdicts"]}
    assert words.pop("smear") == "wins" and set(words.values()) == {"no difference"}
    count = len(made)
    assert ablation(tmp_path).run(say=lambda line: None) == document
    parts, scores = (table.markdown() for table in recipe.recipe_tables(document))
    assert "| smear | 1.1050 | +0.1050 | 0.0050 | wins |" in parts
    assert "Kept: smear" in scores
    assert all(f"| {name} | 1.0000 | 2.0000 | 0.0000 |" in scores for name in (CLASSIC, ALL, KEPT))
    assert len(made) == count


def test_another_text_is_trained_on_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where its files have the same names, and the folder has runs and tokens of the text before."""
    text(tmp_path / "text")
    places: list[tuple[str, str]] = []

    def start(task: Mapping[str, Any], threads: int, name: str) -> None:
        places.append((task["folder"], task["tokens"]))
        raise KeyboardInterrupt

    monkeypatch.setattr(recipe, "_start", start)
    monkeypatch.setattr(recipe, "write_tokens", lambda shards, settings, folder: folder.mkdir(parents=True))
    for documents in (None, None, ["Something else."]):
        if documents:
            pq.write_table(pa.table({"text": documents}), tmp_path / "text" / "shard_00000.parquet")
        with pytest.raises(KeyboardInterrupt):
            ablation(tmp_path).run(say=lambda line: None)
    first, again, other = places
    assert first == again and first[0] != other[0] and first[1] != other[1]


def test_too_little_text_is_one_sentence(tmp_path: Path) -> None:
    text(tmp_path / "text", shards=2)
    with pytest.raises(UserError, match="holds 2 parquet files; an ablation needs 3"):
        ablation(tmp_path).run(say=lambda line: None)


@pytest.mark.parametrize("parts", [(), tuple(PARTS)], ids=[CLASSIC, ALL])
def test_a_run_trains_for_its_time_and_is_scored_from_its_weights(tmp_path: Path, parts: tuple[str, ...]) -> None:
    shards = sorted(text(tmp_path / "text").iterdir())
    data = {
        **PRESET,
        "spec": {
            "model": {"depth": 2, "width": 32, "headDim": 16, "sequenceLength": 32},
            "stages": {
                "tokenizer": {"vocabSize": 300},
                "base": {"totalBatchTokens": 128, "deviceBatchSize": 4, "evalTokens": 2048, "precision": "fp32"},
                "mid": {"totalBatchTokens": 128},
                "evalBase": {"bitsPerByteTokens": 2048},
            },
        },
    }
    spec = Variant("", parts).spec(data)
    recipe.write_tokens(shards, spec.stages.tokenizer, tmp_path / "tokens")
    task = {
        "spec": spec.to_yaml_dict(), "seed": 1, "seconds": 1.0, "threads": 1, "save": True,
        "shards": [shard.name for shard in shards], "folder": str(tmp_path / "run"), "tokens": str(tmp_path / "tokens"),
    }  # fmt: skip
    (tmp_path / "run").mkdir()
    result = Run(task).train()
    assert result["steps"] >= 1 and result["cpuSeconds"] >= 1.0
    assert 0 < result["choosing"] < 8
    score = Run(task).score()["bitsPerByte"]
    assert 0 < score < 8 and score != result["choosing"]
