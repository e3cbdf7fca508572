"""Checkpoints are saved while training goes on: what is in them, and what becomes of saves that are slow or fail."""

from __future__ import annotations

import json
import logging
import resource
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from nanochat.optim import OptimSettings, StateFiles, build_optimizer
from nanochat.runtime.distributed import join
from nanochat.spec.errors import NanochatError, StorageError, UserError
from nanochat.storage.checkpoints import Checkpoint, Checkpoints
from nanochat.training import saving
from nanochat.training.checkpoint import CROWDED, SLOW
from nanochat.training.host_copy import HostCopy
from nanochat.training.plan import Measurement
from tests.optim.optim_problem import Tables
from tests.training.rig import Rig, losses, same


def hook(monkeypatch: pytest.MonkeyPatch, name: str, before: Callable[[int], None]) -> None:
    """Call `before` with the number of the call, from 0, before a method of Checkpoints."""
    real = getattr(Checkpoints, name)
    calls: list[int] = []

    def hooked(self: Checkpoints, *args: Any) -> Any:
        calls.append(len(calls))
        before(calls[-1])
        return real(self, *args)

    monkeypatch.setattr(Checkpoints, name, hooked)


def saved(rig: Rig, step: int) -> Path:
    """The folder of a checkpoint that is whole."""
    checkpoints = Checkpoints(rig.store, "base", "key", rig.folder / "cache")
    (found,) = [checkpoint for checkpoint in checkpoints.all() if checkpoint.step == step]
    return checkpoints.fetch(found)


def whole_state(folder: Path) -> dict[str, torch.Tensor]:
    return dict(StateFiles(sorted(folder.glob("optimizer*.safetensors"))))


def test_a_copy_does_not_move_on_and_its_buffers_serve_again() -> None:
    model = Tables()
    optimizer = build_optimizer(model, OptimSettings())
    copy = HostCopy()

    def step() -> None:
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step(1.0, 0.9, None)

    step()
    taken = copy.take({"model": model.state_dict(), "optimizer": optimizer.own_state()})
    copy.wait()
    kept = {file: {name: value.clone() for name, value in tensors.items()} for file, tensors in taken.items()}
    assert same(kept["model"], model.state_dict()) and same(kept["optimizer"], optimizer.own_state())
    step()
    assert all(same(kept[file], taken[file]) for file in kept)
    assert not same(kept["model"], model.state_dict()) and not same(kept["optimizer"], optimizer.own_state())
    places = {value.data_ptr() for tensors in taken.values() for value in tensors.values()}
    again = copy.take({"model": model.state_dict(), "optimizer": optimizer.own_state()})
    assert same(again["model"], model.state_dict()) and same(again["optimizer"], optimizer.own_state())
    assert places == {value.data_ptr() for tensors in again.values() for value in tensors.values()}


def test_training_goes_on_during_a_save_which_is_of_its_own_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The save of step 4 is held until step 7 is done; what it holds is what a run has that ends with step 4."""
    later = threading.Event()
    hook(monkeypatch, "folder", lambda call: None if later.wait(300) else pytest.fail("step 7 was waited for"))

    def release(step: int) -> dict[str, float]:
        if step == 7:
            later.set()
        return {}

    rig = Rig(tmp_path / "whole", checkpoint_steps=4, steps=7, measurements=(Measurement(1, release),))
    rig.run()
    assert rig.progress.state.warnings == ()
    short = Rig(tmp_path / "short", stop_at=4, steps=7)
    short.run_until_stopped()
    assert same(load_file(saved(rig, 4) / "model.safetensors"), short.weights)
    files = saved(rig, 4), saved(short, 4)
    assert same(whole_state(files[0]), whole_state(files[1]))
    loops = [json.loads((folder / "loop.json").read_text()) for folder in files]
    assert [loop.pop("seconds") > 0 for loop in loops] == [True, True]
    assert [loop.pop("measured") for loop in loops] == [4, 0]  # nothing was to be measured in the short one
    assert loops[0] == loops[1]


def test_a_save_that_is_not_done_when_the_next_is_due_is_waited_for_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited = threading.Event()
    real = saving.Save.result

    def result(self: saving.Save, **options: Any) -> None:
        waited.set()
        real(self, **options)

    monkeypatch.setattr(saving.Save, "result", result)
    hook(monkeypatch, "commit", lambda call: None if waited.wait(60) else pytest.fail("nobody waited"))
    whole = Rig(tmp_path / "whole")
    whole.run()
    rig = Rig(tmp_path / "slow", checkpoint_steps=2)
    rig.run()
    assert rig.progress.state.warnings == (SLOW,)
    assert same(rig.weights, whole.weights)
    assert [path.name for path in sorted((tmp_path / "slow/checkpoints/base/key").iterdir())] == [
        "step-0000008-first",
        "step-0000010-first",
    ]


@pytest.mark.parametrize("call", ["store_files", "commit"])
def test_a_save_that_fails_once_is_told_and_made_again_from_the_same_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, call: str
) -> None:
    def fail(calls: int) -> None:
        if calls == 0:
            raise StorageError("s3://bucket gives no answer")

    hook(monkeypatch, call, fail)
    with caplog.at_level(logging.WARNING):
        rig = Rig(tmp_path / "failed", checkpoint_steps=5, steps=9)
        rig.run()
    assert rig.progress.state.warnings == (saving.TOLD,)
    assert "step 5 could not be saved and is tried again: s3://bucket gives no answer" in caplog.text
    short = Rig(tmp_path / "short", stop_at=5, steps=9)
    short.run_until_stopped()
    assert same(load_file(saved(rig, 5) / "model.safetensors"), short.weights)


@pytest.mark.parametrize("error", [StorageError("it gives no answer"), UserError("another's file")])
def test_what_is_whole_stays_where_former_ones_can_not_be_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: NanochatError
) -> None:
    def refuse(call: int) -> None:
        if call < 2:
            raise error

    hook(monkeypatch, "prune", refuse)
    with caplog.at_level(logging.WARNING):
        rig = Rig(tmp_path, checkpoint_steps=2, steps=9)
        rig.run()
    assert set(rig.progress.state.warnings) - {SLOW} == {CROWDED}  # steps are short here
    assert f"{CROWDED}: {error.message}" in caplog.text
    assert [path.name for path in sorted((tmp_path / "checkpoints/base/key").iterdir())] == [
        "step-0000006-first",
        "step-0000008-first",
    ]
    assert saved(rig, 8)


def test_a_save_that_fails_after_its_manifest_is_stored_leaves_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a folder store it is written where it stays."""
    real = Checkpoints.commit

    def commit(self: Checkpoints, *given: Any) -> None:
        real(self, *given)
        raise UserError("no right for writing")

    monkeypatch.setattr(Checkpoints, "commit", commit)
    rig = Rig(tmp_path, checkpoint_steps=5)
    with pytest.raises(UserError, match="no right"):
        rig.run()
    assert saved(rig, 5)


def test_a_save_whose_files_are_removed_meanwhile_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the prune of a launch does that was started when this one was taken for dead."""
    folder = tmp_path / "checkpoints" / "base" / "key" / "step-0000005-first"

    def remove(calls: int) -> None:
        if calls == 0:
            (folder / "model.safetensors").unlink()

    hook(monkeypatch, "commit", remove)
    rig = Rig(tmp_path, checkpoint_steps=5, steps=6)
    rig.run()
    assert saved(rig, 5) == folder


def test_a_save_whose_folder_is_removed_while_it_is_written_is_told_and_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "checkpoints" / "base" / "key" / "step-0000005-first"
    real, waits = HostCopy.wait, iter(range(9))

    def remove(copy: HostCopy) -> None:
        real(copy)
        if next(waits) == 0:
            shutil.rmtree(folder)

    monkeypatch.setattr(HostCopy, "wait", remove)
    with caplog.at_level(logging.WARNING):
        rig = Rig(tmp_path, checkpoint_steps=5, steps=6)
        rig.run()
    assert rig.progress.state.warnings == (saving.TOLD,)
    assert f"{folder} was removed while it was written" in caplog.text
    assert saved(rig, 5) == folder


@pytest.mark.parametrize(
    ("error", "tries"),
    [(StorageError("it gives no answer"), 1 + len(saving.PAUSES)), (UserError("no right for writing"), 1)],
)
def test_a_store_that_fails_for_ever_fails_the_stage_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: NanochatError, tries: int
) -> None:
    calls: list[int] = []

    def fail(call: int) -> None:
        calls.append(call)
        raise error

    hook(monkeypatch, "commit", fail)
    rig = Rig(tmp_path, checkpoint_steps=5)
    with pytest.raises(type(error), match=error.message):
        rig.run()
    assert len(calls) == tries
    assert not (tmp_path / "checkpoints/base/key/step-0000005-first").exists()


def test_a_failure_is_raised_at_the_next_step_and_not_at_the_next_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(call: int) -> None:
        raise UserError("no right for writing")

    hook(monkeypatch, "folder", fail)

    def settle(step: int) -> dict[str, float]:
        if step == 7:
            save = rig.trainer.checkpointer._save
            assert save is not None
            save._future.exception()
        return {}

    rig = Rig(tmp_path, checkpoint_steps=5, steps=40, measurements=(Measurement(1, settle),))
    with pytest.raises(UserError, match="no right"):
        rig.run()
    assert 5 < rig.trainer.state.step <= 7


def test_a_stop_during_a_save_ends_with_both_checkpoints_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Rig(tmp_path / "whole")
    whole.run()
    stopping = threading.Event()
    hook(monkeypatch, "store_files", lambda call: None if stopping.wait(60) else pytest.fail("no stop"))
    first = Rig(tmp_path / "parts", checkpoint_steps=4)
    first.stop = lambda step: step >= 7 and (stopping.set() or True)
    first.run_until_stopped()
    assert first.progress.state.warnings == (), "to wait at a stop is nothing to tell"
    assert saved(first, 4) and saved(first, 7)
    second = Rig(tmp_path / "parts", launch="second")
    second.run()
    assert second.loader.asked[0] == 7
    assert same(second.weights, whole.weights)


def test_an_error_that_ends_training_lets_the_save_under_way_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = threading.Event()
    hook(monkeypatch, "commit", lambda call: None if failed.wait(60) else pytest.fail("no error"))

    def fail(step: int) -> dict[str, float]:
        if step == 5:
            failed.set()
            raise MemoryError
        return {}

    rig = Rig(tmp_path, checkpoint_steps=4, measurements=(Measurement(1, fail),))
    with pytest.raises(MemoryError):
        rig.run()
    assert saved(rig, 4)


def test_a_checkpoint_from_a_version_before_is_read(tmp_path: Path) -> None:
    """It has the optimizer's whole state in one file."""
    whole = Rig(tmp_path / "whole")
    whole.run()
    first = Rig(tmp_path / "parts", stop_at=5)
    first.run_until_stopped()
    folder = saved(first, 5)
    checkpoints = Checkpoints(first.store, "base", "key", tmp_path / "cache")
    before = checkpoints.folder(6, "before")
    for name in ("model.safetensors", "random.safetensors", "loop.json"):
        (before / name).write_bytes((folder / name).read_bytes())
    save_file(whole_state(folder), before / "optimizer.safetensors")
    names = [path.name for path in before.iterdir()]
    checkpoints.commit(6, "before", checkpoints.store_files(6, "before", before, names), {"step": 5})
    second = Rig(tmp_path / "parts", launch="second")
    second.run()
    assert second.loader.asked[0] == 5
    assert same(second.weights, whole.weights)


def test_a_checkpoint_that_cannot_be_read_is_an_error_of_storage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Rig(tmp_path, stop_at=5).run_until_stopped()
    real = Checkpoints.fetch

    def fetch(self: Checkpoints, found: Checkpoint) -> Path:
        folder = real(self, found)
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors").mkdir()  # which can be opened, and not read
        return folder

    monkeypatch.setattr(Checkpoints, "fetch", fetch)
    with pytest.raises(StorageError, match=r"reading failed in .*/step-0000005-first \(OSError ENODEV\)"):
        Rig(tmp_path, launch="second").run()


def train_on(folder: Path, stop_at: int | None, launch: str, steps: int = 50) -> None:
    """One launch of a stage, in as many processes as there are, each with its own name, as pods have."""
    torch.set_num_threads(1)
    with join(torch.device("cpu")) as world:
        rig = Rig(folder, world=world, steps=steps, stop_at=stop_at, launch=f"{launch}-{world.rank}")
        if stop_at is None:
            rig.run()
        else:
            rig.run_until_stopped()


def test_any_number_of_processes_reads_what_others_wrote_bit_for_bit(
    tmp_path: Path, run_ranks: Callable[..., None]
) -> None:
    """Two ranks save at step 3; four, and then one, restore that and save it again at once, in parts of their own."""
    run_ranks(train_on, 2, tmp_path, 3, "two", 9)
    first = saved(Rig(tmp_path), 3)
    assert len(list(first.glob("optimizer*"))) == 2
    for size in (4, 1):
        run_ranks(save_again, size, tmp_path, f"{size}")
        again = tmp_path / "again" / f"{size}"
        assert len(list(again.glob("optimizer*"))) == size
        assert same(load_file(again / "model.safetensors"), load_file(first / "model.safetensors"))
        assert same(whole_state(again), whole_state(first))


def save_again(folder: Path, name: str) -> None:
    torch.set_num_threads(1)
    with join(torch.device("cpu")) as world:
        rig = Rig(folder, world=world, launch="reads")
        trainer = rig.loop()
        loop = trainer.checkpointer.restore(model=trainer.model, optimizer=trainer.optimizer)
        assert loop is not None
        into = Rig(folder / "again", world=world, launch="again").loop().checkpointer
        into.save(3, model=trainer.model, optimizer=trainer.optimizer, loop=loop)
        into.wait()
        if world.first:
            saved(Rig(folder / "again"), 3).rename(folder / "again" / name)


def test_another_number_of_processes_goes_on_with_equal_losses(tmp_path: Path, run_ranks: Callable[..., None]) -> None:
    Rig(tmp_path / "one", steps=50).run()
    for number, (size, stop_at) in enumerate(((2, 12), (4, 25), (1, 37), (2, None))):
        run_ranks(train_on, size, tmp_path / "many", stop_at, f"{number:02d}-of-{size}")
    one, many = losses(tmp_path / "one"), losses(tmp_path / "many")
    assert len(one) == len(many) == 50
    assert many == pytest.approx(one, rel=1e-5)


def failing_rank(folder: Path, user: bool) -> None:
    """The last rank's store refuses its part: once, or as nothing mends."""
    torch.set_num_threads(1)
    with join(torch.device("cpu")) as world, pytest.MonkeyPatch.context() as monkeypatch:

        def fail(call: int) -> None:
            if user:
                raise UserError("no right for writing")
            if call == 0:
                raise StorageError("no answer")

        if world.rank == world.size - 1:
            hook(monkeypatch, "store_files", fail)
        rig = Rig(folder, world=world, stop_at=5)
        if user:
            with pytest.raises(UserError, match="no right"):
                rig.run()
        else:
            rig.run_until_stopped()


def test_one_ranks_failure_is_that_of_the_save(tmp_path: Path, run_ranks: Callable[..., None]) -> None:
    run_ranks(failing_rank, 2, tmp_path / "once", False)
    assert saved(Rig(tmp_path / "once"), 5)
    run_ranks(failing_rank, 2, tmp_path / "ever", True)
    assert not list((tmp_path / "ever").rglob("manifest.json"))


def full_rank(folder: Path) -> None:
    """The last rank's disk takes no file of more than 1,000 bytes."""
    torch.set_num_threads(1)
    with join(torch.device("cpu")) as world:
        if world.rank == world.size - 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, resource.RLIM_INFINITY))
        with pytest.raises(UserError, match="is full: free space there, then run again"):
            Rig(folder, world=world, stop_at=5).run()


def test_one_ranks_full_disk_is_told_by_all_and_nothing_is_left(tmp_path: Path, run_ranks: Callable[..., None]) -> None:
    run_ranks(full_rank, 2, tmp_path)
    assert not list(tmp_path.rglob("step-*"))
