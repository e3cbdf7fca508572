"""`make push` builds all four images and pushes them, for the platforms that the builder can.

A Docker that writes down what it is asked takes the place of the real one.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
INSPECTED = """Name:          {name}
Driver:        {driver}

Nodes:
Name:      {name}0
Platforms: {platforms}
"""
DOCKER = """#!/bin/sh
echo "$@" >>{folder}/asked
case "$*" in
"buildx inspect"*) cat {folder}/builder 2>/dev/null || exit 1 ;;
*--metadata-file*) echo '{{"containerimage.digest": "sha256:0a", "image.name": "x"}}' >dist/pushed.json ;;
esac
"""


def push(folder: Path, *options: str, builder: str = "") -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """The script on a copy of the project's images, and what it asked Docker for."""
    (folder / "images").mkdir(exist_ok=True)
    (folder / "images" / "push.sh").write_text((ROOT / "images" / "push.sh").read_text())
    if builder:
        (folder / "builder").write_text(builder)
    for name, text in {"docker": DOCKER.format(folder=folder), "git": "#!/bin/sh\necho 0123abcd\n"}.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    environment = {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}
    arguments = ("localhost:5000/team", "0.3.0", "cuda", "2.13.0", "https://index.example/cpu", *options)
    command = ["sh", str(folder / "images" / "push.sh"), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    asked = (folder / "asked").read_text().splitlines() if (folder / "asked").exists() else []
    return done, [line for line in asked if "inspect" not in line]


@pytest.mark.parametrize(
    "builder", ["", INSPECTED.format(name="default", driver="docker", platforms="linux/amd64, linux/arm64")]
)
def test_docker_alone_builds_for_this_machine(tmp_path: Path, builder: str) -> None:
    done, asked = push(tmp_path, builder=builder)
    assert done.returncode == 0 and "for this machine's platform" in done.stdout, done.stderr
    assert [line.split()[0] for line in asked] == ["build", "push"] * 4
    for target, built, pushed in zip(("trainer", "server", "operator", "mlflow"), asked[::2], asked[1::2], strict=True):
        image = f"localhost:5000/team/nanochat-{target}:0.3.0"
        assert f"--target {target} " in built and f"-t {image} " in built and "ACCELERATOR=cuda" in built
        assert "COMMIT=0123abcd" in built and "--platform" not in built
        assert pushed == f"push --quiet {image}"


@pytest.mark.parametrize("platforms", ["linux/amd64, linux/amd64/v2, linux/arm64", "linux/amd64"])
def test_buildx_builds_for_what_its_builder_can(tmp_path: Path, platforms: str) -> None:
    builder = INSPECTED.format(name="own", driver="docker-container", platforms=platforms)
    done, asked = push(tmp_path, builder=builder)
    assert done.returncode == 0, done.stderr
    assert len(asked) == 4 and all(line.startswith("buildx build --quiet --platform ") for line in asked)
    both = "linux/amd64,linux/arm64" if "arm64" in platforms else "linux/amd64"
    assert [line.split()[4] for line in asked] == ["linux/amd64", "linux/amd64", both, both]
    assert all("--push" in line and "--sbom" not in line for line in asked)
    assert not (tmp_path / "dist").exists()


def test_what_is_attested_is_listed_by_digest(tmp_path: Path) -> None:
    builder = INSPECTED.format(name="own", driver="docker-container", platforms="linux/amd64")
    done, asked = push(tmp_path, "--attest", builder=builder)
    assert done.returncode == 0, done.stderr
    assert all("--sbom=true --provenance=mode=max" in line for line in asked)
    images = (tmp_path / "dist" / "images.txt").read_text().splitlines()
    assert len(images) == 4 and images[0] == "localhost:5000/team/nanochat-trainer:0.3.0@sha256:0a"


def test_docker_alone_attests_nothing(tmp_path: Path) -> None:
    done, asked = push(tmp_path, "--attest")
    assert done.returncode == 1 and "--attest takes one" in done.stderr and asked == []


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["make", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)


def test_make_push_names_the_images_as_the_chart_does() -> None:
    chart = (ROOT / "helm" / "nanochat" / "Chart.yaml").read_text()
    (version,) = re.findall(r'^appVersion: "(.*)"$', chart, re.MULTILINE)
    done = make("-n", "push", "REGISTRY=localhost:5000/team")
    assert f'push.sh "localhost:5000/team" "{version}" "cuda" ' in done.stdout
    assert '--set images.registry=localhost:5000/team"' in done.stdout, "the chart's default tag is the one pushed"
    other = make("-n", "push", "REGISTRY=localhost:5000/team", "TAG=mine", "ATTEST=1").stdout
    assert '"mine" "cuda" ' in other and "--set images.tag=mine" in other and " --attest ||" in other


@pytest.mark.parametrize("registry", ["", "https://registry.example.org"])
def test_a_registry_that_is_none(tmp_path: Path, registry: str) -> None:
    for name in ("docker", "git"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    command = ["make", "push", f"REGISTRY={registry}"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode != 0 and "registry.example.org/team" in done.stderr
