"""A storm of faults: two pipelines that share artifacts, beside each other, against a calm run of both. Run by hand:

    .venv/bin/python tests/cluster/storm.py --minutes 60 --seed 7      # on the cluster of the tests, made if need be
    .venv/bin/python tests/cluster/storm.py --list                     # the table of faults

One fault after another, each at a random moment of training, until the time is over; then both have to succeed with the
calm run's weights. It prints its seed, and a table of the faults with how often, outcomes and seconds to recover.
"""

from __future__ import annotations

import argparse
import collections
import json
import random
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from documents import WORLD, document
from evidence import LABEL, left_behind, weights
from site_of_tests import MLFLOW, NAMESPACE, SYSTEM, Site, Status, say
from storm_faults import FAULTS, Fault, MissedError, Target, wait_for_end

from nanochat.pipeline.graph import build_graph
from nanochat.spec.load import check_pipeline

MODELS = ("base", "mid", "sft")
PATIENCE = 900.0  # seconds until a pipeline trains again
LOOK_SECONDS = 4.0


@dataclass
class Record:
    """What came of one fault."""

    fault: str
    outcomes: list[str] = field(default_factory=list)
    seconds: float = 0.0
    wrong: str = ""


class Watcher:
    """Looks whether an artifact is made twice at one time, by pods that run beside each other."""

    def __init__(self, site: Site, keys: Mapping[tuple[str, str], frozenset[str]], cut: set[str]) -> None:
        self.site, self.keys, self.cut, self.doubled = site, keys, cut, list[str]()
        self._before: set[str] = set()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._closing.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._closing.wait(LOOK_SECONDS):
            try:
                pods = self.site.get("pods", "-n", NAMESPACE, "-l", LABEL, "--request-timeout=10s")["items"]
            except (AssertionError, ValueError):  # the API server may be away
                continue
            now = self._pairs(pods)
            self.doubled += sorted(now & self._before)  # one that is just about to go is none
            self._before = now - set(self.doubled)

    def _pairs(self, pods: list[dict[str, Any]]) -> set[str]:
        makers: dict[str, set[str]] = {}
        for pod in pods:
            labels, where = pod["metadata"]["labels"], pod["spec"].get("nodeName")
            if (
                pod["status"]["phase"] == "Running"
                and "deletionTimestamp" not in pod["metadata"]
                and where not in self.cut
            ):
                job = labels["training.kubeflow.org/job-name"]
                for key in self.keys.get((labels[LABEL], labels["nanochat.dev/stage"]), ()):
                    makers.setdefault(key, set()).add(job)
        return {" and ".join(sorted(jobs)) for jobs in makers.values() if len(jobs) > 1}


class Storm:
    """Two pipelines and what happens to them."""

    def __init__(self, site: Site, seed: int, steps: int, faults: tuple[Fault, ...]) -> None:
        self.site, self.random, self.faults = site, random.Random(seed), faults
        self.cut: set[str] = set()
        self.records: list[Record] = []
        self.wrong: list[str] = []
        retries = {"limit": 100, "delaySeconds": 2, "maxDelaySeconds": 10, "stallSeconds": 30, "startSeconds": 300}
        common = {"stages.base.steps": steps, "stages.mid.steps": steps // 4, "retries": retries, "seed": seed}
        self.documents = {
            "storm-a": document(WORLD, "storm-a", **common, **{"stages.sft.steps": steps // 8}),
            "storm-b": document(WORLD, "storm-b", **common, **{"stages.sft.steps": steps // 8 + 1}),
        }

    # ---- the calm run -----------------------------------------------------------------------------------------------

    def calm(self) -> dict[str, dict[str, str]]:
        """The weights of both pipelines, undisturbed and in a store of their own."""
        for name, declared in self.documents.items():
            calm = json.loads(json.dumps(declared).replace(name, name.replace("storm", "calm")))
            calm["spec"]["store"] = "other"
            self.site.apply(calm)
        found = {}
        for name in self.documents:
            calm_name = name.replace("storm", "calm")
            status = self.site.wait(calm_name, lambda s: s["phase"] == "Succeeded", seconds=1800)
            found[name] = self.weights(status)
            self.site.delete(calm_name)
        return found

    def weights(self, status: Status) -> dict[str, str]:
        with tempfile.TemporaryDirectory() as cache:
            return {
                f"{stage}/{path}": digest
                for stage in MODELS
                for path, digest in weights(self.site, status, Path(cache), stage).items()
            }

    # ---- the storm --------------------------------------------------------------------------------------------------

    def round(self, calm: Mapping[str, Mapping[str, str]], until: float) -> None:
        """From the first step of both to the end of both, with faults until the time is over."""
        store = self.site.store()
        for folder in ("artifacts", "checkpoints"):
            store.delete(folder)
        graphs = {name: build_graph(check_pipeline(dict(d)).spec) for name, d in self.documents.items()}
        keys = {(n, node.stage): frozenset(o.key for o in node.outputs) for n, g in graphs.items() for node in g.nodes}
        watcher = Watcher(self.site, keys, self.cut)
        try:
            for declared in self.documents.values():
                self.site.apply(declared)
            while time.monotonic() < until and (target := self.trains()) is not None:
                self.strike(target)
            statuses = {
                name: self.site.wait(name, lambda s: s["phase"] == "Succeeded", seconds=1800) for name in self.documents
            }
        finally:
            watcher.close()
            self.wrong += [f"made twice at one time: {what}" for what in watcher.doubled]
        for name, status in statuses.items():
            if self.weights(status) != calm[name]:
                self.wrong.append(f"{name} has other weights than its calm run")
        for name, status in statuses.items():
            self.site.delete(name)
            self.check_gone(name, status["run"])

    def check_gone(self, name: str, run: str) -> None:
        deadline = time.monotonic() + 120
        while left := left_behind(self.site, name, run):
            if time.monotonic() > deadline:
                self.wrong.append(f"{name} left behind: {', '.join(left)}")
                return
            time.sleep(2)

    def trains(self) -> Target | None:
        """A stage that trains on all of its pods, after a while of calm; None where both pipelines have succeeded."""
        deadline = time.monotonic() + PATIENCE
        time.sleep(self.random.uniform(0, 15))
        while time.monotonic() < deadline:
            statuses = {name: self.status(name) for name in self.documents}
            if all(status.get("phase") == "Succeeded" for status in statuses.values()):
                return None
            running = [
                (name, stage["name"])
                for name, status in statuses.items()
                for stage in status.get("stages", ())
                if stage["name"] in MODELS and stage["phase"] == "Running" and stage.get("step")
            ]
            if running:
                name, stage = self.random.choice(running)
                return Target(self.site, self.documents[name], stage, self.random, self.cut)
            time.sleep(2)
        raise AssertionError(f"nothing trains: {json.dumps(statuses, indent=1)}")

    def strike(self, target: Target) -> None:
        fault, before = self.random.choice(self.faults), {name: self.status(name) for name in self.documents}
        say(f"fault {len(self.records) + 1}: {fault.name}, of {target.name} in {target.stage}")
        record = Record(fault.name)
        self.records.append(record)
        began = time.monotonic()
        try:
            fault.inject(target)
            if fault.outcomes:
                wait_for_end(target, before[target.name])
            self.recovered(target)
            record.seconds = time.monotonic() - began
        except MissedError as error:
            say(f"  missed: {error}")
            self.records.remove(record)
            return
        except (AssertionError, IndexError, KeyError, StopIteration) as error:
            record.wrong = f"{type(error).__name__}: {error}"[:1500]
        self.cut.clear()
        for name in self.documents:
            record.outcomes += new_outcomes(before[name], self.status(name))
        odd = set(record.outcomes) - fault.outcomes - fault.may - {"Succeeded"}
        if odd and not record.wrong:
            record.wrong = f"ended as {', '.join(sorted(odd))}"
        wrong = f", WRONG: {record.wrong}" if record.wrong else ""
        say(f"  {', '.join(record.outcomes) or 'goes on'}, {record.seconds:.0f} s{wrong}")

    def recovered(self, target: Target) -> None:
        """Wait until training goes on: by two steps, for the status may be late, and by whichever of the two has the
        right to what both need. A pipeline that failed is tried again."""
        deadline, marks = time.monotonic() + PATIENCE, set[object]()
        while time.monotonic() < deadline:
            status = self.status(target.name)
            if status.get("phase") == "Succeeded":
                return
            if status.get("phase") == "Failed" and status.get("attempts"):
                self.site.nanochat("retry", target.name)
                time.sleep(10)
            for name in self.documents:
                marks |= self.mark(self.status(name))
            if len(marks) > 2:
                return
            time.sleep(1)
        raise AssertionError(f"it does not train again: {json.dumps(self.status(target.name), indent=1)}")

    def mark(self, status: Status) -> set[object]:
        """Run, stage, attempts and step of what trains."""
        stages = [s for s in status.get("stages") or () if s["name"] in MODELS and s["phase"] == "Running"]
        return {(status.get("run"), s["name"], s["attempts"], s["step"]) for s in stages if s.get("step")}

    def status(self, name: str) -> Status:
        """What is known now; nothing where the API server does not answer."""
        try:
            return self.site.status(name)
        except (AssertionError, ValueError):
            return {}

    # ---- the table --------------------------------------------------------------------------------------------------

    def tell(self) -> None:
        print(f"{'fault':34} {'times':>5}  {'seconds to recover':20} outcomes")
        by_fault: dict[str, list[Record]] = collections.defaultdict(list)
        for record in self.records:
            by_fault[record.fault].append(record)
        for name, found in sorted(by_fault.items()):
            seconds = sorted(record.seconds for record in found)
            ends = collections.Counter(outcome for record in found for outcome in record.outcomes or ["goes on"])
            told = ", ".join(f"{outcome} {count}" for outcome, count in ends.most_common())
            print(f"{name:34} {len(found):5}  {seconds[len(seconds) // 2]:5.0f} (at most {seconds[-1]:4.0f})   {told}")
        for record in self.records:
            if record.wrong:
                print(f"WRONG after {record.fault}: {record.wrong}")
        for sentence in self.wrong:
            print(f"WRONG: {sentence}")


def new_outcomes(before: Status, now: Status) -> list[str]:
    """How the attempts ended that have ended since, as far as the run is the same."""
    if before.get("run") != now.get("run"):
        return []
    known = {a["job"] for a in before.get("attempts") or () if a["reason"] != "Running"}
    return [a["reason"] for a in now.get("attempts") or () if a["job"] not in known and a["reason"] != "Running"]


def main() -> int:
    parser = argparse.ArgumentParser(description="A storm of faults over two pipelines on the tests' cluster.")
    parser.add_argument("--minutes", type=float, default=60.0, help="time in which faults happen")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of the faults and of the pipelines")
    parser.add_argument("--steps", type=int, default=4000, help="of base: a round of the storm takes so long")
    parser.add_argument("--only", default="", help="names of faults, separated by commas")
    parser.add_argument("--cluster", default="nanochat-test")
    parser.add_argument("--list", action="store_true", help="show the table of faults and end")
    options = parser.parse_args()
    names = [name.strip() for name in options.only.split(",") if name.strip()]
    faults = tuple(fault for fault in FAULTS if not names or fault.name in names)
    if options.list or not faults:
        for fault in FAULTS:
            print(f"{fault.name:34} {', '.join(sorted(fault.outcomes | fault.may)) or 'goes on'}")
        return 0
    site = Site(options.cluster)
    site.up()
    site.build("mlflow")
    site.load("nanochat-mlflow:test")
    site.install(**{"mlflow.enabled": "true", "mlflow.persistence.size": "1Gi"})
    site.kubectl("-n", SYSTEM, "rollout", "status", f"deployment/{MLFLOW}", "--timeout=180s")
    print(f"seed {options.seed}", flush=True)
    storm = Storm(site, options.seed, options.steps, faults)
    calm = storm.calm()
    until = time.monotonic() + 60 * options.minutes
    try:
        while time.monotonic() < until:
            storm.round(calm, until)
    finally:
        print(f"seed {options.seed}: {len(storm.records)} faults")
        storm.tell()
    return 1 if storm.wrong or any(record.wrong for record in storm.records) else 0


if __name__ == "__main__":
    sys.exit(main())
