"""The packed chart: `make chart` with the registry and the repository of whoever releases it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tarfile
from pathlib import Path

import yaml
from rendered_chart import CHART, Chart

ROOT = Path(__file__).parents[2]


def test_a_packed_chart_needs_no_registry(chart: Chart, tmp_path: Path) -> None:
    """What it was packed with is its default, and the page of its values says so."""
    shutil.copytree(ROOT / "helm", tmp_path / "helm")
    environment = {**os.environ, "PATH": f"{Path(chart.helm).parent}{os.pathsep}{os.environ['PATH']}"}
    command = ["sh", "helm/package.sh", "ghcr.io/our-team", "https://github.com/our-team/chat"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    version = yaml.safe_load((CHART / "Chart.yaml").read_text())["version"]
    packed = tmp_path / "dist" / f"nanochat-{version}.tgz"
    rendered = chart.run("template", "nanochat", str(packed), "-n", "ns")
    assert rendered.returncode == 0, rendered.stderr
    images = set(re.findall(r"image: (\S*nanochat-\S+)", rendered.stdout))
    assert images == {
        f"ghcr.io/our-team/nanochat-{name}:{version}" for name in ("trainer", "server", "operator", "mlflow")
    }
    with tarfile.open(packed) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    unpacked = tmp_path / "unpacked" / "nanochat"
    about = yaml.safe_load((unpacked / "Chart.yaml").read_text())
    assert about["home"] == about["sources"][0] == "https://github.com/our-team/chat"
    assert '| `images.registry` | `"ghcr.io/our-team"` |' in (unpacked / "README.md").read_text()
    assert (tmp_path / "helm" / "nanochat" / "values.yaml").read_text() == (CHART / "values.yaml").read_text()
