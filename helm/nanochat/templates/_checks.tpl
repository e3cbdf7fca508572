{{- /* Values that values.schema.json cannot compare: include "nanochat.checkParts" $ */ -}}
{{- define "nanochat.checkParts" -}}
{{- $parts := dict "controller" .Values.controller "mlflow" .Values.mlflow "devStore" .Values.devStore "inference" .Values.inference -}}
{{- range $name, $part := $parts -}}
{{- include "nanochat.checkResources" (list (print $name ".resources") $part.resources) -}}
{{- include "nanochat.checkLabels" (list (print $name ".podLabels") $part.podLabels) -}}
{{- end -}}
{{- include "nanochat.checkLabels" (list "commonLabels" .Values.commonLabels) -}}
{{- range $name, $pool := .Values.pools -}}
{{- $pods := $pool.pods | default dict -}}
{{- include "nanochat.checkResources" (list (printf "pools.%s.pods.resources" $name) $pods.resources) -}}
{{- include "nanochat.checkBytes" (list (printf "pools.%s.memoryLimit" $name) $pool.memoryLimit) -}}
{{- include "nanochat.checkBytes" (list (printf "pools.%s.pods.sharedMemory" $name) $pods.sharedMemory) -}}
{{- end -}}
{{- end -}}

{{- /* Requests and limits that no pod can have: include "nanochat.checkResources" (list "controller.resources" $resources) */ -}}
{{- define "nanochat.checkResources" -}}
{{- $where := index . 0 -}}{{- $resources := index . 1 | default dict -}}
{{- $requests := $resources.requests | default dict -}}{{- $limits := $resources.limits | default dict -}}
{{- range $side := list $requests $limits -}}
{{- range $name, $quantity := $side -}}
{{- if eq $name "nvidia.com/gpu" -}}
{{- fail (printf "%s: GPUs are asked for by inference.gpus and by gpusPerNode of stages, not by %s." $where $name) -}}
{{- end -}}
{{- if and (eq $name "cpu") (gt (include "nanochat.amount" $quantity | float64) 4096.0) -}}
{{- fail (printf "%s: cpu %v is more than 4096 cores: correct its unit." $where $quantity) -}}
{{- end -}}
{{- if has $name (list "memory" "ephemeral-storage") -}}
{{- include "nanochat.checkBytes" (list (printf "%s: %s" $where $name) $quantity) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- range $name, $quantity := $requests -}}
{{- if and (hasKey $limits $name) (contains "/" $name) (ne (toString $quantity) (toString (index $limits $name))) -}}
{{- fail (printf "%s: the request of %s (%v) must be its limit (%v)." $where $name $quantity (index $limits $name)) -}}
{{- end -}}
{{- if and (hasKey $limits $name) (gt (include "nanochat.amount" $quantity | float64) (include "nanochat.amount" (index $limits $name) | float64)) -}}
{{- fail (printf "%s: the request of %s (%v) is above its limit (%v): lower the one, or raise the other." $where $name $quantity (index $limits $name)) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* A number of bytes whose unit was forgotten: include "nanochat.checkBytes" (list "pools.cpu.memoryLimit" "16Gi") */ -}}
{{- define "nanochat.checkBytes" -}}
{{- $quantity := index . 1 -}}
{{- if and (not (kindIs "invalid" $quantity)) (lt (include "nanochat.amount" $quantity | float64) 16777216.0) -}}
{{- fail (printf "%s is %v, and 16Mi are the least: write its unit." (index . 0) $quantity) -}}
{{- end -}}
{{- end -}}

{{- /* The number that a quantity means: include "nanochat.amount" "16Gi" */ -}}
{{- define "nanochat.amount" -}}
{{- $units := dict "" 1.0 "m" 0.001 "k" 1e3 "M" 1e6 "G" 1e9 "T" 1e12 "P" 1e15 "Ki" 1024.0 "Mi" 1048576.0 "Gi" 1073741824.0 "Ti" 1099511627776.0 "Pi" 1125899906842624.0 -}}
{{- if kindIs "string" . -}}
{{- mulf (regexFind "^[0-9.]+" . | float64) (index $units (regexFind "[A-Za-z]*$" .)) -}}
{{- else -}}
{{- float64 . -}}
{{- end -}}
{{- end -}}

{{- /* Labels by which the chart finds its own pods: include "nanochat.checkLabels" (list "commonLabels" .Values.commonLabels) */ -}}
{{- define "nanochat.checkLabels" -}}
{{- $where := index . 0 -}}
{{- range $name, $value := index . 1 -}}
{{- if regexMatch "^(app\\.kubernetes\\.io/(name|instance|component|version|part-of|managed-by)|helm\\.sh/chart)$" $name -}}
{{- fail (printf "%s: the chart sets the label %s itself: choose another name." $where $name) -}}
{{- end -}}
{{- end -}}
{{- end -}}
