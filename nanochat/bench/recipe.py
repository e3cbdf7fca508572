"""The ablation that the modern recipe is made by: which parts of karpathy/nanochat's later ones earn their time.

    ablation = Ablation(text=Path("shards"), folder=Path("ablation"), data=PRESET, seconds=300, seeds=3, threads=2)
    document = ablation.run(say=print)
    print_tables(recipe_tables(document), markdown=False)

Every run trains for the same measured CPU time, in a process of its own (`recipe_run.py`). Each part is left out in
turn, and judged by bits per byte on one shard of the text. What wins is kept, and classic, all parts and what is kept
are scored once, on another shard. A run that has finished is in the folder and is not made again; one that was
interrupted is.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from nanochat.bench.tables import Table
from nanochat.bench.workers import asleep, with_package
from nanochat.spec.errors import UserError
from nanochat.spec.load import apply_override, check_pipeline
from nanochat.spec.pipeline import PipelineSpec

# What is tried, each part by its settings. tokensPerParameter is none: time gives the tokens.
PARTS: Mapping[str, Mapping[str, Any]] = {
    "value embeddings": {"model.valueEmbeddings": True},
    "learned scalars": {"model.residualScalars": True},
    "short windows": {"model.windowPattern": "SSSL"},
    "smear": {"model.smear": True},
    "backout": {"model.backout": True},
    "vocabulary": {"stages.tokenizer.vocabSize": 32_768},
    "rates": {"stages.base.embeddingLr": 0.3, "stages.base.unembeddingLr": 0.008},
    "long warm-down": {"stages.base.warmdownRatio": 0.65, "stages.base.finalLrFraction": 0.05},
    "Polar Express": {"stages.base.orthogonalisation": "polar-express"},
    "cautious decay": {"stages.base.matrixDecay": 0.28},
    "best-fit packing": {"stages.base.packing": "best-fit"},
}
CLASSIC, ALL, KEPT = "classic", "all parts", "what is kept"
ERRORS = 2.0  # standard errors that a difference must be larger than
LEAST_SHARDS = 3  # to train on, to choose by, to score on

# Classic at a size and a batch for a few minutes of CPU time.
PRESET: Mapping[str, Any] = {
    "apiVersion": "nanochat.dev/v1alpha1",
    "kind": "ChatPipeline",
    "metadata": {"name": "bench"},
    "spec": {
        "model": {"depth": 4, "sequenceLength": 512},
        "stages": {
            "tokenizer": {"maxChars": 50_000_000},
            "base": {
                "totalBatchTokens": 8192, "deviceBatchSize": 16, "compile": "never", "evalTokens": 262_144,
            },
        },
    },
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Variant:
    """A recipe that is tried: classic with these parts."""

    name: str
    parts: tuple[str, ...]

    def spec(self, data: Mapping[str, Any]) -> PipelineSpec:
        """The settings, over the plain data of a pipeline that names no recipe; what it gives stays."""
        whole = deepcopy(dict(data))
        for path, value in (item for part in self.parts for item in PARTS[part].items()):
            if not _gives(data["spec"], path):
                apply_override(whole, f"{path}={json.dumps(value)}")
        return check_pipeline(whole, where="bench recipe").spec


def without(*parts: str) -> tuple[str, ...]:
    """All parts but these."""
    return tuple(part for part in PARTS if part not in parts)


@dataclass(frozen=True, slots=True)
class Verdict:
    """The change of bits per byte by leaving out a part, over the seeds: more of them without it is a win for it."""

    part: str
    without: float
    difference: float
    error: float | None  # of the difference, taken seed by seed; None of one seed, and where a run diverged

    @property
    def word(self) -> str:
        if self.error is None:
            return "not known"
        if abs(self.difference) <= ERRORS * self.error:
            return "no difference"
        return "wins" if self.difference > 0 else "loses"


def judge(part: str, all_parts: Sequence[float], without_it: Sequence[float]) -> Verdict:
    """The verdict of a part, from the figures of the same seeds."""
    differences = [more - less for more, less in zip(without_it, all_parts, strict=True)]
    return Verdict(part, fmean(without_it), fmean(differences), standard_error(differences))


def standard_error(values: Sequence[float]) -> float | None:
    """The mean's; None of one value, and where a run diverged."""
    known = len(values) > 1 and all(map(math.isfinite, values))
    return stdev(values) / math.sqrt(len(values)) if known else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ablation:
    """All runs of one ablation; `data` is a pipeline's plain data, `text` a folder of parquet shards."""

    text: Path
    folder: Path
    data: Mapping[str, Any]
    seconds: float  # CPU seconds of one run's training
    seeds: int
    threads: int

    def run(self, say: Callable[[str], None]) -> dict[str, Any]:
        """Make what is missing, then say which parts win."""
        classic, whole = Variant(CLASSIC, ()), Variant(ALL, tuple(PARTS))
        variants = [classic, whole, *(Variant(f"without {part}", without(part)) for part in PARTS)]
        found: dict[str, list[dict[str, Any]]] = {variant.name: [] for variant in variants}
        for seed, variant in ((seed, variant) for seed in range(self.seeds) for variant in variants):
            found[variant.name].append(self.trained(variant, seed, say))  # each seed of all before the next
        chosen = {name: [run["choosing"] for run in runs] for name, runs in found.items()}
        verdicts = [judge(part, chosen[ALL], chosen[f"without {part}"]) for part in PARTS]
        kept = Variant(KEPT, tuple(verdict.part for verdict in verdicts if verdict.word == "wins"))
        chosen[KEPT] = [self.trained(kept, seed, say)["choosing"] for seed in range(self.seeds)]
        scores = {
            variant.name: [self.scored(variant, seed, say) for seed in range(self.seeds)]
            for variant in (classic, whole, kept)
        }
        return {
            "seconds": self.seconds,
            "seeds": self.seeds,
            "runs": found,
            "choosing": {name: fmean(values) for name, values in chosen.items()},
            "verdicts": [
                {"part": v.part, "without": v.without, "difference": v.difference, "error": v.error, "verdict": v.word}
                for v in verdicts
            ],
            "kept": list(kept.parts),
            "scores": scores,
        }

    def trained(self, variant: Variant, seed: int, say: Callable[[str], None]) -> dict[str, Any]:
        """The result of one run, which is made where it is not stored."""
        place, task = self._place(variant, seed)
        result = place / "result.json"
        if not result.exists():
            say(f"{variant.name}, seed {seed}: training for {self.seconds:g} s of CPU time")
            tokens = self._tokens(variant, say)
            _start(task | {"do": "train", "folder": str(place), "tokens": str(tokens)}, self.threads, variant.name)
        return json.loads(result.read_text())

    def scored(self, variant: Variant, seed: int, say: Callable[[str], None]) -> float:
        """Bits per byte of one run on the shard that chose nothing."""
        self.trained(variant, seed, say)
        place, task = self._place(variant, seed)
        score = place / "score.json"
        if not score.exists():
            tokens = self._tokens(variant, say)
            _start(task | {"do": "score", "folder": str(place), "tokens": str(tokens)}, self.threads, variant.name)
        return json.loads(score.read_text())["bitsPerByte"]

    def _place(self, variant: Variant, seed: int) -> tuple[Path, dict[str, Any]]:
        """The folder and the task of a run, by all that decides it."""
        task = {"spec": variant.spec(self.data).to_yaml_dict(), "seed": seed, "seconds": self.seconds}
        task |= {"shards": [path.name for path in self.shards()], "threads": self.threads}
        task |= {"save": variant.name in (CLASSIC, ALL, KEPT)}  # the weights that are scored
        return self.folder / "runs" / self._digest(task), task

    def _digest(self, decided_by: Mapping[str, Any]) -> str:
        """The name of what follows from this and from the text, which is known by the names and sizes of its files."""
        text = [(path.name, path.stat().st_size) for path in self.shards()]
        return hashlib.sha256(json.dumps([decided_by, text], sort_keys=True).encode()).hexdigest()[:16]

    def shards(self) -> list[Path]:
        """The text's shards: all but two train, the last but one chooses, the last scores."""
        found = sorted(self.text.glob("*.parquet"))
        if len(found) < LEAST_SHARDS:
            raise UserError(f"{self.text} holds {len(found)} parquet files; an ablation needs {LEAST_SHARDS} at least")
        return found

    def _tokens(self, variant: Variant, say: Callable[[str], None]) -> Path:
        """The folder with a variant's vocabulary and all shards as its tokens."""
        settings = variant.spec(self.data).stages.tokenizer
        folder = self.folder / "tokens" / self._digest(settings.to_yaml_dict())
        if not folder.exists():
            say(f"a vocabulary of {settings.vocab_size:,} tokens, and the text in it")
            write_tokens(self.shards(), settings, folder)
        return folder


def recipe_tables(document: Mapping[str, Any]) -> list[Table]:
    """A table of what each part is worth, and one of what classic, all parts and what is kept score."""
    whole = document["choosing"][ALL]
    parts = [
        [item["part"], f"{item['without']:.4f}", f"{item['difference']:+.4f}", _error(item["error"]), item["verdict"]]
        for item in document["verdicts"]
    ]
    scores = [
        [name, f"{document['choosing'][name]:.4f}", f"{mean:.4f}", _error(error)]
        for name, values in document["scores"].items()
        for mean, error in [(fmean(values), standard_error(values))]
    ]
    each = f"{document['seconds']:g} s of CPU time, {document['seeds']} seeds"
    return [
        Table(
            f"All parts but one, {each}; bits per byte on the shard that chooses, {whole:.4f} with all",
            ["part", "without it", "difference", "standard error", "verdict"],
            parts,
        ),
        Table(
            f"Kept: {', '.join(document['kept']) or 'nothing'}",
            ["recipe", "on the shard that chooses", "on the last shard", "standard error"],
            scores,
        ),
    ]


def _error(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def write_tokens(shards: Sequence[Path], settings: Any, folder: Path) -> None:
    """Learn a vocabulary from the shards that train, and write all shards' tokens; all of it or nothing."""
    from nanochat.data.text import read_text
    from nanochat.stages.tokens import encode_text
    from nanochat.tokenizer import Tokenizer

    def texts() -> Iterator[str]:
        for shard in shards[:-2]:
            for group in read_text(shard):
                yield from group

    part = folder.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    (part / "bpe").mkdir(parents=True)
    tokenizer = Tokenizer.train(
        texts(),
        vocab_size=settings.vocab_size,
        max_chars=settings.max_chars,
        document_chars=settings.document_chars,
    )
    tokenizer.save(part / "bpe")
    for shard in shards:
        (part / shard.name).mkdir()
        encode_text(shard, tokenizer=part / "bpe", folder=part / shard.name)
    part.rename(folder)


def _start(task: Mapping[str, Any], threads: int, name: str) -> None:
    """Do a task in a process of its own; UserError with its last words where it fails."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "nanochat.bench.recipe_run"],
        input=json.dumps(task),
        stderr=subprocess.PIPE,
        text=True,
        env=with_package(asleep(threads)),
    )
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["it said nothing"]
        raise UserError(f"the run '{name}' ended with exit code {done.returncode}: {said[-1][:300]}")


def _gives(data: Any, path: str) -> bool:
    """Whether plain data has a value at a path."""
    for name in path.split("."):
        if not isinstance(data, Mapping) or name not in data:
            return False
        data = data[name]
    return True
