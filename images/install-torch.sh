#!/bin/sh
# Installs PyTorch: the CUDA build where an NVIDIA GPU is present, else the CPU build (several GB smaller) from PyTorch's
# own CPU index where that can be reached, else from the places that pip is configured with.
# Usage: install-torch.sh PYTHON VERSION CPU_INDEX
set -eu
python=$1 version=$2 index=$3

install() {
    echo "Installing PyTorch $version $1."
    shift
    exec "$python" -m pip install -qq "torch==$version" "$@"
}

if "$python" -c "import torch" 2>/dev/null; then
    exit 0
fi
if command -v nvidia-smi >/dev/null 2>&1; then
    install "with CUDA, several GB"
fi
if [ "$(uname -s)" = Darwin ] || [ -z "$index" ]; then
    install "from pip's index"
fi
reachable="import sys, urllib.request; urllib.request.urlopen(sys.argv[1] + '/torch/', timeout=10)"
if "$python" -c "$reachable" "$index" 2>/dev/null; then
    install "for CPUs, from $index" --index-url "$index"
fi
install "from pip's index, for $index cannot be reached"
