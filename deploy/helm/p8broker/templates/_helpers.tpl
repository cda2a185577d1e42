{{/* Names, labels, and what several objects share. */}}

{{- define "p8broker.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 50 | trimSuffix "-" }}
{{- end }}

{{- define "p8broker.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" }}
{{- else }}
{{- $name := include "p8broker.name" . }}
{{- if contains $name .Release.Name }}
{{- .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" }}
{{- end }}
{{- end }}
{{- end }}

{{- /* Labels that selectors use: they can't change in an upgrade. */}}
{{- define "p8broker.selectorLabels" -}}
app.kubernetes.io/name: {{ include "p8broker.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "p8broker.labels" -}}
{{ include "p8broker.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: p8broker
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "p8broker.image" -}}
{{- $image := .Values.image }}
{{- if $image.digest }}
{{- printf "%s@%s" $image.repository $image.digest }}
{{- else }}
{{- printf "%s:%s" $image.repository (default .Chart.AppVersion $image.tag) }}
{{- end }}
{{- end }}

{{- define "p8broker.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "p8broker.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- /* The name that clients find in the server's certificate. */}}
{{- define "p8broker.serverName" -}}
{{- default (printf "%s.%s.svc" (include "p8broker.fullname" .) .Release.Namespace) .Values.tls.serverName }}
{{- end }}

{{- define "p8broker.tlsSecret" -}}
{{- if eq .Values.tls.source "certManager" }}{{ include "p8broker.fullname" . }}-tls{{ else }}{{ .Values.tls.secret.name }}{{ end }}
{{- end }}

{{- /* Whether a Job makes the vault. */}}
{{- define "p8broker.initJob" -}}
{{- if and .Values.init.enabled (eq .Values.unseal.method "keyFile") }}true{{ end }}
{{- end }}

{{- /* What no pod of this chart goes without. */}}
{{- define "p8broker.podSecurity" -}}
securityContext:
  runAsNonRoot: true
  {{- with .Values.podSecurity.runAsUser }}
  runAsUser: {{ int64 . }}
  {{- end }}
  {{- with .Values.podSecurity.runAsGroup }}
  runAsGroup: {{ int64 . }}
  {{- end }}
  {{- with .Values.podSecurity.fsGroup }}
  fsGroup: {{ int64 . }}
  fsGroupChangePolicy: OnRootMismatch
  {{- end }}
  seccompProfile:
    type: RuntimeDefault
serviceAccountName: {{ include "p8broker.serviceAccountName" . }}
automountServiceAccountToken: false
{{- /* Variables of Services could be taken for settings. */}}
enableServiceLinks: false
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "p8broker.containerSecurity" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
{{- end }}

{{- /* Where pods of this chart may run. */}}
{{- define "p8broker.placement" -}}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end }}

{{- /* A small command beside the broker: what it needs of the machine. */}}
{{- define "p8broker.jobResources" -}}
resources:
  requests: { cpu: 50m, memory: 64Mi }
  limits: { memory: 256Mi }
{{- end }}

{{- /* The environment of a command that speaks to the broker as a client. Argument: root, address. */}}
{{- define "p8broker.clientEnv" -}}
- { name: P8BROKER_ADDR, value: {{ .address | quote }} }
- { name: P8BROKER_SERVER_NAME, value: {{ include "p8broker.serverName" .root | quote }} }
- { name: P8BROKER_CACERT, value: /etc/p8broker/client/ca.crt }
- { name: P8BROKER_CERT, value: /etc/p8broker/client/tls.crt }
- { name: P8BROKER_KEY, value: /etc/p8broker/client/tls.key }
{{- end }}

{{- define "p8broker.address" -}}
{{ include "p8broker.fullname" . }}.{{ .Release.Namespace }}.svc:{{ int .Values.service.port }}
{{- end }}

{{- /* Sealed replicas answer here, too; the port is the pods' own. */}}
{{- define "p8broker.headlessAddress" -}}
{{ include "p8broker.fullname" . }}-headless.{{ .Release.Namespace }}.svc:8443
{{- end }}

{{- define "p8broker.dnsEgress" -}}
- to:
    - namespaceSelector:
        matchExpressions:
          - key: kubernetes.io/metadata.name
            operator: In
            values: {{ toJson .Values.networkPolicy.dnsNamespaces }}
  ports:
    - { port: 53, protocol: UDP }
    - { port: 53, protocol: TCP }
{{- end }}
