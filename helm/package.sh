#!/bin/sh
# Packs the chart into dist/nanochat-VERSION.tgz: `make chart`. With a registry its images come from there where values name no
# other; with a repository, as in https://github.com/owner/name, that is its home.
# Usage: package.sh REGISTRY REPOSITORY
set -eu
cd "$(dirname "$0")/.."
registry=$1 repository=$2
work=$(mktemp -d)
trap 'rm -r "$work"' EXIT
cp -r helm/nanochat "$work"
cd "$work/nanochat"

# edit FILE EXPRESSION: sed in place, whichever sed it is
edit() {
    sed "$2" "$1" >"$work/edited"
    if cmp -s "$1" "$work/edited"; then echo "package.sh: nothing in $1 is as $2 expects it" >&2; exit 1; fi
    cat "$work/edited" >"$1"
}

if [ -n "$registry" ]; then
    edit values.yaml "/^images:/,/^[a-z]/s|^  registry: \"\"|  registry: $registry|"
    edit README.md "s#^| \`images.registry\` | \`\"\"\`#| \`images.registry\` | \`\"$registry\"\`#"
fi
if [ -n "$repository" ]; then edit Chart.yaml "s|https://github.com/OWNER/nanochat-kubernetes|$repository|"; fi
cd - >/dev/null
mkdir -p dist
helm package "$work/nanochat" -d dist
