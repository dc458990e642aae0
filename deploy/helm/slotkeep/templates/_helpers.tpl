{{- define "slotkeep.name" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 40 | trimSuffix "-" }}{{ else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 40 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "slotkeep.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "slotkeep.labels" -}}
{{ include "slotkeep.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | quote }}
{{- end }}

{{- /* The reference of an image: (list ROOT IMAGE). */}}
{{- define "slotkeep.image" -}}
{{- $root := index . 0 }}{{ $image := index . 1 -}}
{{- if $image.digest }}{{ printf "%s@%s" $image.repository $image.digest }}{{ else }}{{ printf "%s:%s" $image.repository ($image.tag | default $root.Chart.AppVersion) }}{{ end }}
{{- end }}

{{- /* Where the secrets are mounted: (list ROOT NAMES), one folder for each secret that has a name. */}}
{{- define "slotkeep.secretVolumes" -}}
{{- $root := index . 0 }}
{{- range $name := index . 1 }}
{{- $secret := index $root.Values.secrets $name }}
{{- if $secret.name }}
- name: {{ $name | kebabcase }}
  secret:
    secretName: {{ $secret.name }}
    defaultMode: 0440
    {{- if hasKey $secret "key" }}
    items:
      - key: {{ $secret.key | quote }}
        path: value
    {{- end }}
{{- end }}
{{- end }}
{{- end }}

{{- define "slotkeep.secretMounts" -}}
{{- $root := index . 0 }}
{{- range $name := index . 1 }}
{{- if (index $root.Values.secrets $name).name }}
- name: {{ $name | kebabcase }}
  mountPath: /etc/slotkeep/{{ $name | kebabcase }}
  readOnly: true
{{- end }}
{{- end }}
{{- end }}

{{- define "slotkeep.environment" -}}
{{- $root := index . 0 }}
- name: SLOTKEEP_CONFIG
  value: /etc/slotkeep/settings/slotkeep.toml
- name: SLOTKEEP_STATE
  value: /var/lib/slotkeep
{{- range $name := index . 1 }}
{{- if (index $root.Values.secrets $name).name }}
{{- if eq $name "authority" }}
- name: SLOTKEEP_TLS_CA
  value: /etc/slotkeep/authority/value
{{- else if eq $name "password" }}
- name: SLOTKEEP_PASSWORD_FILE
  value: /etc/slotkeep/password/value
{{- else if eq $name "signingKey" }}
- name: SLOTKEEP_SIGNING_KEY
  value: /etc/slotkeep/signing-key/value
{{- else if eq $name "identity" }}
- name: SLOTKEEP_IDENTITY
  value: /etc/slotkeep/identity/value
{{- else if eq $name "passphrase" }}
- name: SLOTKEEP_PASSPHRASE_FILE
  value: /etc/slotkeep/passphrase/value
{{- else if eq $name "clientCertificate" }}
- name: SLOTKEEP_TLS_CERT
  value: /etc/slotkeep/client-certificate/tls.crt
- name: SLOTKEEP_TLS_KEY
  value: /etc/slotkeep/client-certificate/tls.key
{{- end }}
{{- end }}
{{- end }}
{{- range $name, $value := $root.Values.storeEnvironment }}
- name: {{ $name }}
  value: {{ $value | quote }}
{{- end }}
{{- end }}

{{- /* A pod's metadata: (list ROOT COMPONENT). The settings' sum makes a change of them a new pod. */}}
{{- define "slotkeep.podMetadata" -}}
{{- $root := index . 0 -}}
labels:
  {{- include "slotkeep.labels" $root | nindent 2 }}
  app.kubernetes.io/component: {{ index . 1 }}
  {{- with $root.Values.podLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
annotations:
  slotkeep/settings: {{ include (print $root.Template.BasePath "/settings.yaml") $root | sha256sum | trunc 16 | quote }}
  {{- with $root.Values.podAnnotations }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}

{{- /*
A pod: (dict "root" $ "image" IMAGE "arguments" LIST "secrets" NAMES "resources" RESOURCES "state" VOLUME "scratch" SIZE).
`state` is the volume behind /var/lib/slotkeep, none if it comes from a claim's template. `scratch` is the size of /tmp.
*/}}
{{- define "slotkeep.podSpec" -}}
{{- $root := .root -}}
serviceAccountName: {{ include "slotkeep.name" $root }}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with $root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  fsGroup: 65532
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile:
    type: RuntimeDefault
containers:
  - name: slotkeep
    image: {{ include "slotkeep.image" (list $root .image) | quote }}
    imagePullPolicy: {{ .image.pullPolicy }}
    args:
      {{- range .arguments }}
      - {{ . | quote }}
      {{- end }}
    env:
      {{- include "slotkeep.environment" (list $root .secrets) | trim | nindent 6 }}
    {{- with $root.Values.secrets.store.name }}
    envFrom:
      - secretRef:
          name: {{ . }}
    {{- end }}
    securityContext:
      allowPrivilegeEscalation: false
      privileged: false
      readOnlyRootFilesystem: true
      capabilities:
        drop: [ALL]
    resources:
      {{- toYaml .resources | nindent 6 }}
    volumeMounts:
      - name: settings
        mountPath: /etc/slotkeep/settings
        readOnly: true
      - name: state
        mountPath: /var/lib/slotkeep
      - name: scratch
        mountPath: /tmp
      {{- with include "slotkeep.secretMounts" (list $root .secrets) | trim }}
      {{- . | nindent 6 }}
      {{- end }}
volumes:
  - name: settings
    configMap:
      name: {{ include "slotkeep.name" $root }}
  {{- with .state }}
  - name: state
    {{- toYaml . | nindent 4 }}
  {{- end }}
  - name: scratch
    emptyDir:
      sizeLimit: {{ .scratch }}
  {{- with include "slotkeep.secretVolumes" (list $root .secrets) | trim }}
  {{- . | nindent 2 }}
  {{- end }}
{{- with $root.Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $root.Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $root.Values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $root.Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end }}

{{- /*
A job that runs by the clock: (dict "root" $ "component" NAME "job" VALUES "final" EXIT-CODES "pod" ARGUMENTS-OF-podSpec).
`final` are the exit codes after which another try can't help.
*/}}
{{- define "slotkeep.cronJob" -}}
{{- $root := .root -}}
apiVersion: batch/v1
kind: CronJob
metadata:
  name: {{ include "slotkeep.name" $root }}-{{ .component }}
  namespace: {{ $root.Release.Namespace }}
  labels:
    {{- include "slotkeep.labels" $root | nindent 4 }}
    app.kubernetes.io/component: {{ .component }}
spec:
  schedule: {{ .job.schedule | quote }}
  {{- if .job.suspend }}
  suspend: true
  {{- end }}
  concurrencyPolicy: Forbid
  startingDeadlineSeconds: 3600
  successfulJobsHistoryLimit: 3
  failedJobsHistoryLimit: 3
  jobTemplate:
    metadata:
      labels:
        {{- include "slotkeep.labels" $root | nindent 8 }}
        app.kubernetes.io/component: {{ .component }}
    spec:
      activeDeadlineSeconds: {{ .job.activeDeadlineSeconds }}
      backoffLimit: 2
      podFailurePolicy:
        rules:
          - action: FailJob
            onExitCodes:
              containerName: slotkeep
              operator: In
              values: {{ toJson .final }}
          - action: Ignore
            onPodConditions:
              - type: DisruptionTarget
                status: "True"
      template:
        metadata:
          {{- include "slotkeep.podMetadata" (list $root .component) | nindent 10 }}
        spec:
          restartPolicy: Never
          {{- include "slotkeep.podSpec" .pod | nindent 10 }}
{{- end }}
