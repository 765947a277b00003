{{/* What cannot work is refused here, all of it at once, each with what to do. The schema has said
before what is no value at all. */}}
{{- define "avouch.check" -}}
{{- $v := .Values -}}
{{- $bad := list -}}
{{- $etcd := $v.etcd -}}
{{- if eq $v.engine "sled" -}}
{{- if gt (int $v.replicas) 1 -}}
{{- $bad = append $bad (printf "replicas is %d, and engine sled keeps its data in one place: replicas must be 1, or engine etcd" (int $v.replicas)) -}}
{{- end -}}
{{- if $v.autoscaling.enabled -}}
{{- $bad = append $bad "autoscaling.enabled needs engine etcd: sled keeps its data in one place" -}}
{{- end -}}
{{- if or $etcd.endpoints $etcd.caSecretName $etcd.certificateSecretName $etcd.username $etcd.passwordSecretName $etcd.plaintextBehindMesh $etcd.peers -}}
{{- $bad = append $bad "etcd has no effect: set engine to etcd" -}}
{{- end -}}
{{- if $v.settings.etcd -}}
{{- $bad = append $bad "settings.etcd has no effect: set engine to etcd" -}}
{{- end -}}
{{- if le (include "avouch.bytes" $v.persistence.size | int64) (int64 1073741824) -}}
{{- $bad = append $bad (printf "persistence.size is %s and must be more than 1Gi: writes stop when 256Mi are left" $v.persistence.size) -}}
{{- end -}}
{{- else -}}
{{- if not $etcd.endpoints -}}
{{- $bad = append $bad "engine etcd needs etcd.endpoints, such as [etcd-0.etcd:2379, etcd-1.etcd:2379, etcd-2.etcd:2379]" -}}
{{- end -}}
{{- if and (not $etcd.caSecretName) (not $etcd.plaintextBehindMesh) -}}
{{- $bad = append $bad "engine etcd needs etcd.caSecretName to know the members by; or etcd.plaintextBehindMesh if a mesh encrypts" -}}
{{- end -}}
{{- if and $etcd.plaintextBehindMesh (or $etcd.caSecretName $etcd.certificateSecretName) -}}
{{- $bad = append $bad "etcd.caSecretName and etcd.certificateSecretName have no effect with etcd.plaintextBehindMesh: it is plaintext" -}}
{{- end -}}
{{- if ne (empty $etcd.username) (empty $etcd.passwordSecretName) -}}
{{- $bad = append $bad "etcd.username and etcd.passwordSecretName go together: set both or none" -}}
{{- end -}}
{{- if and $v.networkPolicy.enabled (not $etcd.peers) -}}
{{- $bad = append $bad "engine etcd needs etcd.peers: the servers may connect to nobody else; [{podSelector: {matchLabels: {app: etcd}}}]" -}}
{{- end -}}
{{- if not $v.adminClient.secretName -}}
{{- $bad = append $bad "engine etcd needs adminClient.secretName, the first admin client for all servers: what one of them made would go with its pod. The README has the command" -}}
{{- end -}}
{{- if and $v.autoscaling.enabled (gt (int $v.replicas) 0) -}}
{{- $bad = append $bad (printf "replicas is %d and autoscaling.enabled: leave out one of the two" (int $v.replicas)) -}}
{{- end -}}
{{- if and $v.autoscaling.enabled (gt (int $v.autoscaling.minReplicas) (int $v.autoscaling.maxReplicas)) -}}
{{- $bad = append $bad (printf "autoscaling.minReplicas is %d, more than autoscaling.maxReplicas, %d" (int $v.autoscaling.minReplicas) (int $v.autoscaling.maxReplicas)) -}}
{{- end -}}
{{- $least := include "avouch.replicas.least" . | int -}}
{{- if and (gt $least 1) (ge (int $v.podDisruptionBudget.maxUnavailable) $least) -}}
{{- $bad = append $bad (printf "podDisruptionBudget.maxUnavailable is %d and there may be %d servers: a drain could take all of them" (int $v.podDisruptionBudget.maxUnavailable) $least) -}}
{{- end -}}
{{- end -}}
{{- if eq $v.image.tag "latest" -}}
{{- $bad = append $bad "image.tag is latest, which is another image tomorrow: name a version, or set image.digest" -}}
{{- end -}}
{{- if not $v.issuer.url -}}
{{- $bad = append $bad "issuer.url is missing: the URL under which verifiers reach the public keys, such as https://id.example.com" -}}
{{- else if and (hasPrefix "http://" $v.issuer.url) (ne $v.tls.mode "mesh") -}}
{{- $bad = append $bad "issuer.url must begin with https://, as tls.mode is not mesh" -}}
{{- end -}}
{{- if not $v.encryptionKey.secretName -}}
{{- $bad = append $bad (printf "encryptionKey.secretName is missing: make the Secret once and keep a copy of it elsewhere: head -c 32 /dev/urandom | base64 > encryption.key; kubectl --namespace %s create secret generic avouch-encryption --from-file=encryption.key" .Release.Namespace) -}}
{{- end -}}
{{- if not $v.tls.mode -}}
{{- $bad = append $bad "tls.mode is missing: certManager, secret, or mesh if a mesh encrypts" -}}
{{- end -}}
{{- if and (eq $v.tls.mode "certManager") (not $v.tls.certManager.issuerName) -}}
{{- $bad = append $bad "tls.mode certManager needs tls.certManager.issuerName" -}}
{{- end -}}
{{- if and (eq $v.tls.mode "secret") (not $v.tls.secretName) -}}
{{- $bad = append $bad "tls.mode secret needs tls.secretName" -}}
{{- end -}}
{{- if and $v.tls.secretName (ne $v.tls.mode "secret") -}}
{{- $bad = append $bad "tls.secretName has no effect: set tls.mode to secret" -}}
{{- end -}}
{{- if and $v.tls.certManager.issuerName (ne $v.tls.mode "certManager") -}}
{{- $bad = append $bad "tls.certManager.issuerName has no effect: set tls.mode to certManager" -}}
{{- end -}}
{{- if and (eq $v.tls.mode "mesh") (ne $v.tls.clientAuth "none") -}}
{{- $bad = append $bad "tls.clientAuth has no effect in tls.mode mesh: the mesh ends TLS, and avouch sees no certificate" -}}
{{- end -}}
{{- if and (ne $v.tls.clientAuth "none") (not $v.tls.clientCaSecretName) -}}
{{- $bad = append $bad "tls.clientAuth needs tls.clientCaSecretName" -}}
{{- end -}}
{{- if and (eq $v.tls.clientAuth "none") $v.tls.clientCaSecretName -}}
{{- $bad = append $bad "tls.clientCaSecretName has no effect: set tls.clientAuth to optional or required" -}}
{{- end -}}
{{- $backup := $v.backup -}}
{{- if $backup.enabled -}}
{{- if not (or $backup.credentialsSecretName $backup.certificateSecretName) -}}
{{- $bad = append $bad "backup.enabled needs backup.credentialsSecretName, or backup.certificateSecretName: avouch client create backup --audience avouch --grant backup --save credentials.json" -}}
{{- end -}}
{{- if and $backup.credentialsSecretName $backup.certificateSecretName -}}
{{- $bad = append $bad "backup.credentialsSecretName and backup.certificateSecretName are both set: the job calls as one of them" -}}
{{- end -}}
{{- if and $backup.credentialsSecretName (eq $v.tls.clientAuth "required") -}}
{{- $bad = append $bad "backup.credentialsSecretName does not do where tls.clientAuth is required: the job has to show a certificate, backup.certificateSecretName" -}}
{{- end -}}
{{- if and $backup.certificateSecretName (eq $v.tls.clientAuth "none") -}}
{{- $bad = append $bad "backup.certificateSecretName needs tls.clientAuth optional or required: nobody is asked for a certificate" -}}
{{- end -}}
{{- if and $backup.certificateSecretName (not $backup.certificateName) -}}
{{- $bad = append $bad "backup.certificateSecretName needs backup.certificateName, the name in it: it is granted the right admin" -}}
{{- end -}}
{{- if and $backup.certificateName (not $backup.certificateSecretName) -}}
{{- $bad = append $bad "backup.certificateName has no effect without backup.certificateSecretName" -}}
{{- end -}}
{{- if eq $backup.destination "upload" -}}
{{- if not $backup.upload.image -}}
{{- $bad = append $bad "backup.destination upload needs backup.upload.image" -}}
{{- end -}}
{{- if hasSuffix ":latest" $backup.upload.image -}}
{{- $bad = append $bad "backup.upload.image is latest, which is another image tomorrow: name a version or a digest" -}}
{{- end -}}
{{- if and $v.networkPolicy.enabled (not $backup.upload.egress) -}}
{{- $bad = append $bad "backup.destination upload needs backup.upload.egress: the container may connect to nobody; [{}] allows everything" -}}
{{- end -}}
{{- if $backup.volume.existingClaim -}}
{{- $bad = append $bad "backup.volume.existingClaim has no effect: set backup.destination to volume" -}}
{{- end -}}
{{- else if $backup.upload.image -}}
{{- $bad = append $bad "backup.upload.image has no effect: set backup.destination to upload" -}}
{{- end -}}
{{- end -}}
{{- if and (eq $v.tls.clientAuth "none") $v.grants -}}
{{- $bad = append $bad "grants have no effect: they name client certificates, and tls.clientAuth is none" -}}
{{- end -}}
{{- if and (eq $v.tls.clientAuth "required") $v.nodeAgent.enabled -}}
{{- $bad = append $bad "nodeAgent.enabled needs tls.clientAuth none or optional: the agents show credentials and no certificate" -}}
{{- end -}}
{{- if and (eq $v.tls.mode "mesh") $v.networkPolicy.enabled (not $v.networkPolicy.egress) -}}
{{- $bad = append $bad "tls.mode mesh needs networkPolicy.egress: the proxy in the pod must reach its control plane; [{}] allows everything" -}}
{{- end -}}
{{- if and (eq $v.tls.mode "mesh") (eq $v.service.type "LoadBalancer") -}}
{{- $bad = append $bad "service.type LoadBalancer hands plaintext to whoever is outside the mesh: use a gateway of the mesh, or another tls.mode" -}}
{{- end -}}
{{- if $v.resources.memory -}}
{{- $needed := include "avouch.memory.needed" . | int64 -}}
{{- if lt (include "avouch.bytes" $v.resources.memory | int64) $needed -}}
{{- $parts := include "avouch.memory.parts" . | fromYaml -}}
{{- $said := list -}}
{{- range $name := list "base" "cache" "hashes" "connections" "streams" "sessions" -}}
{{- $said = append $said (printf "%s %sMi" $name (include "avouch.mebibytes" (get $parts $name))) -}}
{{- end -}}
{{- $bad = append $bad (printf "resources.memory is %s and at least %sMi are needed: %s, and a quarter more" $v.resources.memory (include "avouch.mebibytes" $needed) (join ", " $said)) -}}
{{- end -}}
{{- end -}}
{{- $collector := $v.audit.collectorUrl -}}
{{- if and (hasPrefix "http://" $collector) (ne $v.tls.mode "mesh") -}}
{{- $bad = append $bad "audit.collectorUrl must begin with https://, as tls.mode is not mesh" -}}
{{- end -}}
{{- if and (hasPrefix "https://" $collector) (not $v.audit.caSecretName) -}}
{{- $bad = append $bad "audit.collectorUrl is https and needs audit.caSecretName to know the collector by" -}}
{{- end -}}
{{- if and $v.audit.caSecretName (not (hasPrefix "https://" $collector)) -}}
{{- $bad = append $bad "audit.caSecretName has no effect: audit.collectorUrl does not begin with https://" -}}
{{- end -}}
{{- if and $collector $v.networkPolicy.enabled (not $v.networkPolicy.egress) -}}
{{- $bad = append $bad "audit.collectorUrl needs networkPolicy.egress: the server may connect to nobody; name the collector there" -}}
{{- end -}}
{{- $traces := dig "telemetry" "otlp_endpoint" "" $v.settings -}}
{{- if and $traces $v.networkPolicy.enabled (not $v.networkPolicy.egress) -}}
{{- $bad = append $bad "settings.telemetry.otlp_endpoint needs networkPolicy.egress: the server may connect to nobody; name the collector there" -}}
{{- end -}}
{{- if $v.nodeAgent.enabled -}}
{{- if not $v.nodeAgent.credentialsSecretName -}}
{{- $bad = append $bad "nodeAgent.enabled needs nodeAgent.credentialsSecretName: avouch client create node-agent --audience avouch --grant watch --save credentials.json" -}}
{{- end -}}
{{- if and (eq $v.tls.mode "mesh") $v.nodeAgent.caSecretName -}}
{{- $bad = append $bad "nodeAgent.caSecretName has no effect in tls.mode mesh" -}}
{{- end -}}
{{- if and (ne $v.tls.mode "mesh") (not $v.nodeAgent.caSecretName) (ne (include "avouch.agent.namespace" .) .Release.Namespace) -}}
{{- $bad = append $bad "nodeAgent.namespace needs nodeAgent.caSecretName: a pod reads no Secret of another namespace" -}}
{{- end -}}
{{- if $v.nodeAgent.memory -}}
{{- $needed := include "avouch.agent.memory.needed" . | int64 -}}
{{- if lt (include "avouch.bytes" $v.nodeAgent.memory | int64) $needed -}}
{{- $bad = append $bad (printf "nodeAgent.memory is %s and at least %sMi are needed for nodeAgent.maxEntries" $v.nodeAgent.memory (include "avouch.mebibytes" $needed)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if and $v.serviceMonitor.enabled $v.networkPolicy.enabled (not $v.networkPolicy.scrapers) -}}
{{- $bad = append $bad "serviceMonitor.enabled needs networkPolicy.scrapers: nobody may scrape" -}}
{{- end -}}
{{- if and $v.prometheusRule.enabled (not (.Files.Get "files/alerts.yaml")) -}}
{{- $bad = append $bad "prometheusRule.enabled: this chart has no files/alerts.yaml" -}}
{{- end -}}
{{- if and $v.dashboard.enabled (not (.Files.Get "files/dashboard.json")) -}}
{{- $bad = append $bad "dashboard.enabled: this chart has no files/dashboard.json" -}}
{{- end -}}
{{- if and $v.istio.peerAuthentication (ne $v.tls.mode "mesh") -}}
{{- $bad = append $bad "istio.peerAuthentication needs tls.mode mesh: avouch ends TLS itself" -}}
{{- end -}}
{{- $seen := dict -}}
{{- range $v.istio.authorizationPolicies -}}
{{- $id := printf "%s/%s" (default $.Release.Namespace .namespace) (toJson .matchLabels) -}}
{{- if and (hasKey $seen $id) (ne (get $seen $id) .provider) -}}
{{- $bad = append $bad (printf "istio.authorizationPolicies names two providers for the workloads %s: Istio denies everything there" $id) -}}
{{- end -}}
{{- $_ := set $seen $id .provider -}}
{{- end -}}
{{- if $bad -}}
{{- fail (printf "\n\nThese values cannot work:\n  * %s\n" (join "\n  * " $bad)) -}}
{{- end -}}
{{- end -}}
