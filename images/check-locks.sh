#!/bin/sh
# Resolves anew what the images with CUDA are made of, with hashes and for their platform, and downloads no package:
# `make check-locks`. PyTorch's lock must come out as it is; the images' own locks must hold what PyTorch needs besides.
# Usage: check-locks.sh PYTHON_WITH_UV
set -eu
cd "$(dirname "$0")/.."
python=$1
scratch=$(mktemp -d)
trap 'rm -r "$scratch"' EXIT

# resolve WHAT COMMAND...
resolve() {
    what=$1
    shift
    if "$python" -m uv pip "$@" --quiet --python-version 3.11 --python-platform x86_64-manylinux_2_28 2>"$scratch/said"; then
        return
    elif grep -qiE "failed to fetch|error sending request|connect|dns|timed out" "$scratch/said"; then
        echo "$what is not checked, for the package index cannot be reached."
        exit 0
    fi
    cat "$scratch/said" >&2
    wrong "$what"
}

wrong() {
    echo "$1 does not hold what PyTorch needs: make it anew with make lock." >&2
    exit 1
}

lock=images/torch-cuda.lock
grep -o '^torch==[^ ]*' "$lock" >"$scratch/torch.in"
grep -o '^[a-z][^ ]*==[^ ]*' "$lock" >"$scratch/pins" # its versions stay, its hashes are asked for
resolve "$lock" compile --generate-hashes --no-header --no-annotate -c "$scratch/pins" -o "$scratch/torch-cuda.lock" \
    "$scratch/torch.in"
cmp -s "$lock" "$scratch/torch-cuda.lock" || wrong "$lock"
echo "$lock is whole: $(grep -c '^[a-z]' "$lock") packages."

# In an image the general packages are those of its own lock.
awk '/^[a-z]/ { kept = /^(torch|triton|nvidia-|cuda-)/ } kept' "$lock" >"$scratch/cuda.lock"
for image in trainer server; do
    resolve "images/$image.lock" install --dry-run --require-hashes --target "$scratch/target" -r "$scratch/cuda.lock" \
        -r "images/$image.lock"
    echo "images/$image.lock has what PyTorch for CUDA needs."
done
