#!/bin/sh
# Pins what only its own registry knows: PyTorch's CPU build, by its hashes, in images/torch-cpu.lock, and the base image, by
# its digest, in images/Dockerfile: `make lock-upstream`, where both can be reached. Docker's buildx asks for the digest.
# Usage: lock-upstream.sh PYTHON_WITH_UV TORCH_VERSION CPU_INDEX
set -eu
cd "$(dirname "$0")/.."
python=$1 version=$2 index=$3
scratch=$(mktemp -d)
trap 'rm -r "$scratch"' EXIT

tag=$(sed -n 's/^ARG PYTHON=\([^@]*\).*/\1/p' images/Dockerfile)
digest=$(docker buildx imagetools inspect "$tag" --format '{{.Manifest.Digest}}') || {
    echo "The registry of $tag cannot be reached, or Docker has no buildx: nothing is changed." >&2; exit 1; }
case $digest in
    sha256:????????????????????????????????????????????????????????????????) ;;
    *) echo "Docker gave no digest of $tag: nothing is changed." >&2; exit 1 ;;
esac
echo "torch==$version+cpu" >"$scratch/torch.in"
"$python" -m uv pip compile --quiet --python-version 3.11 --python-platform x86_64-manylinux_2_28 --generate-hashes \
    --no-header --no-annotate --default-index "$index" -o "$scratch/torch-cpu.lock" "$scratch/torch.in" || {
    echo "$index cannot be reached, or has no $version+cpu: nothing is changed." >&2; exit 1; }
mv "$scratch/torch-cpu.lock" images/torch-cpu.lock
sed "s|^ARG PYTHON=.*|ARG PYTHON=$tag@$digest|" images/Dockerfile >"$scratch/Dockerfile"
cat "$scratch/Dockerfile" >images/Dockerfile
echo "$tag is pinned by $digest, and PyTorch $version for CPUs by images/torch-cpu.lock."
