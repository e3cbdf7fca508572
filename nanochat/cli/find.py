"""Which run a command means: one of this machine, or a pipeline on a cluster."""

from __future__ import annotations

from nanochat.cli.cluster_run import ClusterRun
from nanochat.cli.local_run import NoRun, find_run
from nanochat.cli.run_handle import RunHandle, Unanswered
from nanochat.spec.errors import UserError
from operators.kube_error import NoCluster


def find_handle(name: str | None, *, store: str, namespace: str | None, context: str | None) -> RunHandle:
    """A run of this machine, or else the pipeline of that name on the cluster; the last two options mean a cluster."""
    if namespace is not None or context is not None:
        if name is None:
            raise UserError("name the pipeline: on a cluster there is no last one")
        return ClusterRun.find(name, namespace=namespace, context=context)
    try:
        return find_run(name, store=store)
    except NoRun as error:
        if name is None:
            raise
        try:
            return ClusterRun.find(name, namespace=None, context=None)
        except NoCluster:
            raise error from None
        except (Unanswered, UserError) as failure:
            raise UserError(f"{error.message}; on the cluster: {failure.message}") from None
