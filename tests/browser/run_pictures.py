"""Makes the pictures of runs in docs/pictures: `make screenshots`, or `python tests/browser/run_pictures.py`.

The pipeline of pictures.yaml runs in a folder of its own. status.png is what `nanochat status --watch` shows in a
terminal meanwhile, and report-print.png the report as it is printed from a dark screen.

`--report [NAME]` makes report.png and mlflow.png of this machine's run instead; with `--all FOLDER` pictures of the
report in a dark scheme, on a phone and printed are made too, into that folder.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from mlflow_server import serving
from terminal import Terminal

from nanochat.cli.local_run import LocalRun, find_run
from nanochat.report.build import build
from nanochat.report.tracked import RunTracker
from nanochat.storage import Artifacts
from nanochat.tracking.links import page_of

HERE = Path(__file__).resolve().parent
PICTURES = HERE.parents[1] / "docs" / "pictures"
COMMAND = [sys.executable, "-m", "nanochat"]
ROWS, COLUMNS = 22, 110  # of the terminal
TRAINS = re.compile(r"mid +Running [^\n]*training ([5-9]\d|1\d\d)/")  # much of the curve is drawn


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--report", nargs="?", const="demo", metavar="NAME")
    parser.add_argument("--all", type=Path, metavar="FOLDER")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if options.report:
            picture_run(options.report, folder, options.all)
        else:
            picture_new_run(folder)


def picture_run(name: str, folder: Path, others: Path | None) -> None:
    """The pictures of a run that was made before."""
    run = find_run(name)
    ours = {"ALL": str(others or "")}
    take({"REPORT": write_report(run, folder), **ours})
    with serving(folder) as server:
        artifacts = Artifacts(run.store, run.resolved.cache)
        assert RunTracker(run.store, artifacts, run=run.paths.root, uri=server).sync()
        take({"MLFLOW": page_of(run.store, run.paths.root, server), **ours})


def picture_new_run(folder: Path) -> None:
    """The pictures of a run that is made for them."""
    for name in ("NANOCHAT_ROOT", "NANOCHAT_ENDPOINT", "NANOCHAT_PROFILES", "MLFLOW_TRACKING_URI"):
        os.environ.pop(name, None)
    os.environ["NANOCHAT_HOME"] = str(folder)
    (folder / "terminal").write_text(watched(folder))
    size = {"ROWS": str(ROWS), "COLUMNS": str(COLUMNS)}
    take({"PRINT": write_report(find_run("tiny"), folder), "TERMINAL": str(folder / "terminal"), **size})


def watched(folder: Path) -> str:
    """The output of `nanochat status --watch` until the second model is half trained, of a run that then goes on."""
    with (folder / "run.out").open("w") as out:
        run = subprocess.Popen([*COMMAND, "run", str(HERE / "pictures.yaml")], stdout=out, stderr=out)
        while not list(folder.glob("runs/*/*/status.json")):
            assert run.poll() is None, (folder / "run.out").read_text()
            try:
                run.wait(0.2)
            except subprocess.TimeoutExpired:
                continue
        terminal = Terminal(["status", "tiny", "--watch"], os.environ, rows=ROWS, columns=COLUMNS)
        terminal.until(lambda seen: TRAINS.search(seen) is not None, seconds=3600)
        seen = terminal.seen
        terminal.end()
        assert run.wait() == 0, (folder / "run.out").read_text()
    return seen


def write_report(run: LocalRun, folder: Path) -> str:
    """The address of a run's report."""
    build(run.store, Artifacts(run.store, run.resolved.cache), run.paths.root, folder / "report")
    return (folder / "report" / "report.html").as_uri()


def take(variables: Mapping[str, str]) -> None:
    """The pictures that run_pictures.mjs makes of what the variables name."""
    command = ["node", str(HERE / "run_pictures.mjs")]
    subprocess.run(command, env=os.environ | {"PICTURES": str(PICTURES), **variables}, check=True)


if __name__ == "__main__":
    main()
