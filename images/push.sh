#!/bin/sh
# Builds the four images and pushes them to a registry: `make push REGISTRY=registry.example.org/team`.
#
# trainer and server are for x86-64, as NVIDIA's packages are pinned for it; operator and mlflow are for ARM too, where buildx
# has a builder that can. With --attest, which takes such a builder, each has a bill of materials and its provenance attached,
# and dist/images.txt lists what was pushed by digest, for whoever signs it.
# Usage: push.sh REGISTRY TAG ACCELERATOR TORCH_VERSION TORCH_CPU_INDEX [--attest]
set -eu
cd "$(dirname "$0")/.."
registry=$1 tag=$2 accelerator=$3 torch=$4 index=$5 attest=${6:-}
case $registry in
'' | *://* | */) echo "push.sh: '$registry' is no registry: name it as in registry.example.org/team" >&2; exit 1 ;;
esac

builder=$(docker buildx inspect --bootstrap 2>/dev/null || true)
driver=$(echo "$builder" | sed -n 's/^Driver: *//p')
both=linux/amd64
if [ -z "$driver" ] || [ "$driver" = docker ]; then # that of Docker itself builds for one platform, and attests nothing
    driver=
    echo "There is no builder of buildx's own (docker buildx create --use): all images are for this machine's platform."
    if [ -n "$attest" ]; then echo "push.sh: --attest takes one" >&2; exit 1; fi
elif echo "$builder" | grep -q '^Platforms:.*linux/arm64'; then
    both=linux/amd64,linux/arm64
fi

if [ -n "$attest" ]; then mkdir -p dist; : >dist/images.txt; fi
for target in trainer server operator mlflow; do
    image=$registry/nanochat-$target:$tag
    case $target in trainer | server) platform=linux/amd64 ;; *) platform=$both ;; esac
    set -- --target "$target" --build-arg "ACCELERATOR=$accelerator" --build-arg "TORCH_VERSION=$torch" \
        --build-arg "TORCH_CPU_INDEX=$index" --build-arg "COMMIT=$(git rev-parse HEAD)" -t "$image" -f images/Dockerfile
    if [ -z "$driver" ]; then
        docker build --quiet "$@" .
        docker push --quiet "$image"
    elif [ -z "$attest" ]; then
        docker buildx build --quiet --platform "$platform" --push "$@" .
    else
        docker buildx build --quiet --platform "$platform" --push --sbom=true --provenance=mode=max \
            --metadata-file dist/pushed.json "$@" .
        digest=$(sed -n 's/.*"containerimage.digest": *"\([^"]*\)".*/\1/p' dist/pushed.json)
        echo "$image@$digest" >>dist/images.txt
    fi
    echo "pushed $image"
done
