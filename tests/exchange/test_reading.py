"""Folders that others wrote: the way back, and one sentence for each that is not sound."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from nanochat.exchange.read import read
from nanochat.model.artifact import WEIGHTS
from nanochat.model.export import load_model
from nanochat.spec.errors import UserError
from nanochat.tokenizer import Tokenizer

KEY = "model.layers.0.self_attn.k_proj.weight"


def written(path: Path, target: Path) -> dict[str, torch.Tensor]:
    found = read(path)
    weights = found.weights()
    target.mkdir()
    found.write(target, weights)
    return load_file(target / WEIGHTS)


def test_the_way_back(exported: Path, folder: Path, tmp_path: Path, tokenizer: Tokenizer) -> None:
    before, after = load_file(folder / WEIGHTS), written(exported, tmp_path / "back")
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    model, extra = load_model(tmp_path / "back", device="cpu")
    assert model.config == load_model(folder, device="cpu")[0].config
    assert extra == {"stage": "imported", "step": 0}
    assert Tokenizer.load(tmp_path / "back").fingerprint == tokenizer.fingerprint


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_shorter_numbers_become_fp32(exported: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    short = {name: weight.to(dtype) for name, weight in load_file(exported / WEIGHTS).items()}
    save_file(short, exported / WEIGHTS)
    after = written(exported, tmp_path / "back")
    assert all(weight.dtype == torch.float32 for weight in after.values())
    assert torch.equal(after["blocks.0.attention.key.weight"], short[KEY].float())


def test_weights_in_several_files(exported: Path, folder: Path, tmp_path: Path) -> None:
    whole = load_file(exported / WEIGHTS)
    (exported / WEIGHTS).unlink()
    index = {name: f"model-0000{number % 2 + 1}-of-00002.safetensors" for number, name in enumerate(whole)}
    for file in set(index.values()):
        save_file({name: weight for name, weight in whole.items() if index[name] == file}, exported / file)
    (exported / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    after = written(exported, tmp_path / "back")
    assert all(torch.equal(weight, after[name]) for name, weight in load_file(folder / WEIGHTS).items())


def test_what_older_versions_wrote(exported: Path, tokenizer: Tokenizer) -> None:
    """Merges as texts, the rotary base by itself, the class's own norms, tokens that are added, a tokenizer without
    marks."""
    document(exported, "config.json", lambda v: v.update(rope_theta=20_000.0, rms_norm_eps=1e-6, rope_scaling=None))
    document(exported, "config.json", lambda v: v.pop("rope_parameters"))

    def older(values: dict[str, Any]) -> None:
        model, steps = values["model"], values["pre_tokenizer"]["pretokenizers"]
        model["merges"] = [" ".join(pair) for pair in model["merges"]]
        values["added_tokens"] = [{"id": i, "content": f"<|{name}|>"} for name, i in tokenizer.special.items()]
        model["vocab"] = {text: i for text, i in model["vocab"].items() if i < 291}
        steps[:] = [{**steps[2], "pattern": {"Regex": tokenizer.pattern}}, {**steps[3], "trim_offsets": False}]

    document(exported, "tokenizer.json", older)
    found = read(exported)
    assert found.config.rope_base == 20_000.0 and found.tokenizer.fingerprint == tokenizer.fingerprint


def document(folder: Path, name: str, change: Callable[[Any], Any]) -> None:
    values = json.loads((folder / name).read_text())
    change(values)
    (folder / name).write_text(json.dumps(values))


def config(**values: Any) -> Callable[[Path], None]:
    return lambda folder: document(folder, "config.json", lambda v: v.update(values))


def vocabulary(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    return lambda folder: document(folder, "tokenizer.json", change)


def weights(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def run(folder: Path) -> None:
        found = load_file(folder / WEIGHTS)
        change(found)
        save_file(found, folder / WEIGHTS)

    return run


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def linked(name: str, to: str) -> Callable[[Path], None]:
    def run(folder: Path) -> None:
        (folder / name).rename(folder.parent / "outside")
        (folder / name).symlink_to(to)

    return run


def pickled(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")


def index(*names: str) -> Callable[[Path], None]:
    def run(folder: Path) -> None:
        (folder / WEIGHTS).unlink()
        listed = {"weight_map": {str(i): name for i, name in enumerate(names)}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(listed))

    return run


def huge_file(name: str) -> Callable[[Path], None]:
    return lambda folder: os.truncate(folder / name, 1 << 40)  # of holes


def huge_model(folder: Path) -> None:
    config(num_hidden_layers=1024, hidden_size=65_536, intermediate_size=262_144)(folder)


def pipe(folder: Path) -> None:
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")


def header(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((1 << 62).to_bytes(8, "little") + b"{}")


def long_tokens(values: dict[str, Any]) -> None:
    vocab = values["model"]["vocab"]
    for name, i in [item for item in vocab.items() if 256 <= item[1] < 291]:
        del vocab[name]
        vocab[chr(ord("A") + i - 256) * 3000] = i


HOSTILE: dict[str, tuple[Callable[[Path], None], str]] = {
    "no config": (without("config.json"), "has no config.json"),
    "no tokenizer": (without("tokenizer.json"), "has no tokenizer.json"),
    "no weights": (without(WEIGHTS), "has no model.safetensors"),
    "pickles": (pickled, "'pytorch_model.bin', which can run code when it is read: save the model with safetensors"),
    "link outside": (linked(WEIGHTS, "../outside"), "is a link that leads out of the folder"),
    "config outside": (linked("config.json", "../outside"), "is a link that leads out of the folder"),
    "link to itself": (linked("tokenizer.json", "tokenizer.json"), "cannot be read"),
    "link to nothing": (linked(WEIGHTS, "nothing"), "has no model.safetensors"),
    "a pipe": (pipe, "is no plain file"),
    "another model": (config(model_type="llama"), "config.json cannot be imported: it is no NanoChatForCausalLM"),
    "no model": (lambda f: (f / "config.json").write_text("[1]"), "it is no NanoChatForCausalLM"),
    "no JSON": (lambda f: (f / "config.json").write_text("{"), "config.json cannot be read: not JSON"),
    "deep JSON": (lambda f: (f / "config.json").write_text("[" * 10**6), "nested more than 200 deep"),
    "large JSON": (huge_file("tokenizer.json"), "tokenizer.json cannot be read: more than 67,108,864 bytes"),
    "not capped": (config(final_logit_softcapping=None), "final_logit_softcapping is None, and this project's is 15.0"),
    "other norms": (config(rms_norm_eps=1e-3), "rms_norm_eps is 0.001"),
    "other MLP": (config(intermediate_size=96), "intermediate_size is 96"),
    "gated": (config(hidden_act="silu"), "hidden_act"),
    "tied": (config(tie_word_embeddings=True), "tie_word_embeddings"),
    "biased": (config(attention_bias=True), "attention_bias"),
    "scaled rotary": (config(rope_parameters={"rope_type": "yarn", "rope_theta": 1e4}), "rope_type"),
    "quantised": (config(quantization_config={"bits": 4}), "quantization_config"),
    "other heads": (config(head_dim=16), "4 heads of 16 are not hidden_size 32"),
    "odd heads": (config(num_attention_heads=5, num_key_value_heads=5), "does not divide into 5 heads"),
    "uneven heads": (config(num_key_value_heads=3), "can't share 3 key-value heads"),
    "nothing": (config(num_hidden_layers=0), "num_hidden_layers"),
    "infinite": (config(num_hidden_layers=10**9), "num_hidden_layers"),
    "huge model": (huge_model, "GiB of memory"),
    "another depth": (config(num_hidden_layers=3), "lacks model.layers.2."),
    "one layer less": (config(num_hidden_layers=1), "'model.layers.1.mlp.fc1.weight' is no weight of the model"),
    "padded vocabulary": (config(vocab_size=304), "a model of 304 ids and a tokenizer of 300"),
    "wrong shape": (weights(lambda w: w.update({KEY: torch.zeros(16, 31)})), "k_proj.weight has the shape [16, 31]"),
    "another weight": (weights(lambda w: w.update(extra=torch.zeros(1))), "'extra' is no weight of the model"),
    "a weight less": (weights(lambda w: w.pop(KEY)), f"lacks {KEY}"),
    "integers": (weights(lambda w: w.update({KEY: torch.zeros(16, 32, dtype=torch.int8)})), "of the type I8"),
    "not finite": (weights(lambda w: w[KEY].fill_(float("nan"))), "holds numbers that are not finite"),
    "no safetensors": (lambda f: (f / WEIGHTS).write_bytes(b"x" * 1000), "is no readable safetensors file"),
    "huge header": (header, "is no readable safetensors file"),
    "huge weights": (huge_file(WEIGHTS), "is no readable safetensors file"),
    "index outside": (index("../outside.safetensors"), "names '../outside.safetensors', which is no safetensors file"),
    "index of pickles": (index("pytorch_model.bin"), "names 'pytorch_model.bin', which is no safetensors file"),
    "index of nothing": (index("a.safetensors"), "has no a.safetensors"),
    "many files": (index(*(f"{i}.safetensors" for i in range(1025))), "names 1,025 files"),
    "empty index": (index(), "names 0 files"),
    "no BPE": (vocabulary(lambda v: v["model"].update(type="Unigram")), "no byte-level BPE"),
    "normalised text": (vocabulary(lambda v: v.update(normalizer={"type": "NFC"})), "normalizer"),
    "other words": (
        vocabulary(lambda v: v["pre_tokenizer"]["pretokenizers"][2]["pattern"].update(Regex=r"(a+)+$")),
        "splits text into words in another way",
    ),
    "no special token": (vocabulary(lambda v: v["model"]["vocab"].pop("<|bos|>")), "it has no <|bos|>"),
    "an id twice": (vocabulary(lambda v: v["model"]["vocab"].update(a=98)), "two tokens share an id"),
    "special tokens first": (vocabulary(lambda v: v["model"]["vocab"].update({"<|bos|>": 0})), "are not the last ids"),
    "no bytes": (vocabulary(lambda v: v["model"]["vocab"].update({"\u65e5": v["model"]["vocab"].pop("a")})), "by byte"),
    "a byte less": (vocabulary(lambda v: v["model"]["vocab"].update(zzz=v["model"]["vocab"].pop("a"))), "1 bytes are"),
    "merges in disorder": (
        vocabulary(lambda v: v["model"]["merges"].reverse()),
        "does not follow the order of the ids",
    ),
    "a merge less": (vocabulary(lambda v: v["model"]["merges"].pop()), "leave out some"),
    "a merge of nothing": (vocabulary(lambda v: v["model"]["merges"].append(["a", "zz"])), "does not follow"),
    "long tokens": (vocabulary(long_tokens), "longer than those of any vocabulary"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_what_is_not_sound_is_refused_in_a_sentence(kind: str, exported: Path, tmp_path: Path) -> None:
    spoil, sentence = HOSTILE[kind]
    spoil(exported)
    with pytest.raises(UserError, match=re.escape(sentence)) as refused:
        written(exported, tmp_path / "back")
    assert "\n" not in refused.value.message and len(refused.value.message) < 600


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no folder"):
        read(tmp_path / "nothing")
