"""FlashAttention 3, by a package `kernels` that stands in for the real one: a GPU and the hub are not here."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from nanochat.model.attention import Attend, sdpa
from nanochat.runtime.device import Device
from nanochat.runtime.distributed import World
from nanochat.storage.cache import Cache
from nanochat.training import attention, flash_attention
from nanochat.training.attention import choose_attention
from nanochat.training.flash_attention import COMMIT, REPOSITORY, Unavailable, load
from tests.training.rig import CONFIG

CPU = torch.device("cpu")

# Fetching is a process that may use the network; reading is this one, which may not.
PACKAGE = """
import os, time
from types import SimpleNamespace
from nanochat.model.attention import sdpa
def get_kernel(repository, revision):
    asked = f"{repository} {revision} offline={os.environ.get('HF_HUB_OFFLINE', '')}"
    with open(os.path.join(os.environ["KERNELS_CACHE"], "asked"), "a") as file:
        print(asked, file=file)
    def flash_attn_func(q, k, v, causal, window_size):
        assert causal
        before, after = window_size
        assert after == (-1 if before == -1 else 0)
        return ANSWER
    BEGIN
    return SimpleNamespace(flash_attn_func=flash_attn_func)
"""
RIGHT = "sdpa(q, k, v, None if before == -1 else before + 1)"
Install = Callable[..., Path]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Install a package `kernels` -> the file with what it was asked for."""
    for name in ("KERNELS_CACHE", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)

    def write(answer: str = RIGHT, begin: str = "") -> Path:
        folder = tmp_path / "packages"
        folder.mkdir()
        (folder / "kernels.py").write_text(PACKAGE.replace("ANSWER", answer).replace("BEGIN", begin))
        monkeypatch.syspath_prepend(str(folder))
        monkeypatch.setenv("PYTHONPATH", f"{folder}:{Path(__file__).parents[2]}")
        monkeypatch.setenv("KERNELS_CACHE", str(folder))
        return folder / "asked"

    yield write
    sys.modules.pop("kernels", None)


def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache", 10**6)


def equal(attend: Attend, window: int | None) -> bool:
    q, k, v = torch.randn(3, 1, 40, 2, 16).bfloat16()
    return torch.equal(attend(q, k, v, window), sdpa(q, k, v, window))


@pytest.mark.parametrize("answer", [RIGHT, f"({RIGHT}, None)"])
def test_it_is_fetched_at_its_commit_then_read_without_the_network(
    install: Install, tmp_path: Path, answer: str
) -> None:
    asked = install(answer)
    attend = load(cache(tmp_path), World(), CPU)
    assert equal(attend, None) and equal(attend, 7)
    assert asked.read_text().splitlines() == [f"{REPOSITORY} {COMMIT} offline=", f"{REPOSITORY} {COMMIT} offline=1"]


def test_it_is_kept_in_the_cache(tmp_path: Path, install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install()
    monkeypatch.delenv("KERNELS_CACHE")
    load(kept := cache(tmp_path), World(), CPU)
    assert (kept.folder_for(f"{REPOSITORY} at {COMMIT}") / "asked").exists()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"begin": "raise OSError('no route\\nmore')"}, r"FlashAttention 3 cannot be had \(more\)"),
        ({"begin": "time.sleep(60)"}, "FlashAttention 3 did not come within 5 s"),
        ({"begin": "if os.environ.get('HF_HUB_OFFLINE'): raise OSError('not there\\nmore')"}, r"had \(not there\)"),
        ({"answer": "sdpa(q, k, v, None)"}, "does not compute here what PyTorch's kernel does"),
        ({"answer": "sdpa(q, k, v, None) * float('nan')"}, "does not compute here what PyTorch's kernel does"),
    ],
)
def test_what_goes_wrong_is_a_reason_and_no_failure(
    install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, str], reason: str
) -> None:
    install(**change)
    if "did not come" in reason:
        monkeypatch.setattr(flash_attention, "SECONDS", 5.0)
    with pytest.raises(Unavailable, match=reason):
        load(cache(tmp_path), World(), CPU)


def test_without_the_package_nothing_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flash_attention, "find_spec", lambda name: None)
    monkeypatch.setattr(flash_attention, "fetch", lambda: pytest.fail("fetched"))
    with pytest.raises(Unavailable, match="the package kernels is not installed"):
        load(cache(tmp_path), World(), CPU)


@dataclass(frozen=True, slots=True)
class Pair(World):
    """A process whose peer has no kernel."""

    def sum(self, *values: float) -> list[float]:
        return [value + 1.0 for value in values]


def test_all_processes_attend_alike(install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = install()
    with pytest.raises(Unavailable, match="another process has none"):
        load(cache(tmp_path), Pair(local_rank=1), CPU)
    assert asked.read_text().splitlines() == [f"{REPOSITORY} {COMMIT} offline=1"]  # the first of the node fetches


@pytest.mark.parametrize(
    ("capability", "changes", "loaded"),
    [
        ((9, 0), {}, True),
        ((8, 0), {}, False),
        ((10, 0), {}, False),
        ((9, 0), {"deterministic": True}, False),
        ((9, 0), {"dtype": torch.float32}, False),
        ((9, 0), {"width": 2 * 12}, False),  # heads of 12
        ((9, 0), {"width": 2 * 512}, False),
    ],
)
def test_hopper_alone_loads_it(
    capability: tuple[int, int], changes: dict, loaded: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(flash_attention, "load", lambda *given: equal)
    device = Device(torch.device("cuda"), changes.get("dtype", torch.bfloat16))
    config = replace(CONFIG, width=changes.get("width", CONFIG.width))
    deterministic = changes.get("deterministic", False)
    choice = choose_attention(device, config, deterministic=deterministic, world=World(), cache=cache(tmp_path))
    assert (choice.attend is equal) == loaded
    assert choice.reason == ("attention by FlashAttention 3" if loaded else attention.PYTORCHS)


def test_why_there_is_none_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(flash_attention, "find_spec", lambda name: None)
    device = Device(torch.device("cuda"), torch.bfloat16)
    choice = choose_attention(device, CONFIG, deterministic=False, world=World(), cache=cache(tmp_path))
    assert choice.attend is sdpa
    assert choice.reason == "attention by PyTorch's kernels: the package kernels is not installed"
