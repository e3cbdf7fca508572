#!/bin/sh
# Runs a pipeline on the cluster of `make kind-up`, follows its logs, and asks the chat API a question.
# Usage: kind-demo.sh CONTEXT FILE [--set path=value ...]
set -eu
context=$1 file=$2
shift 2
name=$(sed -n 's/^ *name: *//p' "$file" | head -n 1)
kubectl="kubectl --context $context"

nanochat submit "$file" "$@" -n chat --context "$context"
nanochat logs "$name" --follow -n chat --context "$context"
nanochat status "$name" -n chat --context "$context"
$kubectl -n chat get cp "$name"
[ "$($kubectl -n chat get cp "$name" -o 'jsonpath={.status.phase}')" = Succeeded ]

echo "The model is released; the server takes it up."
$kubectl -n nanochat wait deployment/nanochat-inference --for=condition=Available --timeout=5m
echo "Who are you?"
question='{"messages": [{"role": "user", "content": "Who are you?"}], "max_tokens": 64, "temperature": 0}'
log=$(mktemp)
$kubectl -n nanochat port-forward service/nanochat-inference :80 >"$log" &
forward=$!
trap 'kill $forward; rm -f "$log"' EXIT
until grep -q "^Forwarding" "$log"; do
    kill -0 $forward
    sleep 0.2
done
address=$(sed -n 's/^Forwarding from \(127[^ ]*\) .*/\1/p' "$log")
curl -sS --fail-with-body "http://$address/v1/chat/completions" -H "Content-Type: application/json" -d "$question" |
    python3 -c 'import json, sys; print(json.load(sys.stdin)["choices"][0]["message"]["content"])'
echo "Talk on: $kubectl -n nanochat port-forward service/nanochat-inference 8000:80, then http://127.0.0.1:8000"
