from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from nanochat.model.loss import SOFTCAP
from nanochat.model.pointwise import rotate
from nanochat.model.sizes import ModelConfig
from nanochat.model.transformer import Transformer
from nanochat.model.value_embedding import ValueEmbedding
from nanochat.spec.errors import UserError
from tests.model.recipe_models import MODERN, RECIPES

Make = Callable[[ModelConfig], Transformer]


def tokens(config: ModelConfig, *shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(config.vocab_size, shape, generator=torch.Generator().manual_seed(seed))


def plain_logits(model: Transformer, ids: torch.Tensor) -> torch.Tensor:
    """The reference's forward pass written out for one row in fp64: ids (T,) -> (T, V)."""
    config = model.config
    w = {name: weight.detach().double() for name, weight in model.named_parameters()}
    hd, t = config.head_dim, len(ids)

    def norm(x: torch.Tensor) -> torch.Tensor:
        return x / (x.square().mean(-1, keepdim=True) + torch.finfo(torch.float32).eps).sqrt()

    def turn(x: torch.Tensor) -> torch.Tensor:  # (T, hd), by minus the angle, first half with second half
        i = torch.arange(hd // 2).double()
        angle = -torch.arange(t).double()[:, None] * config.rope_base ** (-2 * i / hd)
        z = torch.complex(x[:, : hd // 2], x[:, hd // 2 :]) * torch.polar(torch.ones_like(angle), angle)
        return torch.cat((z.real, z.imag), dim=-1)

    x = norm(w["embedding"][ids])
    if config.smear:
        gate = (x[:, :24] @ w["stream.smear_gate"].T).sigmoid()
        x = x + w["stream.smear_scale"] * gate * torch.cat((torch.zeros_like(x[:1]), x[:-1]))
    first = middle = x
    for layer in range(config.depth):
        block = f"blocks.{layer}."
        if config.residual_scalars:
            x = w["stream.stream_scale"][layer] * x + w["stream.input_scale"][layer] * first
        n = norm(x)
        short = layer < config.depth - 1 and config.window_pattern[layer % len(config.window_pattern)] == "S"
        heads = []
        for head in range(config.heads):
            shared = head // (config.heads // config.kv_heads)
            rows = slice(shared * hd, (shared + 1) * hd)
            q = n @ w[block + "attention.query.weight"][head * hd : (head + 1) * hd].T
            k = n @ w[block + "attention.key.weight"][rows].T
            v = n @ w[block + "attention.value.weight"][rows].T
            if config.value_embeddings and layer % 2 == (config.depth - 1) % 2:
                gate = 3 * (n[:, :12] @ w[block + "attention.value_embedding.gate"][shared]).sigmoid()
                v = v + gate[:, None] * w[block + "attention.value_embedding.table"][ids][:, rows]
            scores = norm(turn(q)) @ norm(turn(k)).T / math.sqrt(hd)
            hidden = torch.triu(torch.ones(t, t, dtype=torch.bool), diagonal=1)
            if short:
                hidden |= torch.tril(
                    torch.ones(t, t, dtype=torch.bool), diagonal=-math.ceil(config.sequence_length / 4)
                )
            heads.append(scores.masked_fill(hidden, -math.inf).softmax(-1) @ v)
        x = x + torch.cat(heads, dim=-1) @ w[block + "attention.project.weight"].T
        up = norm(x) @ w[block + "mlp.expand.weight"].T
        x = x + up.clamp(min=0).square() @ w[block + "mlp.contract.weight"].T
        middle = x if layer == config.depth // 2 else middle
    if config.backout:
        x = x - w["stream.backout_scale"] * middle
    return SOFTCAP * torch.tanh(norm(x) @ w["head.weight"].T / SOFTCAP)


@pytest.mark.parametrize("recipe", sorted(RECIPES))
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_forward_is_the_architecture(config: ModelConfig, make_model: Make, kv_heads: int, recipe: str) -> None:
    model = make_model(ModelConfig(**(config.to_dict() | {"kv_heads": kv_heads, "depth": 3} | RECIPES[recipe])))
    ids = tokens(config, 2, 16)
    expected = torch.stack([plain_logits(model, row) for row in ids])
    torch.testing.assert_close(model(ids).double(), expected, rtol=1e-4, atol=1e-4)


def test_rotation_depends_on_distance_only(config: ModelConfig, make_model: Make) -> None:
    table = make_model(config).rotary[:, None, :, None]  # (2, 1, positions, 1, hd/2)
    q, k = torch.randn(2, 1, 1, 1, config.head_dim, generator=torch.Generator().manual_seed(0))

    def score(i: int, j: int) -> torch.Tensor:
        return (rotate(q, table[:, :, i : i + 1]) * rotate(k, table[:, :, j : j + 1])).sum()

    torch.testing.assert_close(score(9, 4), score(105, 100), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("recipe", ["classic", "modern"])
def test_a_fresh_model_knows_nothing(config: ModelConfig, recipe: str) -> None:
    model = Transformer(replace(config, **RECIPES[recipe]))
    with torch.no_grad():
        for weight in model.parameters():
            weight.fill_(math.nan)
    model.init_weights(42)
    assert all(weight.isfinite().all() for weight in model.parameters())
    ids = tokens(config, 2, 16)
    assert model(ids).count_nonzero() == 0
    assert model(ids, ids).item() == pytest.approx(math.log(config.vocab_size))
    for block in model.blocks:
        assert block.attention.project.weight.count_nonzero() == 0
        assert block.mlp.contract.weight.count_nonzero() == 0


def test_initial_spread_and_seed() -> None:
    config = ModelConfig(depth=1, width=128, heads=2, kv_heads=1, sequence_length=8, vocab_size=512)
    model, same, other = Transformer(config), Transformer(config), Transformer(config)
    model.init_weights(1)
    same.init_weights(1)
    other.init_weights(2)
    block = model.blocks[0]
    assert model.embedding.std().item() == pytest.approx(1.0, rel=0.02)
    assert block.mlp.expand.weight.std().item() == pytest.approx(128**-0.5, rel=0.02)
    assert block.attention.key.weight.std().item() == pytest.approx(128**-0.5 * 0.5**0.5, rel=0.03)
    assert torch.equal(model.embedding, same.embedding)
    assert not torch.equal(model.embedding, other.embedding)


def test_modern_parts_begin_as_they_should() -> None:
    shape = {"depth": 4, "width": 64, "heads": 2, "kv_heads": 1, "sequence_length": 8, "vocab_size": 512}
    model = Transformer(ModelConfig(**shape, **MODERN))
    model.init_weights(1)
    torch.testing.assert_close(model.stream.stream_scale, torch.tensor([1.15, 1.15 - 0.1 / 3, 1.15 - 0.2 / 3, 1.05]))
    torch.testing.assert_close(model.stream.input_scale, torch.tensor([0.2, 0.15, 0.1, 0.05]))
    assert (model.stream.smear_scale.item(), model.stream.backout_scale.item()) == (0, pytest.approx(0.2))
    tables = [module for module in model.modules() if isinstance(module, ValueEmbedding)]
    assert len(tables) == 2 and isinstance(model.blocks[3].attention.value_embedding, ValueEmbedding)
    assert tables[1].table.std().item() == pytest.approx(64**-0.5, rel=0.02)
    assert tables[1].gate.min() >= 0 and tables[1].gate.max() <= 0.02


def test_reductions_agree_and_ignore_minus_one(config: ModelConfig, make_model: Make) -> None:
    model = make_model(config)
    ids, targets = tokens(config, 2, 16), tokens(config, 2, 16, seed=1)
    targets[0, :5] = -1
    each = model(ids, targets, reduction="none")
    assert each.shape == (2, 16)
    assert each[0, :5].count_nonzero() == 0
    torch.testing.assert_close(model(ids, targets, reduction="sum"), each.sum())
    torch.testing.assert_close(model(ids, targets), each.sum() / 27)
    logits = model.logits(model.hidden(ids))
    expected = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1)
    torch.testing.assert_close(model(ids, targets), expected)
    factors = torch.linspace(-2, 2, 32).view(2, 16)
    torch.testing.assert_close(model(ids, targets, factors, reduction="sum"), (factors * each).sum())


def test_logits_are_capped(config: ModelConfig, make_model: Make) -> None:
    model = make_model(config)
    with torch.no_grad():
        model.head.weight.mul_(1e4)
    logits = model(tokens(config, 1, 16))
    assert logits.abs().max() <= SOFTCAP
    assert logits.dtype == torch.float32


@pytest.mark.parametrize("recipe", ["classic", "modern"])
def test_bf16_follows_fp32_and_keeps_fp32_gradients(config: ModelConfig, make_model: Make, recipe: str) -> None:
    model = make_model(replace(config, **RECIPES[recipe]))
    ids = tokens(config, 2, 16)
    exact = model(ids)
    model.compute_dtype = torch.bfloat16
    rounded = model(ids)
    assert model.hidden(ids).dtype == torch.bfloat16
    assert rounded.dtype == torch.float32
    assert (exact - rounded).abs().max() < {"classic": 0.1, "modern": 0.3}[recipe]
    model(ids, ids).backward()
    for weight in model.parameters():
        assert weight.grad is not None and weight.grad.dtype == torch.float32


@pytest.mark.parametrize("recipe", ["classic", "modern"])
def test_cast_weights_changes_no_number(config: ModelConfig, make_model: Make, recipe: str) -> None:
    model = make_model(replace(config, **RECIPES[recipe]))
    model.compute_dtype = torch.bfloat16
    ids = tokens(config, 2, 16)
    before = model(ids)
    model.cast_weights()
    assert torch.equal(model(ids), before)
    assert model.head.weight.dtype == torch.bfloat16


def test_contexts_beyond_the_trained_one(config: ModelConfig, make_model: Make) -> None:
    model = make_model(config)
    assert model(tokens(config, 1, 160)).isfinite().all()
    with pytest.raises(UserError, match="161 tokens is longer than the 160"):
        model(tokens(config, 1, 161))
