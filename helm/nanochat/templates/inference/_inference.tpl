{{- /* Whether the controller writes the model into the Deployment. */ -}}
{{- define "nanochat.follows" -}}
{{- if and .Values.inference.enabled (not .Values.inference.modelUri) }}true{{ end -}}
{{- end -}}

{{- define "nanochat.inferenceScheme" -}}
{{- ternary "https" "http" (ne .Values.inference.tls.existingSecret "") -}}
{{- end -}}

{{- define "nanochat.inferenceProfile" -}}
{{- $profile := include "nanochat.profile" (list . .Values.inference.profile "inference.profile") | fromYaml -}}
{{- if and (include "nanochat.follows" .) (not $profile.tracking) -}}
{{- fail (printf "The chat API follows a model registry, and profile '%s' has none: set mlflow.enabled=true, mlflow.external.uri or profiles.%s.tracking, or inference.modelUri, or inference.enabled=false." .Values.inference.profile .Values.inference.profile) -}}
{{- end -}}
{{- toYaml $profile -}}
{{- end -}}

{{- /* What the schema can't say of one value alone. */ -}}
{{- define "nanochat.checkInference" -}}
{{- $values := .Values.inference -}}{{- $scaling := $values.autoscaling -}}
{{- /* After SIGTERM the server still answers for lingerSeconds, then has 60 s for what it has begun, and ends. */ -}}
{{- $least := add $values.lingerSeconds 65 -}}
{{- if lt (int $values.terminationGracePeriodSeconds) (int $least) -}}
{{- fail (printf "inference.terminationGracePeriodSeconds must be %d or more: lingerSeconds, the 60 s for unfinished answers, and 5 s." $least) -}}
{{- end -}}
{{- if ne $scaling.kind "none" -}}
{{- if gt (int $scaling.minReplicas) (int $scaling.maxReplicas) -}}
{{- fail "inference.autoscaling.minReplicas is above maxReplicas." -}}
{{- end -}}
{{- if not (or $scaling.targetCPU $scaling.targetWaiting) -}}
{{- fail "inference.autoscaling has no target: set targetCPU or targetWaiting." -}}
{{- end -}}
{{- if and (eq $scaling.kind "keda") $scaling.targetWaiting (not $scaling.prometheus) -}}
{{- fail "inference.autoscaling.prometheus is needed: KEDA asks it for waiting requests (or set targetWaiting=0)." -}}
{{- end -}}
{{- end -}}
{{- if and $values.ingress.enabled (not $values.ingress.host) -}}
{{- fail "inference.ingress.host is needed." -}}
{{- end -}}
{{- if and $values.httpRoute.enabled (not $values.httpRoute.parentRefs) -}}
{{- fail "inference.httpRoute.parentRefs is needed: the Gateways that the route belongs to." -}}
{{- end -}}
{{- end -}}
