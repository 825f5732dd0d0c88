{{- define "netpol-trace.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "netpol-trace.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" -}}
{{- else if contains (include "netpol-trace.name" .) .Release.Name -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "netpol-trace.name" .) | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* Labels that select the pods; they never change between versions. */}}
{{- define "netpol-trace.selector" -}}
app.kubernetes.io/name: {{ include "netpol-trace.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end -}}

{{- define "netpol-trace.labels" -}}
{{ include "netpol-trace.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/component: agent
app.kubernetes.io/part-of: netpol-trace
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}

{{- define "netpol-trace.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "netpol-trace.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "netpol-trace.image" -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) -}}
{{- end -}}
{{- end -}}

{{- define "netpol-trace.listenAddress" -}}
{{- if .Values.listen.address -}}
{{- .Values.listen.address -}}
{{- else if .Values.hostNetwork -}}
127.0.0.1
{{- else -}}
$(POD_IP)
{{- end -}}
{{- end -}}

{{/* The kubelet probes the pod's address by default. A loopback address must be given; with hostNetwork it is the node's, so the kubelet reaches it. */}}
{{- define "netpol-trace.probe" -}}
{{- $root := index . 0 -}}
{{- $address := include "netpol-trace.listenAddress" $root | trimPrefix "[" | trimSuffix "]" -}}
{{- $isLoopback := or (hasPrefix "127." $address) (eq "::1" $address) -}}
{{- if and $isLoopback (not $root.Values.hostNetwork) -}}
{{- fail (printf "listen.address %s without hostNetwork is the pod's own loopback: the kubelet's probes do not reach it. Leave it empty; the API server's RBAC protects /metrics" $address) -}}
{{- end -}}
httpGet:
  {{- if $isLoopback }}
  host: {{ $address | quote }}
  {{- end }}
  path: {{ index . 1 | quote }}
  port: metrics
{{- end -}}

{{/* The agents' supplementary groups, as a list; nothing if there are none. */}}
{{- define "netpol-trace.groups" -}}
{{- $groups := list }}
{{- range .Values.supplementalGroups }}
{{- $groups = append $groups (int64 .) }}
{{- end }}
{{- if and (or .Values.history.enabled .Values.tail.enabled) (not (kindIs "invalid" .Values.history.group)) }}
{{- $groups = append $groups (int64 .Values.history.group) }}
{{- end }}
{{- with $groups | uniq }}
{{- toJson . }}
{{- end }}
{{- end }}
