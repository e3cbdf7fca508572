"""What an export holds, and what is refused; in tests/clients transformers itself reads it."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import jinja2
import jinja2.sandbox
import pytest
import torch
from exchange_texts import CHATS, REFUSED
from safetensors import safe_open
from safetensors.torch import load_file

from nanochat.exchange.chat_template import MARK, SEAM
from nanochat.exchange.export import export
from nanochat.exchange.tokenizer import from_huggingface, to_huggingface
from nanochat.model.artifact import WEIGHTS
from nanochat.model.export import save_model
from nanochat.model.sizes import ModelConfig
from nanochat.model.transformer import Transformer
from nanochat.spec.errors import UserError
from nanochat.tokenizer import Tokenizer
from nanochat.tokenizer.chat import render_conversation, render_prompt
from tests.model.recipe_models import MODERN


def rendered(template: str, messages: Any, *, prompt: bool) -> str:
    """As transformers renders it."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)

    def refuse(reason: str) -> None:
        raise jinja2.TemplateError(reason)

    environment.globals["raise_exception"] = refuse
    return environment.from_string(template).render(messages=messages, add_generation_prompt=prompt)


def ids_of(tokenizer: Tokenizer, text: str) -> list[int]:
    """What the exported tokenizer does with marks and seams, said in another way."""
    ids: list[int] = []
    for piece in re.split(rf"({MARK}<\|\w+\|>)|{re.escape(SEAM)}", text):
        if piece and (name := re.fullmatch(rf"{MARK}<\|(\w+)\|>", piece)) and name[1] in tokenizer.special:
            ids.append(tokenizer.special[name[1]])
        elif piece:
            ids += tokenizer.encode(piece)
    return ids


def test_the_files_and_what_they_say(exported: Path, tokenizer: Tokenizer) -> None:
    assert sorted(path.name for path in exported.iterdir()) == [
        "README.md", "chat_template.jinja", "config.json", "generation_config.json", "model.safetensors",
        "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    config = json.loads((exported / "config.json").read_text())
    assert config["architectures"] == ["NanoChatForCausalLM"] and config["rms_norm_eps"] == 2**-23
    assert (config["num_attention_heads"], config["num_key_value_heads"], config["intermediate_size"]) == (4, 2, 128)
    assert config["bos_token_id"] == tokenizer.bos and config["max_position_embeddings"] == 64
    generation = json.loads((exported / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [tokenizer.special["assistant_end"], tokenizer.bos]
    card = (exported / "README.md").read_text()
    assert "| Last training stage | sft, 1,200 steps |" in card and "library_name: transformers" in card
    assert "## Questions to ask it\n\n- Who are you?\n\n## Limits" in card


def test_weights_map_one_to_one(exported: Path, folder: Path) -> None:
    own, theirs = load_file(folder / WEIGHTS), load_file(exported / WEIGHTS)
    assert len(own) == len(theirs) == 2 + 2 * 6
    for left, right in (
        ("embedding", "model.embed_tokens.weight"),
        ("head.weight", "lm_head.weight"),
        ("blocks.1.attention.key.weight", "model.layers.1.self_attn.k_proj.weight"),
        ("blocks.0.attention.project.weight", "model.layers.0.self_attn.o_proj.weight"),
        ("blocks.1.mlp.expand.weight", "model.layers.1.mlp.fc1.weight"),
    ):
        assert torch.equal(own[left], theirs[right])
    with safe_open(exported / WEIGHTS, "pt") as file:
        assert file.metadata() == {"format": "pt"}  # without it transformers does not load the file


def test_a_token_is_joined_of_the_last_two_pieces() -> None:
    tokens = [bytes([i]) for i in range(256)] + [b"bc", b"ab", b"abc", b"xyz"]
    model = to_huggingface(Tokenizer(tokens))["model"]
    assert model["merges"] == [["b", "c"], ["a", "b"], ["a", "bc"]]  # no text is joined to xyz
    assert model["ignore_merges"] and model["vocab"]["xyz"] == 259 and model["vocab"]["<|bos|>"] == 260
    assert from_huggingface(to_huggingface(Tokenizer(tokens))).ranks == tuple(tokens)


@pytest.mark.parametrize("number", range(len(CHATS)))
def test_the_template_renders_what_the_project_renders(number: int, exported: Path, tokenizer: Tokenizer) -> None:
    template, chat = (exported / "chat_template.jinja").read_text(), CHATS[number]
    assert ids_of(tokenizer, rendered(template, chat, prompt=False)) == render_conversation(tokenizer, chat).ids
    if chat[-1]["role"] == "user":
        assert ids_of(tokenizer, rendered(template, chat, prompt=True)) == render_prompt(tokenizer, chat)


@pytest.mark.parametrize("number", range(len(REFUSED)))
def test_the_template_refuses(number: int, exported: Path) -> None:
    with pytest.raises(jinja2.TemplateError):
        rendered((exported / "chat_template.jinja").read_text(), REFUSED[number], prompt=False)


def test_a_users_parts_of_text_are_one_text(exported: Path, tokenizer: Tokenizer) -> None:
    """Servers turn a text into a list of parts where a template takes lists."""
    template = (exported / "chat_template.jinja").read_text()
    parts = [{"type": "text", "text": "The quick "}, {"type": "text", "text": "brown fox"}]
    text = rendered(template, [{"role": "user", "content": parts}], prompt=True)
    assert ids_of(tokenizer, text) == render_prompt(tokenizer, [{"role": "user", "content": "The quick brown fox"}])


@pytest.mark.parametrize("feature", MODERN)
def test_what_the_class_cannot_hold_is_refused(feature: str, tmp_path: Path, tokenizer: Tokenizer) -> None:
    shape = {"depth": 2, "width": 32, "heads": 4, "kv_heads": 2, "sequence_length": 64, "vocab_size": 300}
    model = Transformer(ModelConfig(**shape, **{feature: MODERN[feature]}))
    model.init_weights(1)
    save_model(tmp_path, model, {})
    tokenizer.save(tmp_path)
    with pytest.raises(UserError, match=r"NanoChatForCausalLM has no .*, which its recipe uses"):
        export(tmp_path, tmp_path / "exported")
    assert not (tmp_path / "exported").exists()


def test_nothing_is_left_of_an_export_that_fails(folder: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    weights = (broken / WEIGHTS).read_bytes()
    (broken / WEIGHTS).write_bytes(weights[: len(weights) // 2])
    with pytest.raises(UserError, match="name a folder that a stage wrote"):
        export(broken, tmp_path / "exported")
    assert [path.name for path in tmp_path.iterdir()] == ["broken"]


def test_only_a_new_or_empty_folder_is_written(folder: Path, tmp_path: Path) -> None:
    empty = tmp_path / "deep" / "empty"
    empty.mkdir(parents=True)
    export(folder, empty)
    assert (empty / WEIGHTS).exists()
    before = sorted(path.name for path in empty.iterdir())
    for target in (empty, empty / "config.json"):
        with pytest.raises(UserError, match="is there already"):
            export(folder, target)
    assert sorted(path.name for path in empty.iterdir()) == before
