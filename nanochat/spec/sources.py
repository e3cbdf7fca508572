"""Where text, task files and the evaluation bundle come from. Names and revisions are in keys, addresses not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from nanochat.spec.fields import Section, Text, Uri, setting


class TextSource(Section):
    """The pretraining text: parquet shards with one string column `text`, or the generated demo world."""

    kind: Literal["hub", "world"] = setting("hub", "Shards from a hub, or text that the demo world generates.")
    base: Uri | None = setting(None, "Base address of the shards, where it is not the hub's.", key=False)
    path: Text = setting(
        "datasets/karpathy/fineweb-edu-100b-shuffle/resolve/{revision}/shard_{index:05d}.parquet",
        "Path of a shard under the base; {revision} and {index} are filled in.",
    )
    revision: Text = setting("main", "Revision of the data set.")
    characters_per_shard: int = setting(250_000_000, "Characters in one shard.", unit="characters", ge=1000, key=False)
    shards: int | None = setting(
        None,
        "Number of training shards; by default as many as the base stage's tokens need.",
        ge=1,
        le=100_000,
        key=False,
    )
    validation_shard: int = setting(
        1822, "Index of the shard that is kept for validation and never trained on.", ge=0, key=False
    )


class FileSource(Section):
    """One file (or, for the bundle, a zip or a folder) by its address."""

    url: Uri = setting(help="Address: https://, s3://, file:// or a local path.", key=False)
    revision: Text = setting("1", "Name of the content's version; change it when the content changes.")


class Encodings(Section):
    """The vocabularies of GPT-2 and GPT-4, for the compression table."""

    gpt2: Uri = setting(
        "https://openaipublic.blob.core.windows.net/encodings/r50k_base.tiktoken", "GPT-2's ranks.", key=False
    )
    gpt4: Uri = setting(
        "https://openaipublic.blob.core.windows.net/encodings/cl100k_base.tiktoken", "GPT-4's ranks.", key=False
    )


class EvalBundle(FileSource):
    """CORE's evaluation bundle: a zip or a folder."""

    url: Uri = setting(
        "https://karpathy-public.s3.us-west-2.amazonaws.com/eval_bundle.zip", "Address of the zip or folder.", key=False
    )


class Words(FileSource):
    """The word list of the spelling tasks, one word a line."""

    url: Uri = setting(
        "https://raw.githubusercontent.com/dwyl/english-words/refs/heads/master/words_alpha.txt", "Address.", key=False
    )


class Identity(FileSource):
    """Identity conversations, where stages.mid.identity names none: one JSON list of messages a line."""

    url: Uri = setting(
        "https://karpathy-public.s3.us-west-2.amazonaws.com/identity_conversations.jsonl", "Address.", key=False
    )


class Sources(Section):
    """All places data comes from. A mirror replaces every public address at once."""

    mirror: Uri | None = setting(
        None,
        "A folder or address with the hub's layout that also holds eval_bundle/, words_alpha.txt, "
        "identity_conversations.jsonl and encodings/; it replaces the public addresses.",
        key=False,
    )
    hub: Uri = setting("https://huggingface.co", "Base address of the hub.", key=False)
    hub_revision: Text = setting("main", "Revision of the task data sets.")
    text: TextSource = setting(TextSource, "The pretraining text.")
    eval_bundle: EvalBundle = setting(EvalBundle, "CORE's evaluation bundle: a zip or a folder.")
    words: Words = setting(Words, "Word list of the spelling tasks, one word a line.")
    identity: Identity = setting(Identity, "Identity conversations, where stages.mid.identity names none.")
    encodings: Encodings = setting(Encodings, "GPT-2's and GPT-4's vocabularies.")
    parallel_downloads: int = setting(4, "Downloads under way at once.", ge=1, le=64, key=False)

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

    def mapped(self, change: Callable[[str], str]) -> Sources:
        """The same sources with every address changed."""
        text, gpt2, gpt4 = self.text, self.encodings.gpt2, self.encodings.gpt4
        files = {name: getattr(self, name) for name in ("eval_bundle", "words", "identity")}
        return self.model_copy(
            update={
                "mirror": self.mirror and change(self.mirror),
                "hub": change(self.hub),
                "text": text.model_copy(update={"base": text.base and change(text.base)}),
                "encodings": self.encodings.model_copy(update={"gpt2": change(gpt2), "gpt4": change(gpt4)}),
                **{name: file.model_copy(update={"url": change(file.url)}) for name, file in files.items()},
            }
        )
