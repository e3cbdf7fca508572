{{- define "nanochat.name" -}}{{ .Release.Name }}-controller{{- end -}}
{{- define "nanochat.labels" -}}
app.kubernetes.io/name: nanochat
app.kubernetes.io/component: controller
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end -}}
