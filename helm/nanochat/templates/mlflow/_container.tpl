{{- /* What the server and the upgrade of its tables have in common. */ -}}
{{- define "nanochat.mlflowContainer" }}
{{- $values := .Values.mlflow }}
{{- $database := $values.database.existingSecret }}
image: {{ include "nanochat.image" (list . $values.image) }}
imagePullPolicy: {{ .Values.images.pullPolicy }}
workingDir: /tmp
env:
  - {name: HOME, value: /tmp}
  - {name: MLFLOW_DISABLE_TELEMETRY, value: "true"}
  # Jobs are for features of which none is used here, and cost two more processes.
  - {name: MLFLOW_SERVER_ENABLE_JOB_EXECUTION, value: "false"}
  {{- if $database }}
  - {name: MLFLOW_BACKEND_STORE_URI, valueFrom: {secretKeyRef: {name: {{ $database }}, key: {{ $values.database.key | quote }}}}}
  {{- else }}
  - {name: MLFLOW_BACKEND_STORE_URI, value: "sqlite:////data/mlflow.db"}
  {{- end }}
  {{- with $values.modelSourceRegex }}
  - {name: MLFLOW_CREATE_MODEL_VERSION_SOURCE_VALIDATION_REGEX, value: {{ . | quote }}}
  {{- end }}
  {{- if $values.artifacts.destination }}
  {{- $profile := include "nanochat.profile" (list . $values.artifacts.profile "mlflow.artifacts.profile") | fromYaml }}
  {{- with $profile.endpoint }}
  - {name: MLFLOW_S3_ENDPOINT_URL, value: {{ . | quote }}}
  {{- end }}
  {{- with $profile.region }}
  - {name: AWS_DEFAULT_REGION, value: {{ . | quote }}}
  {{- end }}
  {{- if $profile.controllerSecret }}
  - {name: HF_TOKEN, value: ""} # the Secret may have it, for the stage that fetches data
  {{- end }}
  {{- end }}
  {{- with $values.env }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- if $values.artifacts.destination }}
{{- with (include "nanochat.profile" (list . $values.artifacts.profile "mlflow.artifacts.profile") | fromYaml).controllerSecret }}
envFrom: [{secretRef: {name: {{ . }}}}]
{{- end }}
{{- end }}
resources: {{- toYaml $values.resources | nindent 2 }}
securityContext: {{- include "nanochat.containerSecurity" . | nindent 2 }}
volumeMounts:
  - {name: tmp, mountPath: /tmp}
  {{- if or (not $database) (not $values.artifacts.destination) }}
  - {name: data, mountPath: /data}
  {{- end }}
{{- end }}
