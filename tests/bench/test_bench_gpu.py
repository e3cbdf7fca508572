"""`make bench-gpu` as far as it goes without a GPU: its sentence, its reports, its steps on a CPU."""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path

import pytest
from bench_shapes import SETS, refused

from nanochat.bench import gpu
from nanochat.bench.shapes import read_shape
from nanochat.bench.tables import print_tables
from nanochat.spec.errors import UserError

ABOUT = {"gpu": "none", "memory": 80 << 30, "torch": "2", "cuda": None}
TESTS = """
import pytest
pytestmark = pytest.mark.gpu
@pytest.mark.parametrize("compiled", ["never", "always"])
def test_stopped_and_resumed_is_equal_bit_for_bit(compiled): assert compiled != "WRONG"
def test_skipped(): pytest.skip("it is")
"""


def test_without_a_gpu_it_is_one_sentence(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: False)
    for arguments in ([], ["--only", "tests"]):
        monkeypatch.setattr(sys, "argv", ["gpu", *arguments])
        with pytest.raises(SystemExit) as ended:
            gpu.main()
        said = capsys.readouterr()
        assert ended.value.code == 2 and said.out == "" and said.err.count("\n") == 1
        assert said.err.startswith("error: there is no CUDA GPU that PyTorch ")


def test_steps_are_measured_on_what_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NANOCHAT_HOME", str(tmp_path))
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")  # compiling would take minutes
    found = gpu.steps(SETS, ends=math.inf)
    assert found["measured"]["figures"]["steps"]["median"] == gpu.STEPS
    assert len(found["measured"]["costs"]) >= 3 and found["measured"]["tokens_per_second"]["low"] > 0
    print_tables(gpu.step_tables("depth 1", found), markdown=True)
    assert "| tokens/s |" in capsys.readouterr().out


def test_shapes_are_the_speedruns_on_one_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def steps(shape: list[str], *, ends: float) -> dict[str, object]:
        asked.append(shape)
        raise UserError("out of time")

    monkeypatch.setattr(gpu, "steps", steps)
    out = tmp_path / "out.json"
    assert gpu.measure(ABOUT, ["steps"], out, ends=math.inf) == 0
    assert [read_shape(None, shape).model.depth for shape in asked] == [12, 20]
    spec = read_shape(None, asked[1])
    assert gpu.describe(spec)["parameters"] == 560_988_160 and gpu.describe(spec)["batch"] == [2, 16, 2048]
    assert json.loads(out.read_text())["parts"]["depth 20"] == {"error": "out of time"}


@pytest.mark.parametrize(("word", "code"), [("nothing", 0), ("always", 1)])
def test_tests_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: str, code: int) -> None:
    (tmp_path / "test_it.py").write_text(TESTS.replace("WRONG", word))
    monkeypatch.setattr(gpu, "TESTS", tmp_path)
    out = tmp_path / "out.json"
    assert gpu.measure(ABOUT, ["tests"], out, ends=math.inf) == code
    assert json.loads(out.read_text())["parts"]["tests"] == {
        "passed": 2 - code,
        "skipped": 1,
        "failed": [f"{gpu.RESUME}[always]"] if code else [],
        "bit_exact_resume": not code,
    }


def test_tests_that_take_too_long_are_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text("import time\ntime.sleep(600)")
    assert "the tests did not end in the time that was left" in refused(
        lambda: gpu.run_tests(tmp_path, ends=time.monotonic())
    )
