"""SmolTalk: general conversations, for training (HuggingFaceTB/smol-smoltalk)."""

from __future__ import annotations

from tasks.conversation import conversation_problem
from tasks.table import Row, TableTask, hub_files
from tasks.task import Example


class Said(Row):
    """One message."""

    role: str
    content: str


class SmolTalkRow(Row):
    """A conversation."""

    messages: list[Said]


class SmolTalk(TableTask[SmolTalkRow]):
    name = "smoltalk"
    row = SmolTalkRow
    kind = "chat"
    splits = ("train", "test")
    files = hub_files(
        "datasets/HuggingFaceTB/smol-smoltalk/resolve/main/data/{split}-00000-of-00001.parquet",
        train="train",
        test="test",
    )

    def example(self, row: SmolTalkRow) -> Example:
        messages = [{"role": each.role, "content": each.content} for each in row.messages]
        if problem := conversation_problem(messages):
            raise ValueError(problem)
        return Example(messages)
