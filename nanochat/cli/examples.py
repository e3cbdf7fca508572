"""The end of each command's help: lines to copy, and the variables of the environment that it reads.

add_examples(app)      # once all commands are there
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import typer

STORE = {
    "NANOCHAT_ROOT": "the store: a folder, or an address such as s3://bucket/prefix",
    "NANOCHAT_HOME": "folder of this machine's cache, locks and work; ~/.cache/nanochat",
    "NANOCHAT_PROFILES": "file of store profiles; ~/.config/nanochat/profiles.yaml",
    "MLFLOW_TRACKING_URI": "MLflow's server or database",
}
ENDPOINT = {"NANOCHAT_ENDPOINT": "address of the object storage that NANOCHAT_ROOT is in"}
CLUSTER = {"KUBECONFIG": "the kubeconfig; ~/.kube/config"}
SOURCES = {
    "HF_TOKEN": "token for gated data of the hub",
    "HF_ENDPOINT": "address of another hub",
}
SERVER = {
    "NANOCHAT_API_KEYS": "keys, with commas between them, one of which each request must have",
    "NANOCHAT_KEY_REQUESTS_PER_MINUTE": "requests that each key may make in a minute",
    "NANOCHAT_ALLOWED_HOSTS": "names that the server may be called by, besides localhost",
    "NANOCHAT_ALLOWED_ORIGINS": "web pages whose scripts may ask",
}
ALL = STORE | ENDPOINT | CLUSTER | SOURCES

# Of each command: examples, and the variables that are read.
HELP: Mapping[str, tuple[Sequence[str], Mapping[str, str]]] = {
    "run": (
        [
            "nanochat run k8s/pipelines/demo.yaml",
            "nanochat run k8s/pipelines/demo.yaml --set model.depth=6 --from base",
        ],
        STORE | SOURCES,
    ),
    "plan": (
        ["nanochat plan k8s/pipelines/demo.yaml", "nanochat plan k8s/pipelines/speedrun.yaml --device A100 --json"],
        STORE | SOURCES,
    ),
    "retry": (["nanochat retry demo", "nanochat retry speedrun -n chat"], STORE | CLUSTER),
    "status": (
        ["nanochat status", "nanochat status demo --watch", "nanochat status speedrun -n chat"],
        STORE | CLUSTER,
    ),
    "runs": (["nanochat runs", "nanochat runs demo --limit 5", "nanochat runs -n chat"], STORE | CLUSTER),
    "logs": (
        ["nanochat logs demo base", "nanochat logs speedrun base --follow -n chat"],
        STORE | CLUSTER,
    ),
    "cancel": (["nanochat cancel demo", "nanochat cancel speedrun -n chat"], STORE | CLUSTER),
    "report": (["nanochat report demo", "nanochat report speedrun --markdown -n chat"], STORE | CLUSTER),
    "submit": (
        ["nanochat submit k8s/pipelines/speedrun.yaml -n chat --set suspend=true"],
        CLUSTER,
    ),
    "suspend": (["nanochat suspend speedrun -n chat"], CLUSTER),
    "resume": (["nanochat resume speedrun -n chat"], CLUSTER),
    "rollback": (["nanochat rollback demo", "nanochat rollback demo --to 3"], STORE | CLUSTER),
    "gc": (["nanochat gc --dry-run", "nanochat gc --keep-runs 1 --unfinished"], STORE),
    "eval": (["nanochat eval demo --tasks world-facts,world-math --rows 100"], STORE | SOURCES),
    "compare": (["nanochat compare demo/base demo/sft --items 3"], STORE),
    "export": (["nanochat export demo ./demo-hf"], STORE),
    "pull": (["nanochat pull demo ./demo-model", "nanochat pull champion ./champion"], STORE),
    "ui": (["nanochat ui", "nanochat ui --port 5001 -n chat"], STORE | CLUSTER),
    "import": (["nanochat import ./demo-hf"], STORE),
    "doctor": (
        ["nanochat doctor k8s/pipelines/speedrun.yaml", "nanochat doctor k8s/pipelines/speedrun.yaml -n chat"],
        STORE | SOURCES | CLUSTER,
    ),
    "chat": (
        [
            "nanochat chat demo",
            "nanochat chat champion --prompt 'Who are you?'",
            "nanochat chat --url http://127.0.0.1:8000",
        ],
        {"NANOCHAT_API_KEY": "key for the server at --url"} | STORE,
    ),
    "serve": (["nanochat serve demo", "nanochat serve champion --port 8080 --slots 16"], SERVER | STORE),
    "completion": (
        ["source <(nanochat completion bash)", "nanochat completion fish > ~/.config/fish/completions/nanochat.fish"],
        {},
    ),
    "identity generate": (
        ["nanochat identity generate me.jsonl --name Robin --maker 'the Example team'"],
        {"OPENAI_API_KEY": "key for the endpoint at --url"},
    ),
    "bench train": (["nanochat bench train --steps 2", "nanochat bench train --processes 2 --stage sft"], {}),
    "bench data": (["nanochat bench data"], {}),
    "bench checkpoint": (["nanochat bench checkpoint"], {}),
    "bench startup": (["nanochat bench startup"], {}),
    "bench infer": (["nanochat bench infer --tokens 32"], {}),
    "bench serve": (["nanochat bench serve demo --rate 2 --conversations 50"], STORE),
    "bench recipe": (["nanochat bench recipe shards --seconds 60 --seeds 2"], {}),
}


def add_examples(app: typer.Typer, within: str = "") -> None:
    """Give every command of an app, and of those in it, the end of its help; the app itself names all variables."""
    if not within:
        app.info.epilog = epilog(["nanochat run k8s/pipelines/demo.yaml", "nanochat chat demo"], ALL)
    for command in app.registered_commands:
        name = command.name or getattr(command.callback, "__name__", "")
        if found := HELP.get(f"{within} {name}".strip()):
            command.epilog = epilog(*found)
    for group in app.registered_groups:
        if group.typer_instance is not None:
            add_examples(group.typer_instance, f"{within} {group.name}".strip())


def epilog(examples: Sequence[str], variables: Mapping[str, str]) -> str:
    """The text below a command's options, with its line breaks kept."""
    parts = ["\b", "Examples:", *(f"  {line}" for line in examples)]
    if variables:
        parts += ["", "\b", "Environment:", *(f"  {name}: {what}" for name, what in variables.items())]
    return "\n".join(parts)
