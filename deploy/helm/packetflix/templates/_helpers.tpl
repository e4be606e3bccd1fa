{{- define "packetflix.labels" -}}
app.kubernetes.io/name: packetflix
app.kubernetes.io/part-of: packetflix
{{- end }}

{{- define "packetflix.gateway-labels" -}}
app.kubernetes.io/name: packetflix-gateway
app.kubernetes.io/part-of: packetflix
{{- end }}

{{- define "packetflix.image" -}}
{{- with .Values.image -}}
image: {{ ternary (printf "%s@%s" .repository .digest) (printf "%s:%s" .repository .tag) (ne .digest "") | quote }}
imagePullPolicy: {{ .pullPolicy }}
{{- end }}
{{- end }}

{{- define "packetflix.pull-secrets" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
{{- range . }}
  - name: {{ . }}
{{- end }}
{{- end }}
{{- end }}

{{- /* The gateway's clients are known to Kubernetes, and so are those of the nodes behind it. */}}
{{- define "packetflix.asks-kubernetes" -}}
{{- if or .Values.kubernetesAuth .Values.gateway.enabled }}true{{ end }}
{{- end }}

{{- define "packetflix.probes" -}}
startupProbe:
  httpGet:
    path: /healthz
    port: http
    {{- with . }}
    scheme: {{ . }}
    {{- end }}
  periodSeconds: 1
  failureThreshold: 30
livenessProbe:
  httpGet:
    path: /healthz
    port: http
    {{- with . }}
    scheme: {{ . }}
    {{- end }}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 3
readinessProbe:
  httpGet:
    path: /readyz
    port: http
    {{- with . }}
    scheme: {{ . }}
    {{- end }}
  periodSeconds: 5
  timeoutSeconds: 2
lifecycle:
  preStop:
    sleep:
      seconds: 5
{{- end }}

{{- define "packetflix.clients" -}}
- from:
    - podSelector:
        matchLabels:
          packetflix/client: "true"
    - namespaceSelector:
        matchLabels:
          kubernetes.io/metadata.name: {{ .Values.networkPolicy.prometheusNamespace | quote }}
      podSelector:
        matchLabels:
          app.kubernetes.io/name: prometheus
  ports:
    - port: http
      protocol: TCP
{{- end }}

{{- define "packetflix.api-servers" -}}
- ports:
    {{- range .Values.networkPolicy.apiServerPorts }}
    - port: {{ int64 . }}
      protocol: TCP
    {{- end }}
{{- end }}

{{- /* Variables of a container by their names, and those that the values add: "of" is where they stand. */}}
{{- define "packetflix.env" -}}
{{- range $name, $value := .own }}
- name: {{ $name }}
  value: {{ $value | quote }}
{{- end }}
{{- range $name, $value := .more }}
{{- if or (hasKey $.own $name) (has $name (list "PACKETFLIX_NODE_NAME" "PACKETFLIX_PORT" "PACKETFLIX_LISTEN")) }}
{{- fail (printf "%s.%s: the chart sets this variable itself, or relies on its default" $.of $name) }}
{{- end }}
- name: {{ $name }}
  value: {{ $value | quote }}
{{- end }}
{{- end }}

{{- define "packetflix.mebibytes" -}}
{{- $number := regexFind "^[0-9]+" . | int64 }}
{{- if contains "Gi" . }}{{ mul 1024 $number }}{{ else }}{{ $number }}{{ end }}
{{- end }}

{{- define "packetflix.check-memory" -}}
{{- with (.Values.resources.limits).memory }}
{{- $needed := include "packetflix.mebibytes" $.Values.ringMemory | int64 | add (mul 4 (int64 $.Values.maxCaptures)) 256 }}
{{- if gt $needed (include "packetflix.mebibytes" . | int64) }}
{{- fail (printf "resources.limits.memory: %s is less than the %d MiB that ringMemory (%s), 4 MiB for each of maxCaptures (%d) and 256 MiB for the program may take" . $needed $.Values.ringMemory (int64 $.Values.maxCaptures)) }}
{{- end }}
{{- end }}
{{- end }}
