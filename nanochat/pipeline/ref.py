"""References to artifacts within a pipeline: 'kind/name', such as 'tokenizer/bpe' or 'model/sft'."""

from __future__ import annotations


class ArtifactRef(str):
    """A reference, which is also its own text: plans, manifests and status hold it as it is."""

    __slots__ = ()

    @classmethod
    def of(cls, kind: str, name: str) -> ArtifactRef:
        """The reference to an artifact of a kind."""
        return cls(f"{kind}/{name}")

    @classmethod
    def parse(cls, text: str) -> ArtifactRef:
        """Check a text; ValueError where it is not 'kind/name'."""
        kind, slash, name = text.partition("/")
        if not (kind and slash and name):
            raise ValueError(f"not a reference of the form kind/name: {text!r}")
        return cls(text)

    @property
    def kind(self) -> str:
        """The kind of the artifact."""
        return self.partition("/")[0]

    @property
    def name(self) -> str:
        """The name of the artifact among those of its kind."""
        return self.partition("/")[2]
