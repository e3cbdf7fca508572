#!/bin/sh
# Runs a pipeline on the cluster of `make kind-up`, follows its logs, and asks the chat API a question through the API
# server: no port is opened on this machine.
# Usage: kind-demo.sh CONTEXT FILE [--set path=value ...]
set -eu
context=$1 file=$2
shift 2
name=$(sed -n 's/^ *name: *//p' "$file" | head -n 1)
kubectl="kubectl --context $context -n nanochat"

nanochat submit "$file" "$@" -n nanochat --context "$context"
nanochat logs "$name" --follow -n nanochat --context "$context"
nanochat status "$name" -n nanochat --context "$context"
$kubectl get cp "$name"
[ "$($kubectl get cp "$name" -o 'jsonpath={.status.phase}')" = Succeeded ]

echo "The model is released; the server takes it up."
$kubectl wait deployment/nanochat-inference --for=condition=Available --timeout=5m
echo "Who are you?"
question='{"messages": [{"role": "user", "content": "Who are you?"}], "max_tokens": 64, "temperature": 0}'
echo "$question" | $kubectl create --raw \
    /api/v1/namespaces/nanochat/services/http:nanochat-inference:80/proxy/v1/chat/completions -f - |
    python3 -c 'import json, sys; print(json.load(sys.stdin)["choices"][0]["message"]["content"])'
echo "Talk on: $kubectl port-forward service/nanochat-inference 8000:80, then http://127.0.0.1:8000"
