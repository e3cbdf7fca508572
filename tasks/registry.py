"""Finds tasks by name: every class in a module of `tasks` that implements `Task` and has a name is one."""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
from functools import cache

from tasks.task import Task


def find(name: str) -> type[Task]:
    """The class of the task with this name; KeyError, with the nearest name, where there is none."""
    known = _known()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(sorted(known))}."
        raise KeyError(f"there is no task '{name}': {hint}")
    return known[name]


def names() -> tuple[str, ...]:
    """The names of all tasks."""
    return tuple(sorted(_known()))


@cache
def _known() -> dict[str, type[Task]]:
    package = importlib.import_module("tasks")
    found: dict[str, type[Task]] = {}
    for info in pkgutil.walk_packages(package.__path__, "tasks."):
        module = importlib.import_module(info.name)
        for value in vars(module).values():
            if _is_task(value, module.__name__):
                if value.name in found:
                    raise ValueError(f"two tasks are called '{value.name}': rename one ({info.name})")
                found[value.name] = value
    return found


def _is_task(value: object, module: str) -> bool:
    """Whether a module's value is a task that is defined there (and not imported or abstract)."""
    if not (inspect.isclass(value) and issubclass(value, Task) and value.__module__ == module):
        return False
    return not inspect.isabstract(value) and "name" in vars(value)
