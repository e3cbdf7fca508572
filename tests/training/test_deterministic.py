"""Training on a CPU gives the same bits each time, compiled and on several threads too."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nanochat.model.sizes import ModelConfig
from nanochat.model.transformer import Transformer
from nanochat.runtime.device import choose_device
from nanochat.training.forward import Forward


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
def test_compiled_gradients_are_equal_each_time() -> None:
    device = choose_device("bf16")
    model = Transformer(ModelConfig.from_depth(2, vocab_size=64, width=64, head_dim=32, sequence_length=64))
    model.init_weights(1)
    model.compute_dtype = device.compute_dtype
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)  # the head and projections begin at zero, which hides gradients
    forward = Forward(model, compiled=True)
    ids = torch.randint(0, 64, (16, 65))  # a few ids, often: their gradients are sums over many positions

    def gradients() -> list[Tensor]:
        model.zero_grad()
        forward(ids[:, :-1], ids[:, 1:], reduction="sum").backward()
        return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]

    threads = torch.get_num_threads()
    torch.set_num_threads(max(2, threads))
    try:
        first = gradients()
        for _ in range(20):
            assert all(torch.equal(a, b) for a, b in zip(first, gradients(), strict=True))
    finally:
        torch.set_num_threads(threads)
