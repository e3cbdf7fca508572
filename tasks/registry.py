"""Finds tasks by name: every class in a module of `tasks` that implements `Task` and has a name is one."""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
import sys
from functools import cache
from types import ModuleType

from tasks.task import Task


class UnusableTask(Exception):
    """A file of tasks that cannot be imported, or a task that cannot be; the message says what to change."""


def find(name: str) -> type[Task]:
    """The class of the task with this name; KeyError, with the nearest name, where there is none.

    Raises UnusableTask where one of the modules is not sound, whichever task is asked for.
    """
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
        module = _module(info.name)
        for value in vars(module).values():
            if _is_task(value, module.__name__):
                if value.name in found:
                    raise UnusableTask(f"two tasks are called '{value.name}': rename one ({info.name})")
                if not 0 <= value.baseline < 1:
                    raise UnusableTask(
                        f"task {value.name} has the baseline {value.baseline}: it is the proportion that guessing gets "
                        f"right, from 0 to below 1 ({info.name})"
                    )
                found[value.name] = value
    return found


def _module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise UnusableTask(
            f"{name} needs the Python module '{error.name}', which is missing: install the package that has it into "
            f"{sys.prefix}, on a cluster into the images of the trainer and of the controller"
        ) from error
    except Exception as error:
        line = f", line {error.lineno}" if isinstance(error, SyntaxError) else ""
        raise UnusableTask(f"{name}{line} cannot be imported: {type(error).__name__}: {error}") from error


def _is_task(value: object, module: str) -> bool:
    """Whether a module's value is a task that is defined there (and not imported or abstract)."""
    if not (inspect.isclass(value) and issubclass(value, Task) and value.__module__ == module):
        return False
    return not inspect.isabstract(value) and "name" in vars(value)
