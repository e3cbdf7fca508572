from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from nanochat.inference import Completion, Engine
from nanochat.model.loss import IGNORED
from nanochat.model.snapshot import Snapshot
from nanochat.model.transformer import Transformer
from nanochat.runtime.distributed import World, join
from nanochat.runtime.reading import Reading
from nanochat.spec.errors import Diverged
from nanochat.tokenizer import Tokenizer
from nanochat.training import trainer
from nanochat.training.guards import SpikeGuard
from nanochat.training.objective import LocalBatch, MicroBatch, micro_loss
from nanochat.training.reinforce import (
    Prompt,
    Reinforce,
    RolloutSettings,
    group_advantages,
    micro_batch,
    micro_batches,
    prompt_batch,
)
from tests.training.rig import CONFIG, Rig, close, same

LETTERS = Tokenizer([bytes([value]) for value in range(256)])
SHAPE = {**CONFIG.to_dict(), "vocab_size": LETTERS.vocab_size}


def reward(text: str) -> float:
    """How much of the text is in the first half of the bytes: random answers differ in it."""
    return round(sum(ord(letter) < 64 for letter in text) / max(1, len(text)), 3)


def prompts(count: int) -> list[Prompt]:
    return [Prompt((LETTERS.bos, 65 + number, 66), reward) for number in range(count)]


def settings(**changes: object) -> RolloutSettings:
    values = {
        "prompts_per_step": 3,
        "samples": 4,
        "max_tokens": 6,
        "temperature": 1.0,
        "top_k": None,
        "seed": 5,
        "device_rows": 2,
    }
    return RolloutSettings(**(values | changes))  # type: ignore[arg-type]


def completion(ids: list[int], mask: list[int], reason: str = "stop") -> Completion:
    return Completion(ids=ids, mask=mask, text="", parts=(), finish_reason=reason, logprobs=None)  # type: ignore[arg-type]


@pytest.fixture
def model() -> Transformer:
    return random_model()


def random_model() -> Transformer:
    """With a head that is not zero, so that samples and gradients are of all tokens."""
    model = Transformer(type(CONFIG)(**SHAPE))
    model.init_weights(3)
    with torch.no_grad():
        model.head.weight.normal_(0.0, 0.3, generator=torch.Generator().manual_seed(4))
    return model


def objective(
    model: Transformer,
    *,
    renew: Callable[[], None] = lambda: None,
    world: World | None = None,
    count: int = 5,
    kind: type[Reinforce] = Reinforce,
    **changes: object,
) -> Reinforce:
    return kind(
        prompts(count),
        engine=Engine(model, LETTERS, slots=4),
        world=world or World(),
        settings=settings(**changes),
        stop=lambda: False,
        alive=lambda: None,
        renew=renew,
    )


def test_samples_are_those_of_the_weights_as_they_are_now(model: Transformer) -> None:
    snapshot = Snapshot(model)
    rl = objective(snapshot.model, renew=snapshot.renew)
    names = ["a", "b", "c"]
    before = [item.ids for item in rl.sample(rl.prompts[:3], names)]
    with torch.no_grad():
        model.embedding.copy_(model.embedding.flip(0))
    expected = [item.ids for item in objective(Snapshot(model).model).sample(rl.prompts[:3], names)]
    assert [item.ids for item in rl.sample(rl.prompts[:3], names)] == expected != before


def test_advantages_are_rewards_less_the_mean_of_their_group() -> None:
    found = group_advantages(np.array([[1.0, 0.0, 0.0, 0.0], [0.1, 0.1, 0.1, 0.1]]))
    assert found.tolist() == [[0.75, -0.25, -0.25, -0.25], [0.0, 0.0, 0.0, 0.0]]


def test_sampled_tokens_and_the_end_are_trained_and_forced_ones_are_not() -> None:
    end = LETTERS.special["assistant_end"]
    batch = micro_batch([([1, 2, 3], completion([4, 5, 6, end], [1, 0, 1, 1]), 0.5), ([1], completion([9], [1]), -1.0)])
    assert batch.inputs.tolist() == [[1, 2, 3, 4, 5, 6], [1, 0, 0, 0, 0, 0]]
    assert batch.targets.tolist() == [[-1, -1, 4, -1, 6, end], [9, -1, -1, -1, -1, -1]]
    assert batch.factors is not None
    assert batch.factors[0].tolist() == [0, 0, 0.5, 0.5, 0.5, 0.5] and batch.factors[1, 0] == -1.0


def test_samples_without_advantage_are_left_out() -> None:
    one = completion([4], [1])
    batches = micro_batches([([1], one, 0.0), ([2], one, 1.0), ([3], one, -1.0), ([4], one, 0.5)], rows=2)
    assert [batch.inputs[:, 0].tolist() for batch in batches] == [[2, 3], [4]]


def test_the_loss_is_reinforce_of_the_whole_step(model: Transformer) -> None:
    """Against the formula, sample by sample: the sum of advantage * -log p over the number of sampled tokens."""
    rl = objective(model)
    local = rl.local_batch(2)
    got = sum(micro_loss(model, batch).item() for batch in local.batches) / local.weight

    numbers = rl.numbers(2)
    pairs = [(number, sample) for number in numbers for sample in range(4)]
    drawn = rl.sample([rl.prompts[number] for number, _ in pairs], [f"2/{number}/{sample}" for number, sample in pairs])
    advantages = group_advantages(np.array([reward(item.text) for item in drawn]).reshape(3, 4)).ravel()
    total, tokens = 0.0, 0
    for (number, _), item, advantage in zip(pairs, drawn, advantages, strict=True):
        ids = [*rl.prompts[number].ids, *item.ids]
        with torch.no_grad():
            logs = torch.log_softmax(model(torch.tensor([ids[:-1]])), dim=-1)[0]
        start = len(rl.prompts[number].ids)
        total -= advantage * sum(float(logs[place - 1, ids[place]]) for place in range(start, len(ids)))
        tokens += len(item.ids)
    assert got == pytest.approx(total / tokens, rel=1e-4, abs=1e-6)
    assert local.weight == tokens
    assert dict(zip(rl.counts, local.counts, strict=True))["samples"] == 12


def test_samples_of_a_prompt_begin_differently(model: Transformer) -> None:
    rl = objective(model, samples=16, prompts_per_step=1)
    names = [f"0/0/{sample}" for sample in range(16)]
    assert len({item.ids[0] for item in rl.sample([rl.prompts[0]] * 16, names)}) > 4


def test_a_step_is_drawn_again_as_it_was(model: Transformer) -> None:
    first, second = objective(model).local_batch(7), objective(model).local_batch(7)
    assert len(first.batches) == len(second.batches) > 0
    for left, right in zip(first.batches, second.batches, strict=True):
        assert torch.equal(left.targets, right.targets) and torch.equal(left.factors, right.factors)  # type: ignore[arg-type]


def test_every_prompt_is_used_once_an_epoch(model: Transformer) -> None:
    rl = objective(model, count=7, prompts_per_step=3)
    stream = [number for step in range(14) for number in rl.numbers(step)]
    assert all(sorted(stream[start : start + 7]) == list(range(7)) for start in range(0, 42, 7))
    assert stream[:7] != stream[7:14]


def test_a_step_without_any_advantage_changes_nothing(model: Transformer) -> None:
    rl = objective(model)
    rl.prompts = [Prompt(prompt.ids, lambda text: 0.3) for prompt in rl.prompts]
    local = rl.local_batch(0)
    assert local.weight == 0 and not local.batches
    assert rl.metrics(dict(zip(rl.counts, local.counts, strict=True)))["train/groups_without_advantage"] == 1.0


def test_a_stop_ends_the_sampling_early(model: Transformer) -> None:
    asked = 0

    def stop() -> bool:
        nonlocal asked
        asked += 1
        return asked > 2

    rl = objective(model, max_tokens=10)
    rl.stop = stop
    local = rl.local_batch(0)
    assert asked <= 4 and isinstance(local, LocalBatch)


def restart(model: Transformer) -> None:
    model.load_state_dict(random_model().state_dict())


def rl_rig(folder: Path, *, launch: str = "first", stop_at: int | None = None) -> Rig:
    return Rig(
        folder,
        steps=4,
        launch=launch,
        stop_at=stop_at,
        model=random_model(),
        start=restart,
        objective=lambda rig: objective(rig.model),
        guard=SpikeGuard(margin=math.inf),
    )


def test_nothing_is_drawn_by_weights_of_a_step_that_was_not_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []

    class Told(Reading):
        def values(self) -> list[float]:
            told.append("read")
            return super().values()

    class Drawn(Reinforce):
        def local_batch(self, step: int) -> LocalBatch:
            told.append(f"drawn {step}")
            return super().local_batch(step)

    monkeypatch.setattr(trainer, "Reading", Told)
    rig = rl_rig(tmp_path)
    rig.objective = lambda rig: objective(rig.model, kind=Drawn)
    rig.run()
    assert told == [each for step in range(4) for each in (f"drawn {step}", "read")]


def test_stopped_and_resumed_is_equal_bit_for_bit(tmp_path: Path) -> None:
    whole = rl_rig(tmp_path / "whole")
    state = whole.run()
    rl_rig(tmp_path / "parts", stop_at=2).run_until_stopped()
    second = rl_rig(tmp_path / "parts", launch="second")
    assert second.run().counts == state.counts
    assert same(whole.weights, second.weights)
    assert not same(whole.weights, random_model().state_dict())


def test_what_can_no_longer_predict_its_prompts_has_diverged(tmp_path: Path) -> None:
    rig = rl_rig(tmp_path)
    rig.guard = SpikeGuard(margin=math.inf, guessing=math.log(LETTERS.vocab_size))
    rig.rate = 100.0
    with pytest.raises(Diverged, match="guessing every token costs"):
        rig.run()


def test_prompts_are_text_to_predict() -> None:
    batch = objective(random_model()).text(0)
    assert batch is not None and batch.factors is None
    for inputs, targets in zip(batch.inputs.tolist(), batch.targets.tolist(), strict=True):
        assert inputs == [LETTERS.bos, targets[0]] and targets[1] == 66
    assert len({tuple(row) for row in batch.inputs.tolist()}) == len(batch.inputs) == 3
    for size in (2, 4):  # of four ranks one has no prompt
        parts = [objective(random_model(), world=World(rank=rank, size=size)).text(0) for rank in range(size)]
        assert [part is None for part in parts].count(True) == max(0, size - 3)
        assert torch.equal(torch.cat([part.inputs for part in parts if part is not None]), batch.inputs)
    assert prompt_batch([[7], [7, 8, 9]]).targets.tolist() == [[IGNORED, IGNORED], [8, 9]]


def share_of_one_rank(folder: Path) -> None:
    torch.set_num_threads(1)
    with join(torch.device("cpu")) as world:
        local = objective(random_model(), world=world).local_batch(1)
        found = {"weight": local.weight, **factors_by_targets(local.batches)}
        (folder / f"{world.rank}.json").write_text(json.dumps(found))


def factors_by_targets(batches: Sequence[MicroBatch]) -> dict[str, float]:
    found: dict[str, float] = {}
    for batch in batches:
        assert batch.factors is not None
        for targets, factors in zip(batch.targets, batch.factors, strict=True):
            key = ",".join(str(int(target)) for target in targets if target != IGNORED)
            found[key] = float(factors.abs().max())
    return found


def test_two_ranks_draw_what_one_draws(tmp_path: Path, run_ranks: Callable[..., None]) -> None:
    run_ranks(share_of_one_rank, 2, tmp_path)
    local = objective(random_model()).local_batch(1)
    parts = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert sum(part.pop("weight") for part in parts) == local.weight
    whole = factors_by_targets(local.batches)
    assert {**parts[0], **parts[1]}.keys() == whole.keys()
    assert all(close({**parts[0], **parts[1]}[key], whole[key]) for key in whole)
