{{- define "nanochat.fullname" -}}
{{- .Values.fullnameOverride | default .Release.Name | trunc 45 | trimSuffix "-" -}}
{{- end -}}

{{- /* The name of one part's objects: include "nanochat.name" (list $ "controller") */ -}}
{{- define "nanochat.name" -}}
{{- printf "%s-%s" (include "nanochat.fullname" (index . 0)) (index . 1) -}}
{{- end -}}

{{- /* Of cluster-scoped objects, so that releases of one name in two namespaces do not meet. */ -}}
{{- define "nanochat.clusterName" -}}
{{- $root := index . 0 -}}
{{- printf "%s-%s-%s" (include "nanochat.fullname" $root) $root.Release.Namespace (index . 1) -}}
{{- end -}}

{{- define "nanochat.releaseSelector" -}}
app.kubernetes.io/name: {{ .Values.nameOverride | default .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end -}}

{{- /* What a part's pods are selected by: include "nanochat.selector" (list $ "controller") */ -}}
{{- define "nanochat.selector" -}}
{{ include "nanochat.releaseSelector" (index . 0) }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{- define "nanochat.labels" -}}
{{- $root := index . 0 -}}
{{ include "nanochat.selector" . }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: nanochat
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" }}
{{- with $root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- /* A part's metadata but for annotations: include "nanochat.metadata" (list $ "controller") */ -}}
{{- define "nanochat.metadata" -}}
name: {{ include "nanochat.name" . }}
namespace: {{ (index . 0).Release.Namespace }}
labels: {{- include "nanochat.labels" . | nindent 2 }}
{{- end -}}

{{- /* An image of the project: include "nanochat.image" (list $ .Values.controller.image) */ -}}
{{- define "nanochat.image" -}}
{{- $root := index . 0 -}}{{- $image := index . 1 -}}
{{- $ours := dict "registry" ($image.registry | default $root.Values.images.registry) "tag" ($image.tag | default $root.Values.images.tag | default $root.Chart.AppVersion) -}}
{{- $reference := include "nanochat.reference" (merge $ours $image) -}}
{{- if not (or (contains "/" $reference) $root.Values.images.loaded (include "nanochat.runsLoaded" $root)) -}}
{{- fail (printf "There is no registry to pull %s from. Push the images to one, and name it:\n\n  make push REGISTRY=registry.example.org/team\n  helm %s %s helm/nanochat -n %s --create-namespace --set images.registry=registry.example.org/team\n\nWhere the nodes have the images already, as after kind load, set images.loaded=true." $reference (ternary "upgrade --install" "install" $root.Release.IsUpgrade) $root.Release.Name $root.Release.Namespace) -}}
{{- end -}}
{{- $reference -}}
{{- end -}}

{{- /* Whether the release that is upgraded runs with images of no registry: then the nodes have them. */ -}}
{{- define "nanochat.runsLoaded" -}}
{{- if .Release.IsUpgrade -}}
{{- $found := lookup "apps/v1" "Deployment" .Release.Namespace (include "nanochat.name" (list . "controller")) | default dict -}}
{{- range dig "spec" "template" "spec" "containers" list $found -}}
{{- if not (contains "/" .image) }}true{{ end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "nanochat.reference" -}}
{{- with .registry }}{{ . }}/{{ end }}{{ .repository }}{{ if .digest }}@{{ .digest }}{{ else }}:{{ .tag }}{{ end -}}
{{- end -}}

{{- /* The namespaces whose pipelines are run, as JSON; [] is all. */ -}}
{{- define "nanochat.namespaces" -}}
{{- if and (eq .Values.scope "namespaced") (not .Values.namespaces) -}}
{{- list .Release.Namespace | toJson -}}
{{- else -}}
{{- .Values.namespaces | uniq | toJson -}}
{{- end -}}
{{- end -}}
