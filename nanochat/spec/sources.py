"""Sources of text, task files and the evaluation bundle. Names and revisions are in keys, addresses are not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from nanochat.parse.address import local_path
from nanochat.spec.comments import Form
from nanochat.spec.fields import BaseAddress, FileAddress, Section, Text, setting

# A template is filled in by str.format, which could otherwise be asked for other things and a gigabyte of zeros.
ShardPath = Annotated[
    Text,
    StringConstraints(pattern=r"^([^{}]|\{revision\}|\{index(:0?[0-9]{1,2}d)?\})*$"),
    Form("hold no braces but those of {revision}, {index} and the like of {index:05d}"),
]

PUBLIC_HUB = "https://huggingface.co"


class TextSource(Section):
    """The pretraining text: parquet shards with one string column `text`, own files, or the generated demo world."""

    kind: Literal["hub", "world", "files"] = setting(
        "hub",
        "kind is where the text comes from: hub for shards that are fetched, files for the files that files names, "
        "world for text that the demo's world generates.",
    )
    files: FileAddress | None = setting(
        None,
        "files is one file of text, a folder of them or a pattern such as letters/*.jsonl: JSON lines, plain text or "
        "parquet. Every 20th document is held out for validation. By default there is none.",
        max_length=1024,
    )
    column: Text = setting(
        "text", "column is the field or column of files that holds the text.", min_length=1, max_length=200
    )
    base: BaseAddress | None = setting(
        None, "base is the address that the shards' path is appended to. Defaults to sources.hub.", key=False
    )
    path: ShardPath = setting(
        "datasets/karpathy/fineweb-edu-100b-shuffle/resolve/{revision}/shard_{index:05d}.parquet",
        "path is the path of a shard under the base, in which {revision} and {index} are filled in.",
    )
    revision: Text = setting(
        "main", "revision is the revision of the text, as {revision} in the path and in the keys of artifacts."
    )
    characters_per_shard: int = setting(
        250_000_000,
        "charactersPerShard is the number of characters in one shard, from which the number of shards follows.",
        unit="characters",
        ge=1000,
        key=False,
    )
    shards: int | None = setting(
        None,
        "shards is the number of training shards. Defaults to as many as the tokens of the base stage need, with a "
        "tenth to spare.",
        ge=1,
        le=100_000,
        key=False,
    )
    validation_shard: int = setting(
        1822,
        "validationShard is the index of the shard that is kept for validation and never trained on.",
        ge=0,
        le=1_000_000,
        key=False,
    )

    @model_validator(mode="after")
    def _has_shards(self) -> TextSource:
        if self.kind == "hub" and "{index" not in self.path:
            raise PydanticCustomError("path", "path must hold {index}, or all shards would be one file")
        if (self.kind == "files") != (self.files is not None):
            raise PydanticCustomError("files", "files names the text of kind files: give both, or neither")
        return self


class FileSource(Section):
    """One file (or, for the bundle, a zip or a folder) by its address."""

    url: FileAddress = setting(
        help="url is the address of the file.",
        key=False,
    )
    revision: Text = setting(
        "1", "revision is a name for the content's version, to be changed whenever the content changes."
    )


class Encodings(Section):
    """The vocabularies of GPT-2 and GPT-4, for the compression table."""

    gpt2: FileAddress = setting(
        "https://openaipublic.blob.core.windows.net/encodings/r50k_base.tiktoken",
        "gpt2 is the address of GPT-2's vocabulary, in tiktoken's format.",
        key=False,
    )
    gpt4: FileAddress = setting(
        "https://openaipublic.blob.core.windows.net/encodings/cl100k_base.tiktoken",
        "gpt4 is the address of GPT-4's vocabulary, in tiktoken's format.",
        key=False,
    )


class EvalBundle(FileSource):
    """CORE's evaluation bundle: a zip or a folder."""

    url: FileAddress = setting(
        "https://karpathy-public.s3.us-west-2.amazonaws.com/eval_bundle.zip",
        "url is the address of the bundle, a zip or a folder.",
        key=False,
    )


class Words(FileSource):
    """The word list of the spelling tasks, one word a line."""

    url: FileAddress = setting(
        "https://raw.githubusercontent.com/dwyl/english-words/refs/heads/master/words_alpha.txt",
        "url is the address of the word list.",
        key=False,
    )


class Identity(FileSource):
    """Identity conversations, where stages.mid.identity names none: one JSON list of messages a line."""

    url: FileAddress = setting(
        "https://karpathy-public.s3.us-west-2.amazonaws.com/identity_conversations.jsonl",
        "url is the address of the conversations.",
        key=False,
    )


class Sources(Section):
    """All places that data comes from. A mirror replaces every public address at once."""

    mirror: BaseAddress | None = setting(
        None,
        "mirror is a folder or address that replaces all public addresses: it has the hub's layout, eval_bundle/, "
        "words_alpha.txt, identity_conversations.jsonl and encodings/. By default there is none.",
        key=False,
    )
    hub: BaseAddress = setting(
        PUBLIC_HUB,
        "hub is the base address of the hub that text and task data come from. Where it is the default, HF_ENDPOINT "
        "of the environment is used in its place.",
        key=False,
    )
    hub_revision: Text = setting("main", "hubRevision is the revision of the task data sets on the hub.")
    text: TextSource = setting(TextSource, "text is the text that the tokenizer and the base model are trained on.")
    eval_bundle: EvalBundle = setting(EvalBundle, "evalBundle is the bundle of the tasks that CORE is made of.")
    words: Words = setting(Words, "words is the word list of the spelling tasks, with one word a line.")
    identity: Identity = setting(
        Identity,
        "identity is the file of conversations that say who the model is, used where stages.mid.identity names none.",
    )
    encodings: Encodings = setting(
        Encodings, "encodings holds the vocabularies that the tokenizer's compression is compared with."
    )
    parallel_downloads: int = setting(
        4, "parallelDownloads is the number of files that are downloaded at once.", ge=1, le=64, key=False
    )

    def located(self) -> Sources:
        """The same sources with the mirror's addresses in place of the public ones."""
        if self.mirror is None:
            return self
        root = self.mirror.rstrip("/")
        return self.model_copy(
            update={
                "mirror": None,
                "hub": root,
                "text": self.text.model_copy(update={"base": self.text.base or root}),
                "eval_bundle": self.eval_bundle.model_copy(update={"url": f"{root}/eval_bundle"}),
                "words": self.words.model_copy(update={"url": f"{root}/words_alpha.txt"}),
                "identity": self.identity.model_copy(update={"url": f"{root}/identity_conversations.jsonl"}),
                "encodings": self.encodings.model_copy(
                    update={
                        "gpt2": f"{root}/encodings/r50k_base.tiktoken",
                        "gpt4": f"{root}/encodings/cl100k_base.tiktoken",
                    }
                ),
            }
        )

    def local(self) -> list[tuple[str, str]]:
        """The addresses that are paths of this machine, each after the path of its setting."""
        found: list[tuple[str, str]] = []

        def look(data: dict[str, Any], path: str) -> None:
            for name, value in data.items():
                if isinstance(value, dict):
                    look(value, f"{path}.{name}")
                elif name in ("mirror", "hub", "base", "files", "url", "gpt2", "gpt4") and value and local_path(value):
                    found.append((f"{path}.{name}", value))

        look(self.to_yaml_dict(), "sources")
        return found

    def mapped(self, change: Callable[[str], str]) -> Sources:
        """The same sources with every address changed."""
        text, gpt2, gpt4 = self.text, self.encodings.gpt2, self.encodings.gpt4
        files = {name: getattr(self, name) for name in ("eval_bundle", "words", "identity")}
        return self.model_copy(
            update={
                "mirror": self.mirror and change(self.mirror),
                "hub": change(self.hub),
                "text": text.model_copy(
                    update={"base": text.base and change(text.base), "files": text.files and change(text.files)}
                ),
                "encodings": self.encodings.model_copy(update={"gpt2": change(gpt2), "gpt4": change(gpt4)}),
                **{name: file.model_copy(update={"url": change(file.url)}) for name, file in files.items()},
            }
        )
