"""The report stage: report.md, report.html and the model card, from what the run has stored."""

from __future__ import annotations

from nanochat.report.build import write_report
from nanochat.report.record import gather
from nanochat.stages.context import StageContext


def run(context: StageContext) -> None:
    """Write the report as an artifact, and a copy into the run's folder, where people look for it."""
    if not context.is_main:
        return
    context.progress.update(phase="writing")
    record = gather(context.store, context.artifacts, run=context.plan.run)
    output = context.outputs[0]
    with context.writer(output) as writer:
        names = write_report(record, writer.folder)
        for name in names:
            context.store.write(f"{context.plan.run}/report/{name}", (writer.folder / name).read_bytes())
        context.commit(writer, output, metadata={})
    print(f"The report is in {context.store.uri(f'{context.plan.run}/report/report.md')}")
