#!/bin/sh
# Installs PyTorch: the CUDA build where an NVIDIA GPU is present, else the CPU build (several GB smaller) from PyTorch's
# own CPU index where that can be reached, else from the places that pip is configured with.
# Usage: install-torch.sh PYTHON VERSION CPU_INDEX
set -eu
python=$1 version=$2 index=$3

if "$python" -c "import torch" 2>/dev/null; then
    exit 0
fi
if command -v nvidia-smi >/dev/null 2>&1 || [ "$(uname -s)" = Darwin ] || [ -z "$index" ]; then
    exec "$python" -m pip install --quiet "torch==$version"
fi
reachable="import sys, urllib.request; urllib.request.urlopen(sys.argv[1] + '/torch/', timeout=10)"
if "$python" -c "$reachable" "$index" 2>/dev/null; then
    exec "$python" -m pip install --quiet "torch==$version" --index-url "$index"
fi
exec "$python" -m pip install --quiet "torch==$version"
