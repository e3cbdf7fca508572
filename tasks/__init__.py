"""Data sets and benchmarks: one module a family, all with one interface (`tasks.task.Task`).

`find(name)` gives a task's class, `names()` lists them. A custom task is one more file here with one class.
"""

from tasks.registry import UnusableTask, find, names
from tasks.task import DataError, Example, Message, Program, SourceFile, Task

__all__ = ["DataError", "Example", "Message", "Program", "SourceFile", "Task", "UnusableTask", "find", "names"]
