"""Where the parts of a run lie under the store's root."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RunPaths:
    """Paths of one run; `root` is runs/<namespace>.<name>/<uid>."""

    root: str

    @classmethod
    def of(cls, *, namespace: str, name: str, uid: str) -> RunPaths:
        return cls(f"runs/{namespace}.{name}/{uid}")

    @property
    def pipeline(self) -> str:
        """The declaration as it was run."""
        return f"{self.root}/pipeline.json"

    @property
    def status(self) -> str:
        return f"{self.root}/status.json"

    @property
    def control(self) -> str:
        """The file that asks a running run to cancel."""
        return f"{self.root}/control.json"

    @property
    def release(self) -> str:
        """The result of its release: see `nanochat.stages.release`."""
        return f"{self.root}/release.json"

    def progress(self, stage: str) -> str:
        """The folder with the progress of each launch of a stage."""
        return f"{self.root}/progress/{stage}"

    def standstill(self, stage: str, launch: str) -> str:
        """The ranks of a launch that stand still: see `nanochat.pipeline.standstill`."""
        return f"{self.root}/standstills/{stage}/{launch}.json"

    def plan(self, stage: str, attempt: int) -> str:
        return f"{self.root}/plans/{stage}/{attempt:04d}.json"

    @property
    def attempts(self) -> str:
        """The folder of all attempts' records, by stage."""
        return f"{self.root}/attempts"

    def attempt(self, stage: str, attempt: int) -> str:
        return f"{self.attempts}/{stage}/{attempt:04d}.json"

    def outcome(self, stage: str, launch: str) -> str:
        return f"{self.root}/outcomes/{stage}/{launch}.json"

    def logs(self, stage: str, launch: str = "") -> str:
        return f"{self.root}/logs/{stage}/{launch}" if launch else f"{self.root}/logs/{stage}"
