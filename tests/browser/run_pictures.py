"""Makes docs/pictures/report.png and mlflow.png of this machine's run: `python tests/browser/run_pictures.py [NAME]`.

With `--all FOLDER` pictures of the report in a dark scheme, on a phone and printed are made too, into that folder.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from mlflow_server import serving

from nanochat.cli.local_run import find_run
from nanochat.report.build import build
from nanochat.report.tracked import RunTracker
from nanochat.storage import Artifacts
from nanochat.tracking.links import page_of

HERE = Path(__file__).parent
PICTURES = HERE.parents[1] / "docs" / "pictures"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("name", nargs="?", default="demo")
    parser.add_argument("--all", type=Path, metavar="FOLDER")
    options = parser.parse_args()
    run = find_run(options.name)
    artifacts = Artifacts(run.store, run.resolved.cache)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        build(run.store, artifacts, run.paths.root, folder / "report")
        take("REPORT", (folder / "report" / "report.html").as_uri(), options.all)
        with serving(folder) as server:
            assert RunTracker(run.store, artifacts, run=run.paths.root, uri=server).sync()
            take("MLFLOW", page_of(run.store, run.paths.root, server), options.all)


def take(what: str, page: str, folder: Path | None) -> None:
    """The pictures of a page, and with `folder` its others."""
    variables = {what: page, "PICTURES": str(PICTURES), "ALL": str(folder or "")}
    subprocess.run(["node", str(HERE / "run_pictures.mjs")], env=os.environ | variables, check=True)


if __name__ == "__main__":
    main()
