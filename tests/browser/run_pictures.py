"""Makes the pictures of runs in docs/pictures: `make screenshots`, or `python tests/browser/run_pictures.py`.

The demo runs in a folder of its own. status.png is what `nanochat status --watch` shows in a terminal meanwhile,
report.png and report-print.png are its report, on a screen and printed, and mlflow.png is the page that `nanochat ui`
opens, with curves.

`--all FOLDER` puts there what else is to be looked at: the report in both schemes, on a phone and printed whole.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from mlflow_server import free_port
from terminal import Terminal

from nanochat.cli.local_run import NoRun, find_run

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
DEMO = ROOT / "k8s" / "pipelines" / "demo.yaml"
COMMAND = [sys.executable, "-m", "nanochat"]
ROWS, COLUMNS = 24, 110  # of the terminal
STAGE, STEP = "sft", 80  # with which the picture of the terminal begins
DRAWN = re.compile(rf"{STAGE} loss ")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--all", metavar="FOLDER", default="")
    options = parser.parse_args()
    for name in ("NANOCHAT_ROOT", "NANOCHAT_ENDPOINT", "NANOCHAT_PROFILES", "MLFLOW_TRACKING_URI"):
        os.environ.pop(name, None)
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["NANOCHAT_HOME"] = scratch
        folder = Path(scratch)
        (folder / "terminal").write_text(watched(folder))
        find_run("demo").report(folder / "report", markdown=False)
        command = [*COMMAND, "ui", "--no-open", "--port", str(free_port())]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as pages:
            assert pages.stdout is not None
            try:
                told = re.match(r"MLflow: (\S+);", pages.stdout.readline())
                assert told is not None
                take(
                    TERMINAL=str(folder / "terminal"),
                    REPORT=(folder / "report" / "report.html").as_uri(),
                    MLFLOW=told[1],
                    ALL=options.all,
                )
            finally:
                pages.terminate()


def watched(folder: Path) -> str:
    """The output of `nanochat status --watch` while a stage trains, of a run that then goes on to its end."""
    with (folder / "run.out").open("w") as out:
        run = subprocess.Popen([*COMMAND, "run", str(DEMO)], stdout=out, stderr=out)
        while not under_way():
            assert run.poll() is None, (folder / "run.out").read_text()
            time.sleep(0.2)
        terminal = Terminal(["status", "demo", "--watch"], os.environ, rows=ROWS, columns=COLUMNS)
        terminal.until(lambda seen: DRAWN.search(seen) is not None, seconds=600)
        terminal.end()
        assert run.wait() == 0, (folder / "run.out").read_text()
    return terminal.seen


def under_way() -> bool:
    try:
        told = find_run("demo").progress(STAGE)
    except NoRun:
        return False
    return told is not None and told.step >= STEP


def take(**variables: str) -> None:
    """The pictures that run_pictures.mjs makes of what the variables name."""
    size = {"ROWS": str(ROWS), "COLUMNS": str(COLUMNS), "PICTURES": str(ROOT / "docs" / "pictures")}
    subprocess.run(["node", str(HERE / "run_pictures.mjs")], env=os.environ | size | variables, check=True)


if __name__ == "__main__":
    main()
