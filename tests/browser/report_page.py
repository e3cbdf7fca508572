"""A run's report for the browser: `python report_page.py FOLDER` writes it there, of a run with every kind of thing."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from nanochat.report.build import build
from tests.report.fake_run import RUN, whole_run


def main() -> None:
    folder = Path(sys.argv[1])
    run = whole_run(folder)
    build(run.store, run.artifacts, RUN, folder / "report")


if __name__ == "__main__":
    main()
