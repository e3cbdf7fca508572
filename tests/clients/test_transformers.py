"""An exported model in transformers itself: logits, greedy text, tokenizer, chat template, and the way back.

`make test-clients` installs transformers. The model is a small one that learned a few conversations, so that its
answers are no noise.
"""

from __future__ import annotations

import json
import random
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet
import pytest
import torch
from exchange_texts import ADVERSARIAL, CHATS, REFUSED
from safetensors.torch import load_file

from nanochat.exchange.export import export
from nanochat.exchange.read import read
from nanochat.inference import Engine, Sampling
from nanochat.model.artifact import WEIGHTS
from nanochat.model.export import load_model, save_model
from nanochat.model.sizes import ModelConfig
from nanochat.model.transformer import Transformer
from nanochat.tokenizer import Tokenizer
from nanochat.tokenizer.chat import render_conversation, render_prompt
from tasks.world.text import documents

HERE = Path(__file__).parent / "transformers"
pytestmark = pytest.mark.clients
NEW_TOKENS = 40


@dataclass(frozen=True)
class Exchanged:
    """A model of this project, what transformers said of its export, and where that saved it again."""

    folder: Path
    model: Transformer
    tokenizer: Tokenizer
    prompts: Sequence[Sequence[int]]
    texts: Sequence[str]
    answers: dict[str, Any]
    logits: dict[str, torch.Tensor]
    saved: Path


def learn(model: Transformer, rows: Sequence[Sequence[int]], steps: int) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(steps):
        ids = torch.tensor([rows[step % len(rows)]])
        optimizer.zero_grad()
        model(ids[:, :-1], ids[:, 1:]).backward()
        optimizer.step()


@pytest.fixture(scope="module")
def exchanged(tmp_path_factory: pytest.TempPathFactory) -> Exchanged:
    folder, results = tmp_path_factory.mktemp("artifact"), tmp_path_factory.mktemp("results")
    texts = list(documents(0, 2000))
    tokenizer = Tokenizer.train([*texts, *ADVERSARIAL], vocab_size=800)
    config = ModelConfig(depth=3, width=96, heads=4, kv_heads=2, sequence_length=128, vocab_size=800)
    model = Transformer(config)
    model.init_weights(1)
    conversations = [render_conversation(tokenizer, chat).ids for chat in CHATS if chat[-1]["role"] == "assistant"]
    learn(model, conversations, steps=120)
    save_model(folder, model, {"stage": "sft", "step": 120})
    tokenizer.save(folder)
    target = results / "exported"
    export(folder, target)
    prompts = [render_prompt(tokenizer, chat[:-1] if chat[-1]["role"] == "assistant" else chat) for chat in CHATS]
    questions = {
        "texts": [*texts, *ADVERSARIAL],
        "chats": [*CHATS, *REFUSED],
        "prompts": prompts,
        "new_tokens": NEW_TOKENS,
        "special": list(tokenizer.special),
    }
    ran = subprocess.run(
        [str(HERE / ".venv/bin/python"), str(HERE / "peer.py"), str(target), str(results)],
        input=json.dumps(questions),
        capture_output=True,
        text=True,
        timeout=280,
        env={"PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "2", "HOME": str(results)},
    )
    assert ran.returncode == 0, ran.stderr
    answers = json.loads((results / "answers.json").read_text())
    print("\n" + ", ".join(f"{name} {version}" for name, version in answers["versions"].items()))
    loaded, _ = load_model(folder, device="cpu", compute_dtype=torch.float32)
    return Exchanged(
        folder,
        loaded,
        tokenizer,
        prompts,
        [*texts, *ADVERSARIAL],
        answers,
        load_file(results / "logits.safetensors"),
        results / "saved",
    )


def test_logits_are_equal(exchanged: Exchanged) -> None:
    assert exchanged.answers["class"] == "NanoChatForCausalLM"
    for i, ids in enumerate(exchanged.prompts):
        with torch.no_grad():
            own = exchanged.model(torch.tensor([ids]))[0]
        assert own.abs().max() > 1
        torch.testing.assert_close(exchanged.logits[str(i)], own, rtol=0, atol=1e-5)


def test_greedy_text_is_equal(exchanged: Exchanged) -> None:
    """Up to where the engine's own tool writes on."""
    engine = Engine(exchanged.model, exchanged.tokenizer, slots=1)
    replies = engine.generate(exchanged.prompts, Sampling(max_tokens=NEW_TOKENS))
    ends = [exchanged.tokenizer.special["assistant_end"], exchanged.tokenizer.bos]
    assert exchanged.answers["ends"] == ends
    said = set()
    for reply, theirs in zip(replies, exchanged.answers["greedy"], strict=True):
        sampled = reply.mask.index(0) if 0 in reply.mask else len(reply.ids)
        assert reply.ids[:sampled] == theirs[:sampled] and sampled > 0
        said.add(reply.text)
    assert "I am nanochat, a small model." in said  # it has learned, so that this is no noise
    assert exchanged.answers["said"][0] == "I am nanochat, a small model."


def test_ids_of_text_are_equal(exchanged: Exchanged) -> None:
    own = [exchanged.tokenizer.encode(text) for text in exchanged.texts]
    assert len(own) > 2000
    for text, expected, plain, theirs in zip(
        exchanged.texts, own, exchanged.answers["plain"], exchanged.answers["texts"], strict=True
    ):
        assert expected == plain == theirs, repr(text[:100])


def test_special_tokens_are_equal(exchanged: Exchanged) -> None:
    assert exchanged.answers["special"] == exchanged.tokenizer.special
    assert exchanged.answers["decoded"] == [exchanged.tokenizer.decode(ids) for ids in exchanged.prompts]


def test_chats_are_rendered_to_equal_ids(exchanged: Exchanged) -> None:
    for chat, theirs in zip(CHATS, exchanged.answers["chats"], strict=False):
        assert render_conversation(exchanged.tokenizer, chat).ids == theirs
    for chat, theirs in zip(CHATS, exchanged.answers["prompted"], strict=False):
        if chat[-1]["role"] == "user":
            assert render_prompt(exchanged.tokenizer, chat) == theirs
    refused = exchanged.answers["chats"][len(CHATS) :]
    assert len(refused) == len(REFUSED) and all(isinstance(answer, str) for answer in refused)


@pytest.mark.parametrize("where", ["exported", "saved"])
def test_the_way_back(exchanged: Exchanged, where: str, tmp_path: Path) -> None:
    """Of the export, and of what transformers made of it."""
    found = read(exchanged.saved.parent / where)
    found.write(tmp_path, found.weights())
    before, after = load_file(exchanged.folder / WEIGHTS), load_file(tmp_path / WEIGHTS)
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert Tokenizer.load(tmp_path).fingerprint == exchanged.tokenizer.fingerprint
    assert load_model(tmp_path, device="cpu")[0].config == exchanged.model.config


def test_ids_of_the_mirrors_text_are_equal(mirror: Path, tmp_path: Path) -> None:
    """2,000 documents of the web, and garbage, with a vocabulary that was learned from such text."""
    shards = sorted(mirror.rglob("shard_0*.parquet"))
    texts = [text for shard in shards[:2] for text in parquet.read_table(shard)["text"].to_pylist()[:2000]]
    tokenizer = Tokenizer.train(texts, vocab_size=8192, max_chars=6_000_000)
    noise = random.Random(1)
    ranges = ((0, 0x7F), (0x80, 0x7FF), (0x800, 0xD7FF), (0xE000, 0xFFFF), (0x10000, 0x10FFFF))
    garbage = ["".join(chr(noise.randint(*noise.choice(ranges))) for _ in range(200)) for _ in range(500)]
    model = Transformer(ModelConfig(depth=1, width=16, heads=1, kv_heads=1, sequence_length=16, vocab_size=8192))
    model.init_weights(1)
    save_model(tmp_path, model, {})
    tokenizer.save(tmp_path)
    export(tmp_path, tmp_path / "exported")
    asked = {"texts": [*texts[-2000:], *garbage], "chats": [], "prompts": [], "new_tokens": 1, "special": []}
    ran = subprocess.run(
        [str(HERE / ".venv/bin/python"), str(HERE / "peer.py"), str(tmp_path / "exported"), str(tmp_path)],
        input=json.dumps(asked), capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    answers = json.loads((tmp_path / "answers.json").read_text())
    for text, plain, theirs in zip(asked["texts"], answers["plain"], answers["texts"], strict=True):
        assert tokenizer.encode(text) == plain == theirs, repr(text[:100])
