"""Pipelines for the cluster: small ones, so that what is tested is the controller and not the CPUs."""

from __future__ import annotations

import copy
import os
import time
from typing import Any

import yaml

# Another one each time, so that no artifact of an earlier run serves; who mends a test may want them to.
SEED = int(os.environ.get("NANOCHAT_TEST_SEED") or time.time())

WORLD = """
apiVersion: nanochat.dev/v1alpha1
kind: ChatPipeline
metadata: {name: small}
spec:
  model: {depth: 2, width: 64, headDim: 32, sequenceLength: 128}
  sources: {text: {kind: world, charactersPerShard: 400000, shards: 1, validationShard: 9}}
  retries: {delaySeconds: 2, stallSeconds: 60}
  stopGraceSeconds: 20
  stages:
    tokenizer: {vocabSize: 512, maxChars: 400000}
    base:
      nodes: 2
      processesPerNode: 1
      steps: 60
      totalBatchTokens: 2048
      deviceBatchSize: 8
      checkpointEvery: 50
      compile: never
      evalEvery: 0
      evalTokens: 1024
      sampleEvery: 0
    mid:
      mixture: [{task: world-facts, rows: 200}]
      validation: [{task: world-facts, split: test, rows: 20}]
      steps: 3
      totalBatchTokens: 1024
      deviceBatchSize: 8
      compile: never
      evalTokens: 512
    sft:
      nodes: 2
      processesPerNode: 1
      mixture: [{task: world-sums, rows: 200}]
      validation: [{task: world-facts, split: test, rows: 20}]
      steps: 3
      rowsPerStep: 4
      compile: never
    rl: {enabled: false}
    evalBase: {core: false, bitsPerByteTokens: 512}
    evalChat: {tasks: [{task: world-sums}], maxPerTask: 4, maxNewTokens: 8, samplePrompts: ["Hi"]}
    release: {enabled: false}
"""

REAL = """
apiVersion: nanochat.dev/v1alpha1
kind: ChatPipeline
metadata: {name: real}
spec:
  model: {depth: 2, width: 128, headDim: 64, sequenceLength: 256}
  sources: {mirror: "http://mirror.storage:8000", text: {shards: 1, validationShard: 7}}
  retries: {delaySeconds: 2}
  stopGraceSeconds: 20
  stages:
    tokenizer: {vocabSize: 2048, maxChars: 2000000}
    base:
      nodes: 2
      processesPerNode: 1
      steps: 60
      totalBatchTokens: 4096
      deviceBatchSize: 8
      checkpointEvery: 20
      compile: never
      evalEvery: 0
      evalTokens: 4096
      sampleEvery: 0
    mid:
      mixture: [{task: smoltalk, rows: 200}, {task: gsm8k, rows: 100}, {task: identity}]
      validation: [{task: smoltalk, split: test, rows: 20}]
      steps: 10
      totalBatchTokens: 4096
      deviceBatchSize: 8
      compile: never
      evalTokens: 4096
    sft:
      nodes: 2
      processesPerNode: 1
      mixture: [{task: arc-easy, rows: 60}, {task: gsm8k, rows: 60}]
      validation: [{task: smoltalk, split: test, rows: 16}]
      steps: 6
      rowsPerStep: 8
      compile: never
      evalRows: 16
    rl:
      tasks: [{task: gsm8k, rows: 8}]
      steps: 2
      promptsPerStep: 2
      samplesPerPrompt: 2
      maxNewTokens: 16
      compile: never
      evalEvery: 2
      evalRows: 2
    evalBase: {coreMaxPerTask: 2, bitsPerByteTokens: 4096}
    evalChat: {maxPerTask: 2, maxNewTokens: 16, samplePrompts: ["Who are you?"]}
"""


def document(text: str, name: str, **changes: Any) -> dict[str, Any]:
    """A pipeline's document with another name and changed settings (`stages.base.steps` -> value)."""
    data = copy.deepcopy(yaml.safe_load(text))
    data["metadata"]["name"] = name
    data["spec"]["seed"] = SEED
    for path, value in changes.items():
        *parents, last = path.split(".")
        node = data["spec"]
        for part in parents:
            node = node.setdefault(part, {})
        node[last] = value
    return data
