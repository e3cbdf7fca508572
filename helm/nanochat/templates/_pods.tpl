{{- /* Metadata of a part's pods: include "nanochat.podMetadata" (list $ "controller" .Values.controller) */ -}}
{{- define "nanochat.podMetadata" -}}
{{- $part := index . 2 -}}
labels:
  {{- include "nanochat.selector" . | nindent 2 }}
  {{- with $part.podLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with $part.podAnnotations }}
annotations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- /* What all pods have: include "nanochat.pod" (list $ .Values.controller). Service links would put variables such as
NANOCHAT_STORE_PORT into the processes, which read their own NANOCHAT_ ones. */ -}}
{{- define "nanochat.pod" -}}
{{- $root := index . 0 -}}{{- $part := index . 1 -}}
enableServiceLinks: false
{{- with $root.Values.images.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- with $part.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with $part.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- $gpu := ternary (list (dict "key" "nvidia.com/gpu" "operator" "Exists" "effect" "NoSchedule")) list (gt (int $part.gpus) 0) }}
{{- with concat $part.tolerations $gpu }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $part.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: 1000
  runAsGroup: 1000
  fsGroup: 1000
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "nanochat.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{- /* A service account that gets no token of the API server unless a pod asks for it. */ -}}
{{- define "nanochat.serviceAccount" -}}
{{- $part := index . 2 -}}
apiVersion: v1
kind: ServiceAccount
metadata:
  {{- include "nanochat.metadata" . | nindent 2 }}
  {{- with $part.serviceAccount.annotations }}
  annotations: {{- toYaml . | nindent 4 }}
  {{- end }}
automountServiceAccountToken: false
{{- end -}}

{{- /* The name of a part's claim: include "nanochat.claimName" (list $ "mlflow" .Values.mlflow.persistence) */ -}}
{{- define "nanochat.claimName" -}}
{{- (index . 2).existingClaim | default (include "nanochat.name" .) -}}
{{- end -}}

{{- /* The size of a claim: what is asked for, or what it has where that is more, for none can shrink. */ -}}
{{- define "nanochat.claimSize" -}}
{{- $found := lookup "v1" "PersistentVolumeClaim" (index . 0).Release.Namespace (include "nanochat.claimName" .) | default dict -}}
{{- $has := dig "spec" "resources" "requests" "storage" "" $found -}}
{{- $asked := (index . 2).size | default $has | default "100Gi" -}}
{{- ternary $has $asked (and (ne $has "") (gt (include "nanochat.amount" $has | float64) (include "nanochat.amount" $asked | float64))) -}}
{{- end -}}

{{- /* A claim that outlives the release, and is found again by one of the same name in the same namespace. */ -}}
{{- define "nanochat.claim" -}}
{{- $persistence := index . 2 -}}
apiVersion: v1
kind: PersistentVolumeClaim
metadata:
  {{- include "nanochat.metadata" . | nindent 2 }}
  annotations: {helm.sh/resource-policy: keep}
spec:
  accessModes: [ReadWriteOnce]
  {{- with $persistence.storageClassName }}
  storageClassName: {{ . }}
  {{- end }}
  resources: {requests: {storage: {{ include "nanochat.claimSize" . }}}}
{{- end -}}
