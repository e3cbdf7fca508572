"""Nodes that may be why attempts ended: suspicion adds up by node over attempts and pipelines, and fades.

    suspicion = Suspicion()
    suspicion.learn(uid, attempts.all())       # as often as one likes: an attempt counts once
    suspicion.scores(now)                      # {"node-7": 1.7, "node-2": 0.1}, the worst first

The table is a memory of the attempts' records, which a controller that starts anew reads again. They are evidence that
pods' owners can write, so that no pipeline's word counts for more than `MOST_OF_ONE`, and nothing follows but that the
scheduler prefers other nodes: pods can always be scheduled.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping, Sequence

from nanochat.pipeline.outcomes import Outcome, Reason
from operators.attempts import JobAttempt

HALF_LIFE = 6 * 3600.0  # seconds
STOOD, SHARED = 1.0, 0.3  # for one attempt: on the nodes of ranks that stood, and where it is not known which did
MOST_OF_ONE = 3.0  # that one pipeline can add to a node
LEAST = 0.02  # below it a node is suspected no more
MOST_NODES = 16  # that are told of, and avoided
MOST_BLAMED = 20  # latest attempts of a pipeline that count
MOST_PIPELINES = 2000
_NODE = re.compile(r"(?!.{254})[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")

Blame = tuple[float, Mapping[str, float]]  # when it ended, and how much it adds to each node


def _bounded(nodes: Mapping[str, float]) -> dict[str, float]:
    """The possible nodes of a record alone: the API server refuses pods that avoid anything else."""
    told = [(node, min(weight, STOOD)) for node, weight in nodes.items() if _NODE.fullmatch(node)]
    return dict(told[:MOST_NODES])


def blame(record: JobAttempt, outcome: Outcome, stood: Sequence[str]) -> dict[str, float]:
    """The amount that an attempt's end adds to each node; on those in `stood` ranks are known to have stood."""
    own = sorted(set(record.placement.values())) or list(record.hosts)
    if outcome.reason is Reason.STALLED:
        nodes, weight = list(stood) if len(own) > 1 else own, STOOD
    elif outcome.reason is Reason.INFRASTRUCTURE:
        nodes, weight = [], SHARED
        if outcome.rank is not None and not outcome.peer_lost:  # who lost a peer is not the one that was lost
            nodes = [node for index, node in record.placement.items() if index == record.index_of(outcome.rank)]
    else:
        return {}
    if not nodes:
        nodes, weight = own, SHARED
    return {node: weight / len(nodes) for node in nodes[:MOST_NODES]}


class Suspicion:
    """The suspicion of all nodes; safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._blames: dict[str, Sequence[Blame]] = {}  # by pipeline

    def learn(self, uid: str, records: Sequence[JobAttempt]) -> None:
        """Take in what the records of a pipeline say."""
        blames = [(record.ended or 0.0, _bounded(record.blame)) for record in records if record.blame]
        with self._lock:
            self._blames.pop(uid, None)
            if blames:
                self._blames[uid] = blames[-MOST_BLAMED:]
            while len(self._blames) > MOST_PIPELINES:
                self._blames.pop(next(iter(self._blames)))

    def scores(self, now: float) -> dict[str, float]:
        """The nodes that are suspected, the worst first."""
        with self._lock:
            pipelines = list(self._blames.values())
        total: dict[str, float] = {}
        for blames in pipelines:
            own: dict[str, float] = {}
            for ended, nodes in blames:
                faded = 0.5 ** (max(0.0, now - ended) / HALF_LIFE)
                for node, weight in nodes.items():
                    own[node] = own.get(node, 0.0) + weight * faded
            for node, score in own.items():
                total[node] = total.get(node, 0.0) + min(score, MOST_OF_ONE)
        worst = sorted(total, key=lambda node: (-total[node], node))[:MOST_NODES]
        return {node: round(total[node], 3) for node in worst if total[node] >= LEAST}
