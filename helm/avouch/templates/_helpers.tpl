{{- define "avouch.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "avouch.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains (include "avouch.name" .) .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "avouch.name" .) | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "avouch.selector" -}}
app.kubernetes.io/name: {{ include "avouch.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{/* Labels of an object of the part named by .part: server, node-agent, backup or test. */}}
{{- define "avouch.labels" -}}
{{ include "avouch.selector" .root }}
app.kubernetes.io/component: {{ .part }}
app.kubernetes.io/part-of: avouch
app.kubernetes.io/version: {{ .root.Chart.AppVersion | replace "+" "_" | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "avouch.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{- define "avouch.pullSecrets" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
{{- range . }}
  - name: {{ . }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "avouch.podSecurity" -}}
runAsNonRoot: true
runAsUser: {{ .Values.pod.userId }}
runAsGroup: {{ .Values.pod.userId }}
fsGroup: {{ .Values.pod.userId }}
# Once: later it would open the server's own files to the group.
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "avouch.containerSecurity" -}}
allowPrivilegeEscalation: false
privileged: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities:
  drop: [ALL]
{{- end -}}

{{/* Bytes of a quantity such as 64Mi. */}}
{{- define "avouch.bytes" -}}
{{- if hasSuffix "Gi" . -}}
{{- mul (trimSuffix "Gi" . | int64) 1073741824 -}}
{{- else if hasSuffix "Mi" . -}}
{{- mul (trimSuffix "Mi" . | int64) 1048576 -}}
{{- else if hasSuffix "Ki" . -}}
{{- mul (trimSuffix "Ki" . | int64) 1024 -}}
{{- else -}}
{{- . | int64 -}}
{{- end -}}
{{- end -}}

{{/* How bytes are written, in whole MiB, rounded up. */}}
{{- define "avouch.mebibytes" -}}
{{- div (add (int64 .) 1048575) 1048576 -}}
{{- end -}}

{{/* Hashes at a time. */}}
{{- define "avouch.workers" -}}
{{- if gt (int .Values.password.workers) 0 -}}
{{- int .Values.password.workers -}}
{{- else if hasSuffix "m" .Values.resources.cpu.limit -}}
{{- max 1 (div (trimSuffix "m" .Values.resources.cpu.limit | int) 1000) -}}
{{- else -}}
{{- max 1 (int .Values.resources.cpu.limit) -}}
{{- end -}}
{{- end -}}

{{/* What the server needs, in bytes: a base, sled's cache half again, the hashes, what each connection
may send ahead, what waits to be sent, the sessions; and a quarter more. With etcd the server remembers
at most 131,072 records of about 1 KiB, and the sessions are not in its memory. */}}
{{- define "avouch.memory.parts" -}}
{{- $windows := include "avouch.setting.bytes" (dict "root" . "key" "connection_window_bytes") | int64 -}}
{{- $buffer := include "avouch.setting.bytes" (dict "root" . "key" "send_buffer_bytes") | int64 -}}
base: {{ mul 64 1048576 }}
cache: {{ if eq .Values.engine "sled" }}{{ div (mul (include "avouch.bytes" .Values.store.cache | int64) 3) 2 }}{{ else }}{{ mul 128 1048576 }}{{ end }}
hashes: {{ mul (include "avouch.workers" . | int64) (int64 .Values.password.memoryKib) 1024 }}
connections: {{ mul (int64 .Values.sizing.connections) $windows }}
streams: {{ mul (int64 .Values.sizing.busyStreams) $buffer }}
sessions: {{ if eq .Values.engine "sled" }}{{ mul (int64 .Values.sizing.sessions) 160 }}{{ else }}0{{ end }}
{{- end -}}

{{- define "avouch.setting.bytes" -}}
{{- $limits := default dict .root.Values.settings.limits -}}
{{- $text := toString (default "64KiB" (get $limits .key)) -}}
{{- include "avouch.bytes" (trimSuffix "B" $text) -}}
{{- end -}}

{{- define "avouch.memory.needed" -}}
{{- $sum := 0 -}}
{{- range $name, $bytes := include "avouch.memory.parts" . | fromYaml -}}
{{- $sum = add $sum (int64 $bytes) -}}
{{- end -}}
{{- div (mul $sum 5) 4 -}}
{{- end -}}

{{- define "avouch.memory" -}}
{{- if .Values.resources.memory -}}
{{- .Values.resources.memory -}}
{{- else -}}
{{- include "avouch.mebibytes" (include "avouch.memory.needed" .) -}}Mi
{{- end -}}
{{- end -}}

{{- define "avouch.agent.memory.needed" -}}
{{- add (mul 64 1048576) (mul (int64 .Values.nodeAgent.maxEntries) 64) -}}
{{- end -}}

{{- define "avouch.agent.memory" -}}
{{- if .Values.nodeAgent.memory -}}
{{- .Values.nodeAgent.memory -}}
{{- else -}}
{{- include "avouch.mebibytes" (include "avouch.agent.memory.needed" .) -}}Mi
{{- end -}}
{{- end -}}

{{- define "avouch.agent.namespace" -}}
{{- default .Release.Namespace .Values.nodeAgent.namespace -}}
{{- end -}}

{{/* How many servers there are, unless something scales them. */}}
{{- define "avouch.replicas" -}}
{{- if gt (int .Values.replicas) 0 -}}
{{- int .Values.replicas -}}
{{- else -}}
{{- ternary 3 1 (eq .Values.engine "etcd") -}}
{{- end -}}
{{- end -}}

{{/* How many there are at least. */}}
{{- define "avouch.replicas.least" -}}
{{- if .Values.autoscaling.enabled -}}
{{- int .Values.autoscaling.minReplicas -}}
{{- else -}}
{{- include "avouch.replicas" . -}}
{{- end -}}
{{- end -}}

{{/* Where the state is, as store.url says it. */}}
{{- define "avouch.etcd.url" -}}
{{- ternary "etcd" "etcds" .Values.etcd.plaintextBehindMesh -}}
://{{ join "," .Values.etcd.endpoints }}{{ .Values.etcd.prefix }}
{{- end -}}

{{/* The ports of etcd's members, a list in JSON. */}}
{{- define "avouch.etcd.ports" -}}
{{- $ports := list -}}
{{- range .Values.etcd.endpoints -}}
{{- $ports = append $ports (regexFind ":[0-9]+$" . | trimPrefix ":" | default "2379" | int) -}}
{{- end -}}
{{- $ports | uniq | toJson -}}
{{- end -}}

{{/* The credentials of the first admin client, as a path in the server's pod. */}}
{{- define "avouch.admin" -}}
{{- if .Values.adminClient.secretName -}}
/etc/avouch/admin-client/credentials.json
{{- else -}}
/var/lib/avouch/data/admin-client.json
{{- end -}}
{{- end -}}

{{/* A pod of the server, as kubectl takes it. */}}
{{- define "avouch.pod" -}}
{{- if eq .Values.engine "etcd" -}}
deployment/{{ include "avouch.fullname" . }}
{{- else -}}
{{ include "avouch.fullname" . }}-0
{{- end -}}
{{- end -}}

{{- define "avouch.encrypted" -}}
{{- if ne .Values.tls.mode "mesh" }}true{{ end -}}
{{- end -}}

{{/* The Secret with the server's certificate. */}}
{{- define "avouch.tls.secret" -}}
{{- if eq .Values.tls.mode "certManager" -}}
{{- include "avouch.fullname" . }}-tls
{{- else -}}
{{- .Values.tls.secretName -}}
{{- end -}}
{{- end -}}

{{/* The URL of gRPC from inside the cluster. */}}
{{- define "avouch.url" -}}
{{- if include "avouch.encrypted" . }}https{{ else }}http{{ end -}}
://{{ include "avouch.fullname" . }}.{{ .Release.Namespace }}.svc:7700
{{- end -}}
