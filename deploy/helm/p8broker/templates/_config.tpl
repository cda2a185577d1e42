{{/* The broker's configuration, and the volumes and variables that it names. */}}

{{- define "p8broker.config" -}}
{{- $config := .Values.config -}}
{{- $store := .Values.store -}}
[listen]
grpc = {{ printf "%s:8443" $config.listenAddress | toJson }}
ops = {{ printf "%s:9443" $config.listenAddress | toJson }}

[tls]
{{- if eq .Values.tls.source "spiffe" }}
certificate = {{ printf "/etc/p8broker/tls/%s" .Values.tls.spiffe.certificateFile | toJson }}
key = {{ printf "/etc/p8broker/tls/%s" .Values.tls.spiffe.privateKeyFile | toJson }}
{{- else }}
certificate = "/etc/p8broker/tls/tls.crt"
key = "/etc/p8broker/tls/tls.key"
{{- end }}
{{- if .Values.crls }}
crls = [{{ range $at, $_ := .Values.crls }}{{ if $at }}, {{ end }}"/etc/p8broker/trust/crl-{{ $at }}.pem"{{ end }}]
{{- end }}
max_connections = {{ int64 $config.maxConnections }}
{{- range $at, $ca := .Values.clientCAs }}

[[tls.client_cas]]
{{- if $ca.spiffeBundle }}
file = {{ printf "/etc/p8broker/tls/%s" $.Values.tls.spiffe.bundleFile | toJson }}
{{- else }}
file = "/etc/p8broker/trust/client-ca-{{ $at }}.pem"
{{- end }}
trust_domains = {{ toJson (default list $ca.trustDomains) }}
dns_suffixes = {{ toJson (default list $ca.dnsSuffixes) }}
{{- end }}

[store]
{{- if eq $store.engine "sqlite" }}
sqlite = "/var/lib/p8broker/vault.db"
{{- else }}
{{- with $store.postgresql.url }}
url = {{ toJson . }}
{{- end }}
{{- if $store.postgresql.passwordSecret.name }}
password_file = "/etc/p8broker/db/password"
{{- end }}
{{- if or $store.postgresql.ca.secretName $store.postgresql.ca.configMapName }}
ca_file = "/etc/p8broker/db/ca.pem"
{{- end }}
{{- if $store.postgresql.clientCertificate.secretName }}
client_certificate_file = "/etc/p8broker/db/tls.crt"
client_key_file = "/etc/p8broker/db/tls.key"
{{- end }}
migrate = {{ $store.postgresql.migrate }}
{{- end }}
{{- if eq .Values.unseal.method "keyFile" }}

[unseal]
key_file = "/etc/p8broker/unseal/current"
{{- if .Values.unseal.keyFile.previousKey }}
previous_key_file = "/etc/p8broker/unseal/previous"
{{- end }}
{{- end }}
{{- if and (eq $store.engine "sqlite") $store.anchor.enabled }}

[anchor]
file = "/var/lib/p8broker-anchor/anchor.json"
{{- end }}

[bootstrap]
operators = {{ toJson .Values.bootstrap.operators }}

[limits]
tokens_per_second = {{ int64 $config.limits.tokensPerSecond }}
admin_per_second = {{ int64 $config.limits.adminPerSecond }}
requests_per_connection_per_second = {{ int64 $config.limits.requestsPerConnectionPerSecond }}
signatures_per_second = {{ int64 $config.limits.signaturesPerSecond }}
connection_age_s = {{ int64 $config.limits.connectionAgeSeconds }}

[log]
format = {{ toJson $config.log.format }}
level = {{ toJson $config.log.level }}

[drain]
timeout_s = {{ int64 .Values.drain.timeoutSeconds }}
{{- if $config.kubernetesIssuer }}

[[oidc.hosts]]
name = "kubernetes.default.svc"
private = true
ca_file = "/var/run/secrets/p8broker/kubernetes/ca.crt"
bearer_file = "/var/run/secrets/p8broker/kubernetes/token"
{{- end }}
{{- with $config.extra }}

{{ trim . }}
{{- end }}
{{- end }}

{{- /* A file of a Secret or a ConfigMap, as a source of a projected volume. Argument: from, key, path. */}}
{{- define "p8broker.projectedFile" -}}
{{- if .from.secretName -}}
- secret:
    name: {{ .from.secretName }}
{{- else -}}
- configMap:
    name: {{ .from.configMapName }}
{{- end }}
    items: [{ key: {{ default "ca.crt" .key | quote }}, path: {{ .path }} }]
{{- end }}

{{- define "p8broker.configVolume" -}}
- name: config
  configMap:
    name: {{ include "p8broker.fullname" . }}
{{- end }}

{{- define "p8broker.unsealVolume" -}}
- name: unseal
  secret:
    secretName: {{ .Values.unseal.keyFile.secretName }}
    defaultMode: 0440
    items:
      - { key: {{ .Values.unseal.keyFile.currentKey | quote }}, path: current }
      {{- with .Values.unseal.keyFile.previousKey }}
      - { key: {{ . | quote }}, path: previous }
      {{- end }}
{{- end }}

{{- /* Whether the database needs files. */}}
{{- define "p8broker.dbFiles" -}}
{{- $db := .Values.store.postgresql }}
{{- if and (eq .Values.store.engine "postgresql") (or $db.passwordSecret.name $db.ca.secretName $db.ca.configMapName $db.clientCertificate.secretName) }}true{{ end }}
{{- end }}

{{- define "p8broker.dbVolume" -}}
{{- $db := .Values.store.postgresql }}
- name: db
  projected:
    defaultMode: 0440
    sources:
      {{- with $db.passwordSecret.name }}
      - secret:
          name: {{ . }}
          items: [{ key: {{ $db.passwordSecret.key | quote }}, path: password }]
      {{- end }}
      {{- if or $db.ca.secretName $db.ca.configMapName }}
      {{- include "p8broker.projectedFile" (dict "from" $db.ca "key" $db.ca.key "path" "ca.pem") | nindent 6 }}
      {{- end }}
      {{- with $db.clientCertificate.secretName }}
      - secret:
          name: {{ . }}
          items:
            - { key: tls.crt, path: tls.crt }
            - { key: tls.key, path: tls.key }
      {{- end }}
{{- end }}

{{- define "p8broker.dbEnv" -}}
{{- if and (eq .Values.store.engine "postgresql") .Values.store.postgresql.urlSecret.name }}
- name: P8BROKER_STORE_URL
  valueFrom:
    secretKeyRef:
      name: {{ .Values.store.postgresql.urlSecret.name }}
      key: {{ .Values.store.postgresql.urlSecret.key }}
{{- end }}
{{- end }}

{{- define "p8broker.tlsVolume" -}}
- name: tls
{{- if eq .Values.tls.source "spiffe" }}
  csi:
    driver: {{ .Values.tls.spiffe.driver }}
    readOnly: true
    {{- with .Values.tls.spiffe.volumeAttributes }}
    volumeAttributes:
      {{- tpl (toYaml .) $ | nindent 6 }}
    {{- end }}
{{- else }}
  secret:
    secretName: {{ include "p8broker.tlsSecret" . }}
    defaultMode: 0440
    items:
      - { key: {{ ternary "tls.crt" .Values.tls.secret.certificateKey (eq .Values.tls.source "certManager") | quote }}, path: tls.crt }
      - { key: {{ ternary "tls.key" .Values.tls.secret.privateKeyKey (eq .Values.tls.source "certManager") | quote }}, path: tls.key }
{{- end }}
{{- end }}

{{- /* CAs and CRLs that do not come with the server's certificate. */}}
{{- define "p8broker.trustSources" -}}
{{- range $at, $ca := .Values.clientCAs }}
{{- if not $ca.spiffeBundle }}
{{ include "p8broker.projectedFile" (dict "from" $ca "key" $ca.key "path" (printf "client-ca-%d.pem" $at)) }}
{{- end }}
{{- end }}
{{- range $at, $crl := .Values.crls }}
{{ include "p8broker.projectedFile" (dict "from" $crl "key" $crl.key "path" (printf "crl-%d.pem" $at)) }}
{{- end }}
{{- end }}
