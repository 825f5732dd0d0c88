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

{{/* What selects the pods: never changes between versions. */}}
{{- define "netpol-trace.selector" -}}
app.kubernetes.io/name: {{ include "netpol-trace.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
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

{{/* With hostNetwork the port is the node's own: probed on loopback. */}}
{{- define "netpol-trace.probe" -}}
{{- $root := index . 0 -}}
httpGet:
  {{- if and $root.Values.hostNetwork (not $root.Values.listen.address) }}
  host: 127.0.0.1
  {{- end }}
  path: {{ index . 1 }}
  port: metrics
{{- end -}}

{{/* The groups that the agents are in, as a list; nothing when there are none. */}}
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
