{{/* The pod of the broker, for the StatefulSet and the Deployment. */}}

{{- define "p8broker.pod" -}}
{{- $sqlite := eq .Values.store.engine "sqlite" }}
{{- $trust := include "p8broker.trustSources" . | trim }}
metadata:
  labels:
    {{- include "p8broker.selectorLabels" . | nindent 4 }}
    app.kubernetes.io/component: broker
    {{- with .Values.commonLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
    {{- with .Values.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  annotations:
    checksum/config: {{ include "p8broker.config" . | sha256sum }}
    {{- with .Values.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  {{- include "p8broker.podSecurity" . | nindent 2 }}
  {{- include "p8broker.placement" . | trim | nindent 2 }}
  {{- if and (not $sqlite) (or .Values.topologySpread.zones .Values.topologySpread.nodes) }}
  topologySpreadConstraints:
    {{- range $key, $when := dict "topology.kubernetes.io/zone" .Values.topologySpread.zones "kubernetes.io/hostname" .Values.topologySpread.nodes }}
    {{- if $when }}
    - maxSkew: 1
      topologyKey: {{ $key }}
      whenUnsatisfiable: {{ $when }}
      labelSelector:
        matchLabels:
          {{- include "p8broker.selectorLabels" $ | nindent 10 }}
          app.kubernetes.io/component: broker
      matchLabelKeys: [pod-template-hash]
    {{- end }}
    {{- end }}
  {{- end }}
  # The pause before SIGTERM, the drain, and a margin in which the database is closed.
  terminationGracePeriodSeconds: {{ add (int .Values.drain.preStopSeconds) (int .Values.drain.timeoutSeconds) 15 }}
  {{- with .Values.extraInitContainers }}
  initContainers:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  containers:
    - name: broker
      image: {{ include "p8broker.image" . | quote }}
      imagePullPolicy: {{ .Values.image.pullPolicy }}
      args: [serve, --config, /etc/p8broker/config/p8broker.toml]
      {{- include "p8broker.containerSecurity" . | nindent 6 }}
      env:
        - name: P8BROKER_REPLICA__NAME
          valueFrom:
            fieldRef:
              fieldPath: metadata.name
        {{- include "p8broker.dbEnv" . | trim | nindent 8 }}
        {{- with .Values.extraEnv }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      ports:
        - { name: grpc, containerPort: 8443 }
        - { name: ops, containerPort: 9443 }
      # A sealed broker lives: nothing restarts it. It is not ready, and is reached through the headless Service.
      startupProbe:
        httpGet: { path: /livez, port: ops }
        periodSeconds: 2
        failureThreshold: 150
      livenessProbe:
        httpGet: { path: /livez, port: ops }
        periodSeconds: 10
        timeoutSeconds: 5
        failureThreshold: 6
      readinessProbe:
        httpGet: { path: /readyz, port: ops }
        periodSeconds: 5
        timeoutSeconds: 3
        failureThreshold: 2
      lifecycle:
        preStop:
          sleep:
            seconds: {{ int .Values.drain.preStopSeconds }}
      {{- with .Values.resources }}
      resources:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      volumeMounts:
        - { name: config, mountPath: /etc/p8broker/config, readOnly: true }
        - { name: tls, mountPath: /etc/p8broker/tls, readOnly: true }
        {{- if $trust }}
        - { name: trust, mountPath: /etc/p8broker/trust, readOnly: true }
        {{- end }}
        {{- if eq .Values.unseal.method "keyFile" }}
        - { name: unseal, mountPath: /etc/p8broker/unseal, readOnly: true }
        {{- end }}
        {{- if include "p8broker.dbFiles" . }}
        - { name: db, mountPath: /etc/p8broker/db, readOnly: true }
        {{- end }}
        {{- if $sqlite }}
        - { name: vault, mountPath: /var/lib/p8broker }
        {{- if .Values.store.anchor.enabled }}
        - { name: anchor, mountPath: /var/lib/p8broker-anchor }
        {{- end }}
        {{- end }}
        {{- if .Values.config.kubernetesIssuer }}
        - { name: kubernetes, mountPath: /var/run/secrets/p8broker/kubernetes, readOnly: true }
        {{- end }}
        {{- with .Values.extraVolumeMounts }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
  volumes:
    {{- include "p8broker.configVolume" . | nindent 4 }}
    {{- include "p8broker.tlsVolume" . | nindent 4 }}
    {{- if $trust }}
    - name: trust
      projected:
        defaultMode: 0440
        sources:
          {{- $trust | nindent 10 }}
    {{- end }}
    {{- if eq .Values.unseal.method "keyFile" }}
    {{- include "p8broker.unsealVolume" . | nindent 4 }}
    {{- end }}
    {{- if include "p8broker.dbFiles" . }}
    {{- include "p8broker.dbVolume" . | trim | nindent 4 }}
    {{- end }}
    {{- if .Values.config.kubernetesIssuer }}
    - name: kubernetes
      projected:
        defaultMode: 0440
        sources:
          - serviceAccountToken: { path: token, expirationSeconds: 3600 }
          - configMap:
              name: kube-root-ca.crt
              items: [{ key: ca.crt, path: ca.crt }]
    {{- end }}
    {{- with .Values.extraVolumes }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end }}
