{{/* One value in TOML. A number that YAML made a float is written without an exponent. */}}
{{- define "avouch.toml" -}}
{{- if kindIs "string" . -}}
{{ . | toJson }}
{{- else if kindIs "bool" . -}}
{{ . }}
{{- else -}}
{{ int64 . }}
{{- end -}}
{{- end -}}

{{- define "avouch.config" -}}
{{- $v := .Values -}}
{{- $own := dict
  "server" (dict "listen" "0.0.0.0:7700" "public_listen" "0.0.0.0:7701" "ops_listen" "0.0.0.0:7702" "drain_delay" (printf "%ds" (int $v.shutdown.delaySeconds)) "drain_timeout" (printf "%ds" (int $v.shutdown.drainSeconds)))
  "issuer" (dict "url" $v.issuer.url "audience" $v.issuer.audience)
  "store" dict
  "keys" (dict "encryption_key_file" (printf "/etc/avouch/encryption/%s" $v.encryptionKey.secretKey))
  "password" (dict "workers" (include "avouch.workers" . | int) "memory_kib" (int $v.password.memoryKib))
  "limits" (dict "max_connections" (int $v.sizing.connections))
-}}
{{- /* What settings may go over. */}}
{{- $defaults := dict "log" (dict "format" "json") -}}
{{- if eq $v.engine "etcd" -}}
{{- $_ := set $own "store" (dict "url" (include "avouch.etcd.url" .)) -}}
{{- $_ := set $own.server "files_dir" "/var/lib/avouch" -}}
{{- $etcd := dict -}}
{{- if $v.etcd.plaintextBehindMesh -}}
{{- $_ := set $etcd "plaintext_behind_mesh" true -}}
{{- end -}}
{{- if $v.etcd.caSecretName -}}
{{- $_ := set $etcd "ca_file" "/etc/avouch/etcd-ca/ca.crt" -}}
{{- end -}}
{{- if $v.etcd.certificateSecretName -}}
{{- $_ := set $etcd "cert_file" "/etc/avouch/etcd-certificate/tls.crt" -}}
{{- $_ := set $etcd "key_file" "/etc/avouch/etcd-certificate/tls.key" -}}
{{- end -}}
{{- if $v.etcd.username -}}
{{- $_ := set $etcd "username" $v.etcd.username -}}
{{- $_ := set $etcd "password_file" (printf "/etc/avouch/etcd-password/%s" $v.etcd.passwordSecretKey) -}}
{{- end -}}
{{- $_ := set $own "etcd" $etcd -}}
{{- else -}}
{{- $_ := set $own "store" (dict "path" "/var/lib/avouch/data" "cache_bytes" (printf "%sB" $v.store.cache)) -}}
{{- end -}}
{{- if $v.audit.collectorUrl -}}
{{- $_ := set $own "audit" (dict "output" "otlp" "otlp_endpoint" $v.audit.collectorUrl) -}}
{{- if $v.audit.caSecretName -}}
{{- $_ := set $own.audit "otlp_ca_file" "/etc/avouch/collector-ca/ca.crt" -}}
{{- end -}}
{{- end -}}
{{- if $v.adminClient.secretName -}}
{{- $_ := set $own.server "admin_client_file" (include "avouch.admin" .) -}}
{{- end -}}
{{- if $v.backupKey.secretName -}}
{{- $_ := set $own.keys "backup_key_file" (printf "/etc/avouch/backup-key/%s" $v.backupKey.secretKey) -}}
{{- end -}}
{{- if $v.pepper.secretName -}}
{{- $_ := set $own.password "pepper_file" (printf "/etc/avouch/pepper/%s" $v.pepper.secretKey) -}}
{{- end -}}
{{- if include "avouch.encrypted" . -}}
{{- $tls := dict "cert_file" "/etc/avouch/tls/tls.crt" "key_file" "/etc/avouch/tls/tls.key" -}}
{{- if ne $v.tls.clientAuth "none" -}}
{{- $_ := set $tls "client_auth" $v.tls.clientAuth -}}
{{- $_ := set $tls "client_ca_file" "/etc/avouch/client-ca/ca.crt" -}}
{{- end -}}
{{- $_ := set $own "tls" $tls -}}
{{- else -}}
{{- $_ := set $own.server "plaintext_mesh" true -}}
{{- /* Behind a proxy in the pod every peer has one address. */}}
{{- $_ := set $defaults "limits" (dict "max_connections_per_peer" (int $v.sizing.connections)) -}}
{{- end -}}
{{- range $section, $keys := mergeOverwrite $defaults (deepCopy $v.settings) $own }}
[{{ $section }}]
{{- range $key, $value := $keys }}
{{ $key }} = {{ include "avouch.toml" $value }}
{{- end }}
{{ end -}}
{{- $grants := $v.grants -}}
{{- if and $v.backup.enabled $v.backup.certificateName -}}
{{- $grants = append $grants (dict "certificateName" $v.backup.certificateName "right" "backup") -}}
{{- end -}}
{{- range $grants }}
[[grant]]
certificate_name = {{ .certificateName | toJson }}
right = {{ .right | toJson }}
{{- with .audience }}
audience = {{ . | toJson }}
{{- end }}
{{- with .client }}
client = {{ . | toJson }}
{{- end }}
{{- with .subject }}
subject = {{ . | toJson }}
{{- end }}
{{ end -}}
{{- end -}}
