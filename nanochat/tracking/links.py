"""Addresses of MLflow's pages that open on runs. By itself MLflow's page opens on what it calls GenAI, on traces.

runs_page("http://localhost:5000", "1")     # of an experiment's id
page_of(store, folder, uri)                 # of a run, as far as MLflow knows it
"""

from __future__ import annotations

from urllib.parse import quote

from nanochat.parse.address import shown
from nanochat.storage import Store
from nanochat.storage.failures import Damaged
from nanochat.storage.records import read_object
from nanochat.tracking.mlflow import marker

_TRAINING = "workflowType=machine_learning"


def runs_page(address: str, experiment: str) -> str:
    """The page of all runs of an experiment, by its id."""
    return f"{address.rstrip('/')}/#/experiments/{quote(experiment, safe='')}/runs?{_TRAINING}"


def page_of(store: Store, folder: str, uri: str) -> str:
    """The page of a run, by its folder; '' where MLflow has no server, or does not know the run yet."""
    if not uri.startswith(("http://", "https://")):
        return ""
    try:
        told = read_object(store, marker(folder)) or {}
    except Damaged:
        return ""
    experiment, run = (str(told.get(name, "")) for name in ("experiment", "run"))
    if not experiment.isdecimal() or not run.isalnum():
        return ""
    return f"{shown(uri).rstrip('/')}/#/experiments/{experiment}/runs/{run}?{_TRAINING}"
