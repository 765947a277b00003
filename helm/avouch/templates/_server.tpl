{{/* The pod of a server. */}}
{{- define "avouch.server.template" -}}
metadata:
  labels:
    {{- with .Values.pod.labels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
    {{- include "avouch.selector" . | nindent 4 }}
    app.kubernetes.io/component: server
    app.kubernetes.io/part-of: avouch
  annotations:
    kubectl.kubernetes.io/default-container: avouch
    # Another configuration is another pod.
    checksum/config: {{ include "avouch.config" . | sha256sum }}
    {{- with .Values.pod.annotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  serviceAccountName: {{ include "avouch.fullname" . }}
  automountServiceAccountToken: false
  enableServiceLinks: false
  {{- with include "avouch.pullSecrets" . }}
  {{- . | trim | nindent 2 }}
  {{- end }}
  {{- with .Values.pod.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  # What the server waits, what it drains, and 10 s to write and go.
  terminationGracePeriodSeconds: {{ add .Values.shutdown.delaySeconds .Values.shutdown.drainSeconds 10 }}
  securityContext:
    {{- include "avouch.podSecurity" . | nindent 4 }}
  affinity:
    {{- if .Values.pod.affinity }}
    {{- toYaml .Values.pod.affinity | nindent 4 }}
    {{- else }}
    podAntiAffinity:
      preferredDuringSchedulingIgnoredDuringExecution:
        - weight: 100
          podAffinityTerm:
            topologyKey: kubernetes.io/hostname
            labelSelector:
              matchLabels:
                {{- include "avouch.selector" . | nindent 16 }}
                app.kubernetes.io/component: server
    {{- end }}
  {{- if eq .Values.engine "etcd" }}
  # Over zones and nodes, each version of the pods by itself.
  topologySpreadConstraints:
    {{- range $key, $otherwise := dict "topology.kubernetes.io/zone" .Values.spread.zones "kubernetes.io/hostname" .Values.spread.nodes }}
    - maxSkew: 1
      topologyKey: {{ $key }}
      whenUnsatisfiable: {{ $otherwise }}
      labelSelector:
        matchLabels:
          {{- include "avouch.selector" $ | nindent 10 }}
          app.kubernetes.io/component: server
      matchLabelKeys: [pod-template-hash]
    {{- end }}
  {{- end }}
  {{- with .Values.pod.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.pod.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  containers:
    - name: avouch
      image: {{ include "avouch.image" . }}
      imagePullPolicy: {{ .Values.image.pullPolicy }}
      command: [{{ .Values.image.program }}]
      args: [serve, --config, /etc/avouch/config/avouch.toml]
      env:
        # For commands that somebody runs in the pod with kubectl exec.
        - name: AVOUCH_SERVER
          value: {{ ternary "https" "http" (eq (include "avouch.encrypted" .) "true") }}://localhost:7700
        {{- if include "avouch.encrypted" . }}
        - name: AVOUCH_CA_FILE
          value: /etc/avouch/tls/ca.crt
        {{- end }}
      ports:
        - name: grpc
          containerPort: 7700
        - name: keys
          containerPort: 7701
        - name: ops
          containerPort: 7702
      # Nothing answers before the store is open and what was lost in a crash is mended.
      startupProbe:
        httpGet:
          path: /livez
          port: ops
        periodSeconds: 5
        timeoutSeconds: 2
        failureThreshold: {{ max 1 (div (add (int .Values.startup.budgetSeconds) 4) 5) }}
      # Only that the program still answers: a store in trouble is no reason to be killed.
      livenessProbe:
        httpGet:
          path: /livez
          port: ops
        periodSeconds: 10
        timeoutSeconds: 5
        failureThreshold: 6
      readinessProbe:
        httpGet:
          path: /readyz
          port: ops
        periodSeconds: 2
        timeoutSeconds: 2
        failureThreshold: 2
      resources:
        requests:
          cpu: {{ .Values.resources.cpu.request | quote }}
          memory: {{ include "avouch.memory" . }}
        limits:
          cpu: {{ .Values.resources.cpu.limit | quote }}
          memory: {{ include "avouch.memory" . }}
      securityContext:
        {{- include "avouch.containerSecurity" . | nindent 8 }}
      volumeMounts:
        - name: data
          mountPath: /var/lib/avouch
        - name: config
          mountPath: /etc/avouch/config
          readOnly: true
        - name: encryption
          mountPath: /etc/avouch/encryption
          readOnly: true
        {{- if .Values.backupKey.secretName }}
        - name: backup-key
          mountPath: /etc/avouch/backup-key
          readOnly: true
        {{- end }}
        {{- if .Values.pepper.secretName }}
        - name: pepper
          mountPath: /etc/avouch/pepper
          readOnly: true
        {{- end }}
        {{- if include "avouch.encrypted" . }}
        - name: tls
          mountPath: /etc/avouch/tls
          readOnly: true
        {{- end }}
        {{- if .Values.tls.clientCaSecretName }}
        - name: client-ca
          mountPath: /etc/avouch/client-ca
          readOnly: true
        {{- end }}
        {{- if .Values.audit.caSecretName }}
        - name: collector-ca
          mountPath: /etc/avouch/collector-ca
          readOnly: true
        {{- end }}
        {{- if .Values.adminClient.secretName }}
        - name: admin-client
          mountPath: /etc/avouch/admin-client
          readOnly: true
        {{- end }}
        {{- if .Values.etcd.caSecretName }}
        - name: etcd-ca
          mountPath: /etc/avouch/etcd-ca
          readOnly: true
        {{- end }}
        {{- if .Values.etcd.certificateSecretName }}
        - name: etcd-certificate
          mountPath: /etc/avouch/etcd-certificate
          readOnly: true
        {{- end }}
        {{- if .Values.etcd.passwordSecretName }}
        - name: etcd-password
          mountPath: /etc/avouch/etcd-password
          readOnly: true
        {{- end }}
  volumes:
    {{- if eq .Values.engine "etcd" }}
    # The state is in etcd: here is where the server listens and how far etcd was, and nothing else.
    - name: data
      emptyDir:
        sizeLimit: 16Mi
    {{- end }}
    - name: config
      configMap:
        name: {{ include "avouch.fullname" . }}
    # 0440: they belong to root, and the pod's group reads them.
    - name: encryption
      secret:
        secretName: {{ .Values.encryptionKey.secretName }}
        defaultMode: 0440
        items:
          - key: {{ .Values.encryptionKey.secretKey }}
            path: {{ .Values.encryptionKey.secretKey }}
    {{- with .Values.backupKey }}
    {{- if .secretName }}
    - name: backup-key
      secret:
        secretName: {{ .secretName }}
        defaultMode: 0440
        items:
          - key: {{ .secretKey }}
            path: {{ .secretKey }}
    {{- end }}
    {{- end }}
    {{- with .Values.pepper }}
    {{- if .secretName }}
    - name: pepper
      secret:
        secretName: {{ .secretName }}
        defaultMode: 0440
        items:
          - key: {{ .secretKey }}
            path: {{ .secretKey }}
    {{- end }}
    {{- end }}
    {{- if include "avouch.encrypted" . }}
    - name: tls
      secret:
        secretName: {{ include "avouch.tls.secret" . }}
        defaultMode: 0440
    {{- end }}
    {{- with .Values.tls.clientCaSecretName }}
    - name: client-ca
      secret:
        secretName: {{ . }}
        defaultMode: 0440
        items:
          - key: ca.crt
            path: ca.crt
    {{- end }}
    {{- with .Values.audit.caSecretName }}
    - name: collector-ca
      secret:
        secretName: {{ . }}
        defaultMode: 0440
        items:
          - key: ca.crt
            path: ca.crt
    {{- end }}
    {{- with .Values.adminClient.secretName }}
    - name: admin-client
      secret:
        secretName: {{ . }}
        defaultMode: 0440
        items:
          - key: credentials.json
            path: credentials.json
    {{- end }}
    {{- with .Values.etcd.caSecretName }}
    - name: etcd-ca
      secret:
        secretName: {{ . }}
        defaultMode: 0440
        items:
          - key: ca.crt
            path: ca.crt
    {{- end }}
    {{- with .Values.etcd.certificateSecretName }}
    - name: etcd-certificate
      secret:
        secretName: {{ . }}
        defaultMode: 0440
        items:
          - key: tls.crt
            path: tls.crt
          - key: tls.key
            path: tls.key
    {{- end }}
    {{- with .Values.etcd }}
    {{- if .passwordSecretName }}
    - name: etcd-password
      secret:
        secretName: {{ .passwordSecretName }}
        defaultMode: 0440
        items:
          - key: {{ .passwordSecretKey }}
            path: {{ .passwordSecretKey }}
    {{- end }}
    {{- end }}
{{- end -}}
