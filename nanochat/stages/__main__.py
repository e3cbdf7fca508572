"""One rank of one stage: `python -m nanochat.stages PLAN.json`, under torchrun where there are several.

It exits 0 when the outputs are committed, 143 when it was asked to stop and has saved a checkpoint, 1 otherwise;
its outcome is in `outcome-rank<r>.json` in the launch's work folder.
"""

from __future__ import annotations

import gc
import importlib
import logging
import os
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from nanochat.pipeline.orphan import die_with_starter
from nanochat.pipeline.outcomes import EXIT_DISK_FULL, EXIT_STOPPED, Outcome, Reason, write_outcome
from nanochat.pipeline.plan import StagePlan
from nanochat.runtime.memory import is_out_of_memory
from nanochat.runtime.stopping import on_stop
from nanochat.runtime.threads import settle
from nanochat.spec.environment import integer
from nanochat.spec.errors import NanochatError, PeerLost, is_own, missing_module
from nanochat.stages.context import StageContext, StopFlag
from nanochat.storage.failures import is_disk_full
from nanochat.tracking.environment import environment
from tasks.task import DataError

MODULES = {"eval-base": "evaluate", "eval-mid": "evaluate", "eval-sft": "evaluate", "eval-rl": "evaluate"}


def main() -> NoReturn:
    """Run the stage that the plan names; ends the process with the exit code."""
    die_with_starter()
    settle()
    plan = StagePlan.read(Path(sys.argv[1]))
    rank = integer("RANK", 0)
    work = Path(plan.work)
    redirect(work / f"rank{rank}.log")
    stop = StopFlag()
    on_stop(lambda *_: stop.set())
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S")
    for library in ("httpx", "botocore"):  # a line for each request, and one that keys were found
        logging.getLogger(library).setLevel(logging.WARNING)
    try:
        (work / f"rank{rank}.pid").write_text(str(os.getpid()))  # from now on the launcher may ask it to stop
        context = StageContext(plan, stop=stop)
        try:
            import_stage(plan.stage).run(context)
        finally:
            close(context)
        outcome = Outcome(reason=Reason.SUCCEEDED, rank=rank, time=time.time())
    except BaseException as error:
        outcome = classify(error, rank=rank)
        with suppress(OSError):  # the log may lie on the disk that is full
            report(outcome)
    told = write_outcome(work / f"outcome-rank{rank}.json", outcome)
    with suppress(OSError):
        sys.stderr.flush()
        sys.stdout.flush()
    if not told:
        os._exit(EXIT_DISK_FULL)
    # Without waiting for threads or for collectives whose peers are gone, and without the interpreter's own end, in
    # which a thread of gloo that still lets go of a tensor now and then aborts the process.
    os._exit({Reason.SUCCEEDED: 0, Reason.PREEMPTED: EXIT_STOPPED}.get(outcome.reason, 1))


def import_stage(stage: str) -> Any:
    """The stage's module. What imports make stays, so that the garbage collector need not look at it, now or later:
    that saves a sixth of the import's time."""
    gc.disable()
    module = importlib.import_module(f"nanochat.stages.{MODULES.get(stage, stage)}")
    gc.freeze()
    gc.enable()
    return module


def close(context: StageContext) -> None:
    """Write what is left to report. Where that fails, how the stage itself ended still decides."""
    try:
        if context.is_main:  # after the run: what it imported is known
            context.journal.event("environment", **environment())
        context.close()
    except NanochatError as error:
        logging.warning("the last metrics could not be stored: %s", error)


def report(outcome: Outcome) -> None:
    """Say in the log what ended the stage."""
    if outcome.reason is not Reason.PREEMPTED:
        print(f"{outcome.reason}: {outcome.message}", file=sys.stderr)
    if outcome.reason is Reason.ERROR:
        print(outcome.detail, file=sys.stderr)


def redirect(log: Path) -> None:
    """Send this process's standard output and error, its libraries' too, to its own log."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)


def classify(error: BaseException, *, rank: int) -> Outcome:
    """The outcome that an exception stands for."""
    detail = "".join(traceback.format_exception(error))[-4000:]
    text = str(error)
    if isinstance(error, NanochatError):
        reason, text = Reason(error.reason), error.message
    elif isinstance(error, DataError):
        reason = Reason.USER_ERROR
    elif isinstance(error, ImportError) and not is_own(error.name):
        reason, text = Reason.USER_ERROR, missing_module(error)
    elif is_out_of_memory(error):
        reason = Reason.OUT_OF_MEMORY
    elif isinstance(error, (ConnectionError, TimeoutError)):
        reason = Reason.INFRASTRUCTURE
    elif is_disk_full(error):
        where = f" ({error.filename})" if isinstance(error, OSError) and error.filename else ""
        reason, text = Reason.USER_ERROR, f"the disk is full{where}: free space, then run again"
    else:
        reason, text = Reason.ERROR, f"{type(error).__name__}: {text}"
    lost = isinstance(error, PeerLost)
    return Outcome(reason, text[:1000], detail=detail, rank=rank, time=time.time(), peer_lost=lost)


if __name__ == "__main__":
    main()
