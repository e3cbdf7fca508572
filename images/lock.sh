#!/bin/sh
# Resolves the dependencies of each image into images/<target>.lock, with hashes: `make lock`. PyTorch is not in them, its
# build is chosen when an image is built; what its CPU build needs is.
# Usage: lock.sh PYTHON_WITH_UV TORCH_VERSION CPU_INDEX
set -eu
cd "$(dirname "$0")/.."
python=$1 version=$2 index=$3
constraint=$(mktemp)
trap 'rm -f "$constraint"' EXIT
echo "torch==$version" >"$constraint"

# lock TARGET "PACKAGES LEFT OUT" OPTIONS...
lock() {
    target=$1 without=
    for package in $2; do without="$without --no-emit-package $package"; done
    shift 2
    if [ -n "${PIP_FIND_LINKS:-}" ]; then set -- "$@" --find-links "$PIP_FIND_LINKS"; else set -- "$@" --extra-index-url "$index"; fi
    "$python" -m uv pip compile --quiet --python-version 3.11 --python-platform x86_64-manylinux_2_28 --generate-hashes \
        --no-header --no-annotate --no-emit-package torch $without -c "$constraint" -o "images/$target.lock" "$@"
}

# Only the controller talks to the API server, and its client is large.
lock trainer kubernetes --extra train --extra gcs --extra azure pyproject.toml
lock server kubernetes --extra serve --extra gcs --extra azure pyproject.toml
lock operator "" --extra operator --extra gcs --extra azure pyproject.toml
# MLflow brings these for models that it serves and plots itself; its server starts and answers without them.
lock mlflow "scipy scikit-learn joblib threadpoolctl matplotlib contourpy cycler fonttools kiwisolver pillow pyparsing pyarrow docker" \
    images/mlflow.in
