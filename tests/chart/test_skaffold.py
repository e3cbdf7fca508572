"""What skaffold builds reaches the chart's values."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
PARTS = yaml.safe_load((ROOT / "k8s" / "skaffold" / "images.yaml").read_text())["template"]["spec"]["containers"]


def test_each_image_that_is_built_is_one_of_the_charts() -> None:
    values = yaml.safe_load((ROOT / "helm" / "nanochat" / "values.yaml").read_text())
    skaffold = yaml.safe_load((ROOT / "skaffold.yaml").read_text())
    built = {artifact["image"]: artifact["docker"]["target"] for artifact in skaffold["build"]["artifacts"]}
    assert {part["image"] for part in PARTS} == set(built)
    for part in PARTS:
        assert values[part["name"]]["image"]["repository"] == part["image"]
        assert part["image"] == f"nanochat-{built[part['image']]}"


def test_what_was_not_built_keeps_its_tag(tmp_path: Path) -> None:
    """`skaffold dev` builds two of the four images; the deployment names the tags of those alone."""
    images = {"kubectl": "controller=nanochat-operator:0a1 inference=r.io/nanochat-server:1b2 mlflow=nanochat-mlflow "}
    for name in ("kubectl", "helm"):
        program = tmp_path / name
        program.write_text(f'#!/bin/sh\necho "{name} $*" >>{tmp_path}/calls\nprintf "%s" "{images.get(name, "")}"\n')
        program.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "SKAFFOLD_KUBE_CONTEXT": "kind-some"}
    subprocess.run(["sh", "k8s/skaffold/deploy.sh"], cwd=ROOT, env=environment, check=True)
    (helm,) = [call for call in (tmp_path / "calls").read_text().splitlines() if call.startswith("helm ")]
    assert "--kube-context kind-some" in helm and "--reset-then-reuse-values" in helm
    tags = [word for word in helm.split() if ".image.tag=" in word]
    assert tags == ["controller.image.tag=0a1", "inference.image.tag=1b2"]
