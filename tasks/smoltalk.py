"""SmolTalk: general conversations, for training (HuggingFaceTB/smol-smoltalk)."""

from __future__ import annotations

from tasks.table import Row, TableTask, hub_files
from tasks.task import Example


class SmolTalk(TableTask):
    name = "smoltalk"
    kind = "chat"
    splits = ("train", "test")
    files = hub_files(
        "datasets/HuggingFaceTB/smol-smoltalk/resolve/main/data/{split}-00000-of-00001.parquet",
        train="train",
        test="test",
    )
    columns = ("messages",)

    def example(self, row: Row) -> Example:
        return Example([{"role": each["role"], "content": each["content"]} for each in row["messages"]])
