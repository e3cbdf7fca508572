"""The `nanochat` command starts wherever it is said to: in the trainer's image, without the controller's libraries."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_it_starts_with_what_the_trainers_image_has() -> None:
    program = "import sys, nanochat.cli.main; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True, text=True)
    imported = set(done.stdout.split())
    dockerfile = (ROOT / "images" / "Dockerfile").read_text(encoding="utf-8")
    _, trainer, _ = re.split(r"^FROM trainer-parts AS trainer$|^FROM server-parts AS server$", dockerfile, flags=re.M)
    copied = set(re.findall(r"/opt/nanochat/(\w+)$", trainer, re.M))
    assert {"nanochat", "operators", "tasks"} & imported <= copied
    assert not {"kopf", "kubernetes", "kubeflow", "fastapi", "mlflow", "torch"} & imported
