"""Logs of a pipeline's stages, wherever it runs: each line once, followed across attempts and stages.

show(source, stage="base", attempt=None, rank=None, follow=True)

A launch is one start of an attempt on one node: it has a file for each of its ranks, and its own output in "launch".
Where an attempt has several files, lines begin with the name of theirs, the launch's where it is its own output; where
several attempts are shown, each has a heading.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator, Sequence

from nanochat.cli.run_handle import LogSource, Unanswered
from nanochat.pipeline.log_reader import LaunchLogs
from nanochat.pipeline.run_status import StageRunStatus
from nanochat.spec.errors import UserError
from nanochat.spec.fields import nearest

FOLLOW_SECONDS = 2.0
OWN = "launch"  # the file of the launch's own output
ENDED = ("Succeeded", "Cached", "Failed", "Cancelled", "Unneeded", "Unselected")


def show(source: LogSource, *, stage: str | None, attempt: int | None, rank: int | None, follow: bool) -> None:
    """Print the log of a stage's last attempt, or of the one asked for; when followed, of all, until the end.

    Without a stage: the one that began last; when followed, all of them.
    """
    reader = _Reader(source, attempt=attempt, rank=rank, all_attempts=follow)
    stages: Sequence[StageRunStatus] = ()
    said = ""
    while True:
        note = ""
        try:
            live, stages = source.look()
            _check(stage, stages)
            for each in _chosen(stage, stages, source.name, every=follow, live=live):
                reader.read(each)
                note = f"{each.stage} has not begun: {each.message or each.phase}" if each.started is None else ""
        except Unanswered as error:
            if not follow:
                raise UserError(str(error)) from None
            live, note = True, f"{error}; trying again"
        if not (follow and live and not reader.has_all(stage)):
            break
        if note and note != said:  # once, however long it lasts
            print(note, file=sys.stderr, flush=True)
        said = note
        time.sleep(FOLLOW_SECONDS)
    reader.flush()
    if not reader.found:
        which = f" of {stage}" if stage else f" of {source.name}"
        which += f", attempt {attempt}" if attempt is not None else ""
        which += f", {_file(rank)}" if rank is not None else ""
        why = _why(stage, stages) if attempt is None and rank is None else ""
        raise UserError(f"there is no log{which}{why}")


def _check(stage: str | None, stages: Sequence[StageRunStatus]) -> None:
    known = [each.stage for each in stages]
    if stage and known and stage not in known:
        raise UserError(f"there is no stage '{stage}'.{nearest(stage, known)}")


def _chosen(
    stage: str | None, stages: Sequence[StageRunStatus], name: str, *, every: bool, live: bool
) -> list[StageRunStatus]:
    if stage:
        return [each for each in stages if each.stage == stage]
    begun = [(each.started, each) for each in stages if each.started is not None]
    if not begun and not (every and live):
        why = (
            " yet"
            if live
            else ": all its outputs were there already"
            if any(s.phase == "Cached" for s in stages)
            else ""
        )
        raise UserError(f"no stage of {name} has run{why}")
    ordered = [each for _, each in sorted(begun, key=lambda item: item[0])]
    return ordered if every else ordered[-1:]


def _why(stage: str | None, stages: Sequence[StageRunStatus]) -> str:
    """Why a stage has no log."""
    found = next((each for each in stages if each.stage == stage), None)
    if found is None:
        return ""
    if found.phase == "Cached":
        return ": an earlier run made its output, which is reused"
    return f": {found.message}" if found.message else ""


def _file(rank: int) -> str:
    return OWN if rank < 0 else f"rank{rank}"


class _Reader:
    """Prints what is new in logs, by whole lines."""

    def __init__(self, source: LogSource, *, attempt: int | None, rank: int | None, all_attempts: bool) -> None:
        self._source, self._attempt, self._rank, self._all = source, attempt, rank, all_attempts
        self._offsets: dict[tuple[str, str, str], int] = {}  # stage, launch, file -> bytes read
        self._rest: dict[tuple[str, str], bytes] = {}  # launch, prefix -> a line that has not ended
        self._heading = ""
        self._done: dict[str, int] = {}  # stages that had ended when they were read -> their attempts
        self.found = False

    def read(self, stage: StageRunStatus) -> None:
        """Print what a stage's logs have and did not have before."""
        if self._done.get(stage.stage) == stage.attempts:
            return
        runs = self._runs(stage.stage)
        for heading, files in runs:
            many = len(files) > 1
            for launch, file in files:
                self._print(stage.stage, launch, file, heading if self._all or len(runs) > 1 else "", many)
        ended = stage.phase in ENDED or (self._attempt is not None and stage.attempts > self._attempt)
        if ended:
            self._done[stage.stage] = stage.attempts

    def has_all(self, stage: str | None) -> bool:
        """Whether no more can come of the stage."""
        return stage in self._done

    def _runs(self, stage: str) -> list[tuple[str, list[tuple[LaunchLogs, str]]]]:
        """The chosen attempts' files under headings. A queue may start the pods of one attempt again."""
        found: dict[str, list[tuple[LaunchLogs, str]]] = {}
        launches = self._source.launches(stage)
        wanted = self._attempt
        if wanted is None and not self._all:
            wanted = max((launch.attempt for launch in launches), default=0)
        starts: dict[tuple[int, str], int] = {}  # attempt, file -> how often it began
        for launch in launches:
            if wanted is None or launch.attempt == wanted:
                for file in self._files(launch):
                    start = starts[launch.attempt, file] = starts.get((launch.attempt, file), 0) + 1
                    again = f", start {start}" if start > 1 and file != OWN else ""  # each node has one of those
                    found.setdefault(f"{stage}, attempt {launch.attempt}{again}", []).append((launch, file))
        return [(heading, sorted(files, key=lambda item: _order(item[1]))) for heading, files in found.items()]

    def _files(self, launch: LaunchLogs) -> list[str]:
        """The files of a launch that were asked for: those of its ranks, or what it said itself if it has none."""
        if self._rank is not None:
            return [file for file in launch.files if file == _file(self._rank)]
        ranks = [file for file in launch.files if file != OWN]
        return ranks or [file for file, size in launch.files.items() if size]

    def _print(self, stage: str, launch: LaunchLogs, file: str, heading: str, prefixed: bool) -> None:
        self.found = True
        prefix = f"{launch.name if file == OWN else file}: " if prefixed else ""
        for data in self._new(stage, launch, file):
            if heading != self._heading:
                self.flush()
                print(f"==> {heading} <==")
                self._heading = heading
            *lines, rest = (self._rest.pop((launch.name, prefix), b"") + data).split(b"\n")
            if rest:
                self._rest[launch.name, prefix] = rest
            for line in lines:
                self._line(prefix, line)
        sys.stdout.flush()

    def _new(self, stage: str, launch: LaunchLogs, file: str) -> Iterator[bytes]:
        key = (stage, launch.name, file)
        while self._offsets.get(key, 0) < launch.files[file]:
            data = self._source.read(stage, launch.name, file, self._offsets.get(key, 0))
            if not data:
                return
            self._offsets[key] = self._offsets.get(key, 0) + len(data)
            yield data

    def flush(self) -> None:
        """Print lines that have not ended."""
        for (_, prefix), line in self._rest.items():
            self._line(prefix, line)
        self._rest.clear()
        sys.stdout.flush()

    def _line(self, prefix: str, line: bytes) -> None:
        print(f"{prefix}{line.decode('utf-8', 'replace')}")


def _order(file: str) -> tuple[str, int]:
    """Sorts rank10 behind rank9."""
    number = re.search(r"\d+$", file)
    return file.rstrip("0123456789"), int(number[0]) if number else -1
