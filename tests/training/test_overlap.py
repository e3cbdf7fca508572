"""Several processes: gradients are reduced while backward runs, weights gathered while the next forward begins."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from nanochat.model.transformer import Transformer
from nanochat.optim import LAST, sharded
from nanochat.runtime.distributed import World, join
from nanochat.spec.errors import PeerLost
from nanochat.training.forward import Forward
from tests.training.rig import CONFIG, MODERN, Rig, same

IDS, TARGETS = torch.arange(32).view(2, 16), torch.arange(1, 33).view(2, 16)


@dataclass
class FakeOptimizer:
    """Remembers what was waited for."""

    world: World = field(default_factory=lambda: World(size=2))
    waited: list[int] = field(default_factory=list)

    def wait(self, layer: int = LAST) -> None:
        self.waited.append(layer)


def forward(model: Transformer, *, compiled: bool) -> tuple[Forward, FakeOptimizer]:
    optimizer: Any = FakeOptimizer()
    return Forward(model, compiled=compiled, optimizer=optimizer), optimizer


def test_each_layer_waits_for_its_own_weights() -> None:
    model = Transformer(CONFIG)
    model.init_weights(3)
    made, optimizer = forward(model, compiled=False)
    assert made(IDS, TARGETS) == model(IDS, TARGETS, reduction="sum")
    assert optimizer.waited == [0, 1, 2, LAST]


def test_the_names_of_a_model_say_which_layer_reads_first() -> None:
    names = dict(Transformer(MODERN).named_parameters())
    found = {layer: [name for name in names if sharded.first_layer(name) == layer] for layer in (0, 1, 2, LAST)}
    assert sum(map(len, found.values())) == len(names)
    assert found[LAST] == ["head.weight"] and "embedding" in found[0]
    assert all(name.startswith("stream.") for name in found[0] if name != "embedding")
    assert all(name.startswith(f"blocks.{layer - 1}.") for layer in (1, 2) for name in found[layer])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
def test_layers_are_compiled_once_for_all_and_equal_the_plain_ones() -> None:
    model = Transformer(CONFIG)
    model.init_weights(3)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    results = []
    for compiled in (True, False):
        made, _ = forward(model, compiled=compiled)
        model.zero_grad()
        loss = made(IDS, TARGETS)
        loss.backward()
        results.append([loss.detach(), *[parameter.grad for parameter in model.parameters()]])
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2  # a layer, and what works on each logit


def train_again(folder: Path) -> None:
    """The same training twice in one piece and once in two, with as many transfers as there can be."""
    sharded.BUCKET = 1
    torch.set_num_threads(1)
    with join(torch.device("cpu")) as world:

        def rig(name: str, **changes: Any) -> Rig:
            return Rig(folder / name, world=world, model=Transformer(MODERN), device_rows=2, **changes)

        first, again, resumed = rig("first"), rig("again"), rig("parts", launch="second")
        first.run()
        again.run()
        rig("parts", stop_at=7).run_until_stopped()
        resumed.run()
        assert same(first.weights, again.weights)
        assert same(first.weights, resumed.weights)


def test_every_run_of_two_processes_ends_with_the_same_bits(tmp_path: Path, run_ranks: Callable[..., None]) -> None:
    run_ranks(train_again, 2, tmp_path)


def lose_a_peer_in_backward(folder: Path) -> None:
    """Rank 1 goes without a word when its first layer's gradient comes, in the third step."""
    sharded.BUCKET = 1
    with join(torch.device("cpu")) as world:
        rig = Rig(folder, world=world)

        def go(_: torch.Tensor) -> None:
            if rig.trainer.optimizer.steps == 2:
                os._exit(0)

        if not world.first:
            rig.model.get_parameter("blocks.0.mlp.contract.weight").register_post_accumulate_grad_hook(go)
            rig.run()
        with pytest.raises(PeerLost, match="communication with the other processes failed: "):
            rig.run()
        assert rig.trainer.optimizer.steps == 2
        (folder / "told").touch()
        os._exit(0)


def test_a_peer_that_is_lost_in_backward_is_told(tmp_path: Path, run_ranks: Callable[..., None]) -> None:
    run_ranks(lose_a_peer_in_backward, 2, tmp_path)
    assert (tmp_path / "told").exists()
