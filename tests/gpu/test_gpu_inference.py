"""The engine on a GPU against the plain forward pass."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch

from nanochat.inference import Engine, Sampling
from nanochat.model.transformer import Transformer
from nanochat.runtime.device import Device
from nanochat.tokenizer import Tokenizer
from tests.inference.test_engine import ids

pytestmark = pytest.mark.gpu

# Of logits of up to 15, by the products of TF32 and bf16.
ROUNDING = {torch.float32: 0.05, torch.bfloat16: 0.5}


def on(device: Device, model: Transformer) -> Transformer:
    moved = deepcopy(model).to(device.device)
    moved.compute_dtype = device.compute_dtype
    return moved


@torch.no_grad()
def test_each_token_is_the_likeliest_of_a_plain_forward_pass(
    model: Transformer, tokenizer: Tokenizer, device: Device
) -> None:
    """Or as likely within rounding, which few are."""
    model = on(device, model)
    prompts = [ids(length, length) for length in (1, 7, 64, 100, 256, 257, 400, 600)]
    completions = Engine(model, tokenizer, slots=3).generate(prompts, Sampling(max_tokens=24))
    chosen, ties = 0, 0
    for prompt, completion in zip(prompts, completions, strict=True):
        logits = model(torch.tensor([prompt + completion.ids], device=model.device))[0, len(prompt) - 1 : -1]  # (n, V)
        for row, token, own in zip(logits, completion.ids, completion.mask, strict=True):
            if own:
                chosen += 1
                ties += int(row.argmax()) != token
                assert float(row.max() - row[token]) < ROUNDING[device.compute_dtype]
    assert chosen > 100 and ties <= chosen // 10


def test_samples_repeat_and_follow_their_seed(model: Transformer, tokenizer: Tokenizer, device: Device) -> None:
    model = on(device, model)
    sampling = Sampling(max_tokens=12, temperature=1.0, top_k=20, top_p=0.9, seed=3, logprobs=2)
    for slots in (1, 4):
        first, second = (
            Engine(model, tokenizer, slots=slots).generate([ids(8, 300)] * 4, sampling.split(4)) for _ in range(2)
        )
        assert [sample.ids for sample in first] == [sample.ids for sample in second]
        assert len({tuple(sample.ids) for sample in first}) > 1
