#!/bin/sh
# Installs the chart, or upgrades it, with the images that skaffold has built. An image that it has not built stays as it was.
set -eu
kubectl="kubectl -n nanochat --context $SKAFFOLD_KUBE_CONTEXT"
for built in $($kubectl get podtemplate skaffold-images \
    -o 'jsonpath={range .template.spec.containers[*]}{.name}={.image} {end}'); do
    case $built in *:*) set -- "$@" --set-string "${built%%=*}.image.tag=${built##*:}" ;; esac
done
helm upgrade --install nanochat helm/nanochat -n nanochat --kube-context "$SKAFFOLD_KUBE_CONTEXT" \
    -f helm/nanochat/values-kind.yaml --reset-then-reuse-values "$@"
$kubectl rollout status deployment/nanochat-controller --timeout=5m
