"""The services that all reconcilers share.

services = Services(cluster=..., index=..., backend=..., config=..., claims=..., events=..., stores=...)
"""

from __future__ import annotations

from dataclasses import dataclass, field

from operators import status
from operators.admission import Graphs
from operators.claims import Claims
from operators.cluster import Cluster
from operators.config import Config
from operators.events import Events
from operators.index import Index
from operators.job_backend import JobBackend
from operators.rate_limits import ProgressLimit
from operators.store_leases import StoreLeases
from operators.stores import Stores
from operators.suspicion import Suspicion


@dataclass(frozen=True, slots=True)
class Services:
    """One of each, for the whole process; all are safe to use from several threads."""

    cluster: Cluster
    index: Index
    backend: JobBackend
    config: Config
    claims: Claims
    events: Events
    stores: Stores
    graphs: Graphs = field(default_factory=Graphs)
    leases: StoreLeases = field(default_factory=StoreLeases)
    suspicion: Suspicion = field(default_factory=Suspicion)
    progress: ProgressLimit = field(default_factory=ProgressLimit)
    access: status.AccessOf = status.no_access
    serving: status.ServingOf = status.no_serving
