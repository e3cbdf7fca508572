from __future__ import annotations

import errno
import gc
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from nanochat.model.transformer import Transformer
from nanochat.runtime.distributed import join
from nanochat.runtime.reading import Reading
from nanochat.spec.errors import Diverged, NanochatError, Stopped, StorageError, UserError
from nanochat.storage import checkpoints
from nanochat.tracking.journal import JournalReader
from nanochat.training import checkpoint, trainer
from nanochat.training.guards import SpikeGuard
from nanochat.training.plan import Measurement
from nanochat.training.state import TrainerState
from tests.training.rig import MODERN, FakeLoader, Rig, close, losses, same


def test_the_loss_falls_and_everything_is_counted(tmp_path: Path) -> None:
    rig = Rig(tmp_path, steps=40)
    state = rig.run()
    points = JournalReader(rig.store, "run").history("base").metrics["train/loss"]
    assert [point.step for point in points] == list(range(1, 41))
    assert points[0].value == pytest.approx(math.log(64), rel=1e-3)
    assert points[-1].value < 0.7 * points[0].value
    assert state.step == 40 and state.tokens == 40 * 6 * 16 and 0 < state.weight < state.tokens
    assert rig.store.read_json(f"run/progress/{rig.launch}.json", 1 << 20)["step"] == 40


def test_micro_batches_do_not_change_the_loss(tmp_path: Path) -> None:
    losses = []
    for rows in (1, 4, 6):
        rig = Rig(tmp_path / str(rows), device_rows=rows)
        losses.append(rig.run().loss)
    assert all(close(loss, losses[0]) for loss in losses)


@pytest.mark.parametrize("stop_at", [1, 5, 7, 11])
def test_stopped_and_resumed_is_equal_bit_for_bit(tmp_path: Path, stop_at: int) -> None:
    whole = Rig(tmp_path / "whole")
    state = whole.run()
    first = Rig(tmp_path / "parts", stop_at=stop_at, guard=SpikeGuard(window=4))
    first.run_until_stopped()
    second = Rig(tmp_path / "parts", launch="second", guard=SpikeGuard(window=4))
    resumed = second.run()
    assert second.loader.asked == [*range(stop_at, 12), 12]  # by the last the weights are judged
    assert same(whole.weights, second.weights)
    assert (resumed.loss, resumed.smooth_loss, resumed.tokens) == (state.loss, state.smooth_loss, state.tokens)


def test_a_modern_model_learns_and_resumes_bit_for_bit(tmp_path: Path) -> None:
    whole = Rig(tmp_path / "whole", model=Transformer(MODERN), steps=20)
    state = whole.run()
    assert state.loss is not None and state.loss < 0.9 * math.log(64)
    Rig(tmp_path / "parts", model=Transformer(MODERN), steps=20, stop_at=9).run_until_stopped()
    second = Rig(tmp_path / "parts", model=Transformer(MODERN), steps=20, launch="second")
    second.run()
    assert same(whole.weights, second.weights)
    fresh = Transformer(MODERN)
    fresh.init_weights(3)
    unmoved = [name for name, weight in fresh.state_dict().items() if torch.equal(weight, whole.weights[name])]
    assert unmoved == []


class Killed(Exception):
    pass


def kill(step: int) -> dict[str, float]:
    """A measurement in which the process ends."""
    raise Killed


def test_killed_without_warning_it_goes_on_from_the_last_checkpoint(tmp_path: Path) -> None:
    whole = Rig(tmp_path / "whole")
    whole.run()

    first = Rig(tmp_path / "parts", checkpoint_steps=2, measurements=(Measurement(7, kill),))
    with pytest.raises(Killed):
        first.run()
    second = Rig(tmp_path / "parts", launch="second", checkpoint_steps=2)
    second.run()
    assert second.loader.asked[0] == 6
    assert same(whole.weights, second.weights)
    assert len(second.store.children("checkpoints/base/key")) == 2


@pytest.mark.parametrize("at", [7, 12])
def test_killed_while_it_measures_it_goes_on_there_and_measures_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """Also after the last step, which is the twelfth."""
    monkeypatch.setattr(trainer, "LOST", 0.0)
    whole = Rig(tmp_path / "whole")
    whole.run()

    def measure(step: int) -> dict[str, float]:
        return {"measured": float(step)}

    first = Rig(tmp_path / "parts", measurements=(Measurement(at, kill),))
    with pytest.raises(Killed):
        first.run()
    second = Rig(tmp_path / "parts", launch="second", measurements=(Measurement(at, measure),))
    state = second.run()
    assert second.loader.asked[0] == at
    measured = JournalReader(second.store, "run").history("base").metrics["measured"]
    assert [(point.step, point.value) for point in measured] == [(step, float(step)) for step in {at: 0, 12: 0}]
    assert state.metrics == {"measured": 12.0}
    assert same(whole.weights, second.weights)


def test_what_was_measured_before_a_save_is_not_measured_again(tmp_path: Path) -> None:
    measured: list[int] = []
    item = Measurement(5, lambda step: measured.append(step) or {})
    Rig(tmp_path, checkpoint_steps=5, stop_at=5, measurements=(item,)).run_until_stopped()
    (loop,) = (tmp_path / "checkpoints").rglob("loop.json")
    values = json.loads(loop.read_text())
    assert values["measured"] == 5 and measured == [5]
    del values["measured"]  # as a version before wrote it
    assert TrainerState.from_dict(values).measured == 5
    Rig(tmp_path, launch="second", measurements=(item,)).run()
    assert measured == [5, 10, 12]


def test_a_save_that_is_under_way_is_not_waited_for_to_measure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "LOST", 0.0)
    monkeypatch.setattr(checkpoint.Checkpointer, "saving", True)
    rig = Rig(tmp_path, steps=4, measurements=(Measurement(1, lambda step: {}),))
    rig.run()
    assert rig.store.children("checkpoints/base/key") == []


def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path) -> None:
    whole = Rig(tmp_path / "whole")
    whole.run()
    Rig(tmp_path / "parts", checkpoint_steps=2, stop_at=8).run_until_stopped()
    newest = sorted((tmp_path / "parts" / "checkpoints" / "base" / "key").iterdir())[-1]
    (newest / "model.safetensors").write_bytes(b"damaged")
    second = Rig(tmp_path / "parts", launch="second")
    second.run()
    assert second.loader.asked[0] == 6
    assert same(whole.weights, second.weights)


@pytest.mark.parametrize(("others_stop", "begins"), [(7, 6), (10, 10)])
def test_a_launch_that_was_cut_off_saves_while_the_next_one_chooses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, others_stop: int, begins: int
) -> None:
    """The chosen checkpoint is no longer the newest, or is removed."""
    whole = Rig(tmp_path / "whole")
    whole.run()
    Rig(tmp_path / "parts", checkpoint_steps=2, stop_at=6).run_until_stopped()
    newest = checkpoints.Checkpoints.newest

    def chosen(self: checkpoints.Checkpoints) -> checkpoints.Checkpoint | None:
        found = newest(self)
        with monkeypatch.context() as undisturbed:
            undisturbed.setattr(checkpoints.Checkpoints, "newest", newest)
            Rig(tmp_path / "parts", launch="cut-off", checkpoint_steps=2, stop_at=others_stop).run_until_stopped()
        return found

    monkeypatch.setattr(checkpoints.Checkpoints, "newest", chosen)
    second = Rig(tmp_path / "parts", launch="second")
    second.run()
    assert second.loader.asked[0] == begins
    assert same(whole.weights, second.weights)


def test_a_step_without_supervised_tokens_changes_no_weight(tmp_path: Path) -> None:
    rig = Rig(tmp_path, loader=FakeLoader(masked=frozenset({3, 4})), steps=5)
    short = Rig(tmp_path / "short", steps=5, loader=FakeLoader(masked=frozenset({3, 4})), stop_at=3)
    short.run_until_stopped()
    state = rig.run()
    assert state.empty == 2 and state.step == 5 and math.isfinite(state.loss or math.nan)
    assert same(rig.weights, short.weights)


def test_measurements_are_due_every_few_steps_and_after_the_last(tmp_path: Path) -> None:
    called: dict[int, list[int]] = {0: [], 5: []}

    def measure(every: int) -> Measurement:
        def call(step: int) -> dict[str, float]:
            called[every].append(step)
            return {"val/loss": 1.0 / step}

        return Measurement(every, call)

    state = Rig(tmp_path, measurements=(measure(0), measure(5))).run()
    assert called == {0: [], 5: [5, 10, 12]}
    assert state.metrics == {"val/loss": 1 / 12}


def test_progress_says_what_is_measured(tmp_path: Path) -> None:
    seen: list[tuple[int, str]] = []

    def measure(step: int) -> dict[str, float]:
        state = rig.progress.state
        assert (state.step, state.rates, state.eta) == (step, {}, None)
        seen.append((step, state.pause))
        return {}

    rig = Rig(tmp_path, measurements=(Measurement(5, measure, doing="measuring CORE"), Measurement(7, measure)))
    rig.run()
    assert seen == [
        (5, "measuring CORE"),
        (7, "measuring"),
        *((s, "measuring CORE") for s in (10, 12)),
        (12, "measuring"),
    ]
    assert rig.progress.state.pause == ""


def test_measurements_do_not_disturb_the_random_state(tmp_path: Path) -> None:
    drawn: list[float] = []

    def draw(step: int) -> dict[str, float]:
        drawn.append(float(torch.rand(())))
        return {}

    torch.manual_seed(7)
    before = torch.get_rng_state()
    Rig(tmp_path, measurements=(Measurement(1, draw),)).run()
    assert len(drawn) == 12
    assert torch.equal(torch.get_rng_state(), before)


def poisoned(first: int, *, last: int = 10**9, value: float) -> Callable[..., torch.Tensor]:
    """The loss of the data steps from `first` to `last` is multiplied by `value`."""

    def forward(rig: Rig, *args: torch.Tensor, **options: str) -> torch.Tensor:
        loss = rig.plain(*args, **options)
        return loss * value if first <= rig.loader.step_of(args[0]) <= last else loss

    return forward


def test_divergence_goes_back_and_leaves_the_data_out_once(tmp_path: Path) -> None:
    rig = Rig(tmp_path, forward=poisoned(7, last=7, value=math.nan), checkpoint_steps=3, skip_steps=5)
    state = rig.run()
    # Step 6 was saved and data step 7 failed: of the 5 last steps' data that of 6 and 7 came after the checkpoint.
    assert state.skipped == [(6, 8)]
    assert state.step == 12
    # Step 7's loss was read when 8 was begun and 9 prepared.
    assert rig.loader.asked == [*range(10), *range(8, 15)]


def test_divergence_removes_what_was_saved_after_the_step_it_goes_back_to(tmp_path: Path) -> None:
    newest = tmp_path / "checkpoints" / "base" / "key" / "step-0000006-first"
    left: list[bool] = []

    def damage(step: int) -> dict[str, float]:
        if step == 7 and len(left) == 1:
            rig.trainer.checkpointer.wait()
            (newest / "model.safetensors").write_bytes(b"damaged")
        if step == 4:
            left.append(newest.exists())
        return {}

    rig = Rig(
        tmp_path,
        forward=poisoned(7, last=7, value=math.nan),
        checkpoint_steps=3,
        steps=8,
        measurements=(Measurement(1, damage),),
    )
    assert rig.run().skipped == [(3, 8)]
    assert left == [False, False]  # before it was saved the first time, and after training went back to step 3
    assert (newest / "model.safetensors").stat().st_size > 100


def test_a_full_disk_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("nanochat.training.checkpoint.save_file", full)
    with pytest.raises(UserError, match="free space"):
        Rig(tmp_path, checkpoint_steps=2).run()


def test_divergence_again_is_a_failure(tmp_path: Path) -> None:
    rig = Rig(tmp_path, forward=poisoned(7, value=math.nan), checkpoint_steps=3)
    with pytest.raises(Diverged, match="matrixLr"):
        rig.run()


def test_a_spike_that_stays_is_skipped_and_no_checkpoint_is_of_it(tmp_path: Path) -> None:
    rig = Rig(
        tmp_path,
        forward=poisoned(14, last=20, value=5.0),
        guard=SpikeGuard(patience=4, window=10),
        checkpoint_steps=1,
        skip_steps=10,
        steps=24,
    )
    state = rig.run()
    assert state.skipped == [(14, 18)]
    events = JournalReader(rig.store, "run").history("base").events
    assert [event.data["skipped"] for event in events if event.kind == "divergence"] == [[14, 18]]


def test_divergence_before_the_first_checkpoint_starts_again(tmp_path: Path) -> None:
    rig = Rig(tmp_path, forward=poisoned(2, last=2, value=math.inf), steps=6)
    state = rig.run()
    assert state.skipped == [(0, 3)]
    assert rig.loader.asked == [0, 1, 2, 3, 4, 3, 4, 5, 6, 7, 8, 9]


GUESSING = math.log(64)


@pytest.mark.parametrize("steps", [1, 12])
def test_nothing_that_is_worse_than_guessing_comes_to_its_end(tmp_path: Path, steps: int) -> None:
    rig = Rig(tmp_path, steps=steps, rate=100.0, guard=SpikeGuard(guessing=GUESSING), checkpoint_steps=1)
    with pytest.raises(Diverged, match=r"guessing every token costs 4\.159.*did so before.*lower the stage's learning"):
        rig.run()
    assert not rig.store.children("checkpoints/base/key")  # of weights that the first step ruined
    events = JournalReader(rig.store, "run").history("base").events
    assert [event.step for event in events if event.kind == "divergence"] == [steps + 1]


def test_an_end_that_is_worse_than_guessing_is_not_saved_and_trained_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "LOST", 0.0)
    guard = SpikeGuard(guessing=GUESSING - 0.4, patience=5)  # worse by less than is trouble before the end
    measured: list[int] = []

    def measure(step: int) -> dict[str, float]:
        measured.append(step)
        rig.trainer.checkpointer.wait()
        return {}

    rig = Rig(tmp_path, rate=1e-30, guard=guard, measurements=(Measurement(1, measure),))
    with pytest.raises(Diverged, match="did so before"):
        rig.run()
    assert sorted(rig.store.children("checkpoints/base/key")) == ["step-0000010-first", "step-0000011-first"]
    assert max(measured) == 11
    assert max(rig.loader.asked) > 12  # the last step with other data


def test_a_stop_while_the_loss_is_suspect_says_from_where_it_goes_on(tmp_path: Path) -> None:
    for every, where in ((None, "from the beginning"), (9, "after step 9")):
        rig = Rig(
            tmp_path / str(every),
            forward=poisoned(14, value=5.0),
            guard=SpikeGuard(patience=9, window=10),
            checkpoint_steps=every,
            steps=24,
            stop_at=16,
        )
        with pytest.raises(Stopped, match=f"Stopped after step 16 of 24; run it again to go on {where}, for the loss"):
            rig.loop().run()


@pytest.mark.parametrize(
    ("changes", "remark"),
    [
        (
            {"rate": 1e-30},
            "It has learned next to nothing: the mean loss is 4.159 in its first 6 steps and 4.159 in its last 6",
        ),
        (
            {"loader": FakeLoader(masked=frozenset(range(12)))},
            "It has learned nothing: none of its steps had a token to train on.",
        ),
    ],
)
def test_a_run_that_learns_nothing_says_so(tmp_path: Path, changes: dict[str, Any], remark: str) -> None:
    rig = Rig(tmp_path, guard=SpikeGuard(guessing=GUESSING), **changes)
    rig.run()
    (event,) = JournalReader(rig.store, "run").history("base").events
    assert event.kind == "remark" and event.message.startswith(remark)
    assert rig.store.read_json(f"run/progress/{rig.launch}.json", 1 << 20)["warnings"] == [event.message]


def tell_readings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """In what order steps are begun and their numbers read."""
    told: list[str] = []

    class Told(Reading):
        def __init__(self, *numbers: torch.Tensor) -> None:
            super().__init__(*numbers)
            self.step = 1 + sum(each.startswith("begun") for each in told)
            told.append(f"begun {self.step}")

        def values(self) -> list[float]:
            told.append(f"read {self.step}")
            return super().values()

    monkeypatch.setattr(trainer, "Reading", Told)
    return told


def test_numbers_are_read_when_the_next_step_is_begun_and_before_a_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = tell_readings(monkeypatch)
    Rig(tmp_path, steps=7, checkpoint_steps=4).run()
    assert told == [
        *("begun 1", "read 1", "begun 2", "begun 3", "read 2", "begun 4", "read 3", "read 4"),
        *("begun 5", "begun 6", "read 5", "begun 7", "read 6", "read 7"),
    ]


def test_what_is_logged_does_not_depend_on_when_it_is_read(tmp_path: Path) -> None:
    at_once = Rig(tmp_path / "at once", measurements=(Measurement(1, lambda step: {}),))
    late = Rig(tmp_path / "late")
    assert late.run().seconds > 0 < at_once.run().seconds
    told = [JournalReader(rig.store, "run").history("base").metrics for rig in (at_once, late)]
    for name in ("train/loss", "train/grad_norm", "train/lr_scale"):
        values = [[(point.step, point.value) for point in metrics[name]] for metrics in told]
        assert values[0] == values[1] and len(values[0]) == 12
    assert same(at_once.weights, late.weights)


def test_a_step_that_diverged_is_never_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its loss is read when the step after it would be begun, where a save is due: before that save."""
    saved: list[tuple[int, bool]] = []
    real = checkpoint.Checkpointer.save

    def save(self: checkpoint.Checkpointer, step: int, *, model: Transformer, **options: Any) -> None:
        saved.append((step, all(bool(weight.isfinite().all()) for weight in model.parameters())))
        real(self, step, model=model, **options)

    monkeypatch.setattr(checkpoint.Checkpointer, "save", save)
    rig = Rig(tmp_path, forward=poisoned(7, last=7, value=math.nan), checkpoint_steps=4, steps=10)
    assert rig.run().skipped == [(4, 8)]
    assert saved == [(4, True), (8, True)]


def test_garbage_is_collected_after_the_first_step_and_at_saves_and_measurements_alone(tmp_path: Path) -> None:
    collected: list[int] = []

    def note(phase: str, info: dict[str, int]) -> None:
        if phase == "start" and not gc.isenabled():  # before training and after it they come by themselves
            collected.append(rig.trainer.made)

    def measure(step: int) -> dict[str, float]:
        assert not gc.isenabled()
        return {}

    rig = Rig(tmp_path, steps=8, checkpoint_steps=3, measurements=(Measurement(5, measure),))
    gc.collect()
    gc.callbacks.append(note)
    try:
        rig.run()
    finally:
        gc.callbacks.remove(note)
    assert collected == [1, 3, 5, 6, 8] and gc.isenabled()


def test_skipped_ranges_move_the_data_on() -> None:
    state = TrainerState(skipped=[(7, 9), (2, 5)])
    assert [state.data_step(step) for step in range(6)] == [0, 1, 5, 6, 9, 10]


def train_together(folder: Path, steps: int, stop_at: int | None, launch: str) -> None:
    torch.set_num_threads(1)
    with join(torch.device("cpu")) as world:
        # Only the last rank is asked to stop.
        stop = stop_at if world.rank == world.size - 1 else None
        rig = Rig(folder, world=world, steps=steps, stop_at=stop, launch=launch)
        if stop_at is None:
            rig.run()
        else:
            rig.run_until_stopped()


@pytest.mark.parametrize("size", [2, 4])
def test_one_and_several_processes_have_equal_losses(tmp_path: Path, run_ranks: Callable[..., None], size: int) -> None:
    run_ranks(train_together, size, tmp_path / "several", 50, None, "first")
    Rig(tmp_path / "one", steps=50).run()
    one, several = losses(tmp_path / "one"), losses(tmp_path / "several")
    assert len(one) == len(several) == 50
    assert all(close(left, right) for left, right in zip(one, several, strict=True))


def test_what_two_saved_one_resumes(tmp_path: Path, run_ranks: Callable[..., None]) -> None:
    run_ranks(train_together, 2, tmp_path / "parts", 12, 5, "first")
    second = Rig(tmp_path / "parts", launch="second")
    state = second.run()
    assert second.loader.asked[0] == 5
    whole = Rig(tmp_path / "whole")
    assert close(whole.run().loss, state.loss)


def restore_apart(folder: Path) -> None:
    """Resume with a store for each rank; the first alone has a checkpoint."""
    torch.set_num_threads(1)
    with join(torch.device("cpu")) as world:
        rig = Rig(folder / str(world.rank), world=world, launch="second")
        with pytest.raises(StorageError, match="1 of 2 ranks do not see the checkpoint step-0000005-first"):
            rig.run()


def test_nodes_with_a_store_each_are_told_so(tmp_path: Path, run_ranks: Callable[..., None]) -> None:
    Rig(tmp_path / "0", stop_at=5).run_until_stopped()
    run_ranks(restore_apart, 2, tmp_path)


@pytest.mark.parametrize("fails", ["model", "optimizer", "store"])
def test_a_checkpoint_that_cannot_be_written_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    real = checkpoint.save_file

    def write(tensors: Any, path: Path) -> None:
        if fails in path.name:
            path.write_bytes(b"half of it")
            raise OSError(errno.ENOSPC, "No space left on device")
        real(tensors, path)

    def store_folder(*_: Any) -> None:
        raise StorageError("it does not answer")

    monkeypatch.setattr(checkpoint, "save_file", write)
    if fails == "store":
        monkeypatch.setattr(checkpoints, "store_folder", store_folder)
    with pytest.raises(NanochatError):
        Rig(tmp_path, checkpoint_steps=2).run()
    assert not [path for path in tmp_path.rglob("step-*") if any(path.rglob("*.safetensors"))]


def test_what_an_evaluation_measures_anyway_is_not_measured_after_the_last_step() -> None:
    usual, early = Measurement(4, lambda step: {}), Measurement(4, lambda step: {}, after_last=False)
    assert [step for step in range(1, 11) if usual.due(step, 10)] == [4, 8, 10]
    assert [step for step in range(1, 11) if early.due(step, 10)] == [4, 8]
    assert not early.due(8, 8)
