"""A process that must not outlive its parent: it ends itself once the parent is gone, also after SIGKILL."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable


def die_with_parent(*, parent: int | None = None, cleanup: Callable[[], None] | None = None) -> None:
    """Watch the parent from a thread; when it is gone, run `cleanup` and end with SIGKILL.

    `parent` is the process id that must live, by default the present parent's. Polling works on Linux and macOS
    alike and needs no hook between fork and exec.
    """
    expected = parent or os.getppid()

    def watch() -> None:
        while os.getppid() == expected:
            time.sleep(0.25)
        if cleanup is not None:
            cleanup()
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="die-with-parent", daemon=True).start()
