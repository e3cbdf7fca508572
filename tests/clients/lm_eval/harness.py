"""lm-evaluation-harness over a server and an exported folder: `python harness.py SERVER EXPORTED TASKS CONTEXT`.

It lives in an environment of its own and imports nothing of this project. TASKS declares the tasks `choice`, `words`
and `sums`. It prints a JSON object: the harness's version, and by way and task a list of what became of each item.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version

from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

server, exported, folder, length = sys.argv[1:5]
WAYS = {
    "local-completions": (
        "local-completions",
        f"model=nanochat,base_url={server}/v1/completions,max_length={int(length) - 1},num_concurrent=1",
        ["choice", "words"],
        False,
    ),
    "local-chat-completions": (
        "local-chat-completions",
        f"model=nanochat,base_url={server}/v1/chat/completions,max_length={length},num_concurrent=4",
        ["sums"],
        True,
    ),
    "hf": ("hf", f"pretrained={exported},dtype=float32,add_bos_token=True", ["choice", "words"], False),
    "hf, chats": ("hf", f"pretrained={exported},dtype=float32", ["sums"], True),
}

found: dict[str, dict[str, list]] = {}
tasks = TaskManager(include_path=folder, include_defaults=False)
for name, (model, arguments, wanted, chat) in WAYS.items():
    results = simple_evaluate(
        model=model, model_args=arguments, tasks=wanted, task_manager=tasks, apply_chat_template=chat, batch_size=1,
        device="cpu", bootstrap_iters=0,
    )  # fmt: skip
    found[name] = {
        task: [
            {"answers": sample["filtered_resps"], "right": sample.get("acc", sample.get("exact_match"))}
            for sample in sorted(samples, key=lambda sample: sample["doc_id"])
        ]
        for task, samples in results["samples"].items()
    }
print(json.dumps({"version": version("lm_eval"), "found": found}))
