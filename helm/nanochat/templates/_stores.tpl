{{- define "nanochat.mlflowInChart" -}}
{{- if and .Values.mlflow.enabled (not .Values.mlflow.external.uri) }}true{{ end -}}
{{- end -}}

{{- /* The tracking server of profiles that name none; empty where there is none. */ -}}
{{- define "nanochat.tracking" -}}
{{- if .Values.mlflow.external.uri -}}
{{- .Values.mlflow.external.uri -}}
{{- else if .Values.mlflow.enabled -}}
{{- printf "http://%s.%s.svc:5000" (include "nanochat.name" (list . "mlflow")) .Release.Namespace -}}
{{- end -}}
{{- end -}}

{{- /* Whether the S3 server inside is installed. */ -}}
{{- define "nanochat.storeInside" -}}
{{- if kindIs "bool" .Values.devStore.enabled -}}
{{- ternary "true" "" .Values.devStore.enabled -}}
{{- else if not .Values.profiles -}}
true
{{- end -}}
{{- end -}}

{{- /* Whether the profile `default` is the S3 server inside. */ -}}
{{- define "nanochat.defaultInside" -}}
{{- if and (include "nanochat.storeInside" .) (not (hasKey (.Values.profiles | default dict) "default")) }}true{{ end -}}
{{- end -}}

{{- define "nanochat.storeEndpoint" -}}
{{- printf "http://%s.%s.svc:7070" (include "nanochat.name" (list . "store")) .Release.Namespace -}}
{{- end -}}

{{- /* The same data, of which nothing can be changed there. */ -}}
{{- define "nanochat.storeReader" -}}
{{- printf "http://%s.%s.svc:7071" (include "nanochat.name" (list . "store")) .Release.Namespace -}}
{{- end -}}

{{- /* The profiles with what is filled in, as YAML. */ -}}
{{- define "nanochat.profiles" -}}
{{- $profiles := .Values.profiles | default dict | deepCopy -}}
{{- if include "nanochat.defaultInside" . -}}
{{- $name := include "nanochat.name" (list . "store") -}}
{{- $_ := set $profiles "default" (dict "root" (printf "s3://%s" .Values.devStore.bucket) "endpoint" (include "nanochat.storeEndpoint" .) "region" "us-east-1" "secret" $name "controllerSecret" $name "readerSecret" (printf "%s-reader" $name) "readerEndpoint" (include "nanochat.storeReader" .)) -}}
{{- end -}}
{{- if not $profiles -}}
{{- fail "There is no store: set profiles.default.root (and its Secrets), or leave devStore.enabled at auto." -}}
{{- end -}}
{{- $tracking := include "nanochat.tracking" . -}}
{{- range $profiles -}}
{{- if and $tracking (not .tracking) }}{{ $_ := set . "tracking" $tracking }}{{ end -}}
{{- end -}}
{{- toYaml $profiles -}}
{{- end -}}

{{- /* One profile, as YAML, for the value that names it: include "nanochat.profile" (list $ "default" "inference.profile") */ -}}
{{- define "nanochat.profile" -}}
{{- $profiles := include "nanochat.profiles" (index . 0) | fromYaml -}}
{{- if not (hasKey $profiles (index . 1)) -}}
{{- fail (printf "%s: there is no profile '%s'; there are: %s." (index . 2) (index . 1) (keys $profiles | sortAlpha | join ", ")) -}}
{{- end -}}
{{- get $profiles (index . 1) | toYaml -}}
{{- end -}}

{{- /* A NetworkPolicy's rule for the port of a URI. */ -}}
{{- define "nanochat.toPort" -}}
{{- $port := regexFind ":[0-9]+$" (urlParse .).host | trimPrefix ":" | default (ternary "80" "443" (hasPrefix "http:" .)) -}}
ports: [{port: {{ $port }}}]
{{- end -}}
