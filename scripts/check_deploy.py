"""What check-deploy.sh asks of deploy/ and no ready tool does: that the chart renders to what is in the repository, that every object fits
Kubernetes's schemas, that every pod is as closed as it can be, and that Slotkeep takes every command line, variable and setting there.

    check_deploy.py SLOTKEEP      check; what is wrong goes to standard error
    check_deploy.py --write       render deploy/kubernetes/slotkeep.yaml anew
"""

import pathlib
import re
import shlex
import subprocess
import sys
import tempfile

import helm_python
import kubernetes_validate
import yaml

DEPLOY = pathlib.Path(__file__).resolve().parent.parent / "deploy"
CHART = DEPLOY / "helm" / "slotkeep"
MANIFESTS = DEPLOY / "kubernetes"
RENDERED = MANIFESTS / "slotkeep.yaml"
# The oldest version that the chart allows, and the newest there is a schema of.
KUBERNETES = ("1.29.0", "1.37.0")
# Read by Slotkeep and named in no option's help.
VARIABLES = re.compile(r"SLOTKEEP_STATE|TMPDIR|(AWS|GOOGLE|AZURE|SSL)_[A-Z_]+")
# What a chart is rendered with besides the manifests' own values: the least, everything, and several agents with volumes.
LEAST = {"settings": {"cluster": ["valkey:6379"], "repo": "s3://backups/valkey"}}
EVERYTHING = LEAST | {
    "settings": LEAST["settings"]
    | {"name": "main", "user": "backup", "tls": True, "tls_server_name": "valkey", "address_map": ["a:1=b:2"], "trust": "00" * 20},
    "image": {"digest": "sha256:" + "0" * 64},
    "imagePullSecrets": [{"name": "pull"}],
    "secrets": {
        name: {"name": name.lower()}
        for name in ("password", "authority", "clientCertificate", "signingKey", "identity", "passphrase", "store")
    },
    "storeEnvironment": {"AWS_ENDPOINT": "https://store"},
    "serviceAccount": {"annotations": {"role": "slotkeep"}},
    "archive": {"replicas": 2, "arguments": ["--ack", "repo"], "spool": {"persistent": True, "storageClassName": "local"}},
    "backup": {"arguments": ["--barrier"]},
    "verify": {"depth": "chain", "arguments": ["--sample", "10", "--again"]},
    "drill": {"enabled": True, "arguments": ["--at", "latest"]},
    "prune": {"enabled": True, "window": "14d", "arguments": ["--keep-daily", "7"], "compact": True},
    "networkPolicy": {
        "enabled": True,
        "storePeers": [{"ipBlock": {"cidr": "192.0.2.0/24"}}],
        "identityEndpoints": [{"cidr": "169.254.170.23/32", "port": 80}],
    },
    "podLabels": {"team": "data"},
    "podAnnotations": {"note": "x"},
    "nodeSelector": {"disk": "ssd"},
    "tolerations": [{"key": "backup", "operator": "Exists"}],
    "affinity": {"podAntiAffinity": {}},
    "priorityClassName": "high",
}
SEVERAL = LEAST | {"archive": {"replicas": 2}, "backup": {"enabled": False}, "verify": {"enabled": False}}
# Values that the chart must refuse.
REFUSED = {
    "no cluster": {"settings": {"repo": "s3://backups"}},
    "an unknown setting": {"settings": LEAST["settings"] | {"password": "x"}},
    "a secret among plain variables": LEAST | {"storeEnvironment": {"AWS_SECRET_ACCESS_KEY": "x"}},
    "an unknown value": LEAST | {"archiv": {}},
    "a prune that promises nothing": LEAST | {"prune": {"enabled": True}},
    "a compaction without what reads the log": LEAST
    | {"secrets": {"signingKey": {"name": "key"}}, "prune": {"enabled": True, "window": "14d", "compact": True}},
    "a compaction that the pod knows nothing of": LEAST | {"prune": {"enabled": True, "window": "14d", "arguments": ["--compact"]}},
    "an endpoint without a port": LEAST | {"networkPolicy": {"identityEndpoints": [{"cidr": "169.254.170.23/32"}]}},
    "no replica": LEAST | {"archive": {"replicas": 0}},
}

problems = []


def report(where, what):
    problems.append(f"{where}: {what}")


class Strict(yaml.SafeLoader):
    """YAML in which no key stands twice."""

    def construct_mapping(self, node, deep=False):
        keys = [key.value for key, _ in node.value]
        for key in {key for key in keys if keys.count(key) > 1}:
            raise yaml.YAMLError(f"{key} stands twice{node.start_mark}")
        return super().construct_mapping(node, deep)


def objects(where, text):
    try:
        return [item for item in yaml.load_all(text, Strict) if item]
    except yaml.YAMLError as error:
        report(where, error)
        return []


def chart_templates(values):
    chart = helm_python.Chart.load(str(CHART))
    rendered = chart.render(values, name="slotkeep", namespace="slotkeep")
    return {pathlib.Path(path).name: text for path, text in sorted(rendered.items()) if path.endswith(".yaml") and text.strip()}


def plain_manifests():
    """slotkeep.yaml: the rendered chart, without the marks of Helm."""
    values = yaml.load((MANIFESTS / "values.yaml").read_text(), Strict)
    text = "# Rendered from ../helm/slotkeep with values.yaml by `scripts/check-deploy.sh --write`: change those.\n"
    text += "---\n".join(body.strip("\n") + "\n" for body in chart_templates(values).values())
    marks = re.compile(r"^ *(helm\.sh/chart|app\.kubernetes\.io/managed-by):.*\n", re.MULTILINE)
    return marks.sub("", text)


def check_chart():
    """Gives the objects of every rendering."""
    for name, values in {"least": LEAST, "everything": EVERYTHING, "several": SEVERAL}.items():
        lint = helm_python.lint(str(CHART), values, strict=True)
        for found in lint["messages"]:
            if found["severity"] > 1:
                report(f"chart ({name})", found["error"])
        for error in lint["errors"]:
            report(f"chart ({name})", error)
        for file, text in chart_templates(values).items():
            for item in objects(f"chart ({name}) {file}", text):
                yield f"chart ({name}) {file}", item
    for what, values in REFUSED.items():
        chart = helm_python.Chart.load(str(CHART))
        try:
            chart.validate_schema(chart.merge_values(values))
            chart_templates(values)
        except helm_python.HelmError:
            continue
        report("chart", f"{what} is not refused")


def check_manifests():
    if RENDERED.read_text() != plain_manifests():
        report(RENDERED.name, "is not what the chart renders to: run scripts/check-deploy.sh --write")
    for path in sorted(MANIFESTS.glob("*.yaml")):
        if path.name != "values.yaml":
            for item in objects(path.name, path.read_text()):
                yield path.name, item


def check_schema(where, item):
    for version in KUBERNETES:
        try:
            kubernetes_validate.validate(item, version, strict=True)
        except Exception as error:  # of several unrelated types
            report(where, f"Kubernetes {version}: {error}")


def pod_of(item):
    spec = item.get("spec", {})
    if item["kind"] == "CronJob":
        spec = spec["jobTemplate"]["spec"]
    return spec.get("template", {}).get("spec")


def containers(pod):
    return pod.get("initContainers", []) + pod["containers"]


def check_pod(where, item, pod):
    """The profile `restricted` of Kubernetes's pod security standards, and what goes beyond it."""

    def want(holds, what):
        if not holds:
            report(f"{where} {item['kind']}/{item['metadata']['name']}", what)

    context = pod.get("securityContext", {})
    want(pod.get("automountServiceAccountToken") is False, "gets a token of the Kubernetes API")
    want(context.get("runAsNonRoot") is True and context.get("runAsUser", 0) > 0, "may run as root")
    want(context.get("seccompProfile") == {"type": "RuntimeDefault"}, "has no seccomp profile")
    for key in ("hostNetwork", "hostPID", "hostIPC"):
        want(not pod.get(key), f"has {key}")
    claims = [claim["metadata"]["name"] for claim in item["spec"].get("volumeClaimTemplates", [])]
    volumes = {volume["name"]: volume for volume in pod.get("volumes", [])}
    want(all("hostPath" not in volume for volume in volumes.values()), "mounts a folder of the node")
    used = set()
    for container in containers(pod):
        own, name = container.get("securityContext", {}), container["name"]
        want(own.get("allowPrivilegeEscalation") is False and not own.get("privileged"), f"{name} may gain privileges")
        want(own.get("readOnlyRootFilesystem") is True, f"{name} may write to its root file system")
        want(own.get("capabilities") == {"drop": ["ALL"]}, f"{name} keeps capabilities")
        resources = container.get("resources", {})
        want({"cpu", "memory"} <= resources.get("requests", {}).keys(), f"{name} requests no cpu or memory")
        want("memory" in resources.get("limits", {}), f"{name} has no limit of memory")
        want(not container["image"].endswith(":latest") and re.search(r"[:@]", container["image"]), f"{name} has an image of no version")
        want("command" not in container, f"{name} starts something else than its image's program")
        mounts = {mount["name"]: mount for mount in container.get("volumeMounts", [])}
        used |= mounts.keys()
        for mount in mounts.values():
            volume = volumes.get(mount["name"])
            want(volume is not None or mount["name"] in claims, f"{name} mounts {mount['name']}, which is no volume")
            if volume and ("secret" in volume or "configMap" in volume):
                want(mount.get("readOnly") is True, f"{name} may write to {mount['name']}")
    want(used >= volumes.keys(), f"has volumes that nothing mounts: {sorted(volumes.keys() - used)}")


class CommandLines:
    """Asks the built program whether it takes a command line, a variable, a settings file."""

    def __init__(self, program):
        self.program = program
        self.helps = {}

    def run(self, *arguments):
        done = subprocess.run([self.program, *arguments], capture_output=True, text=True, env={}, stdin=subprocess.DEVNULL, check=False)
        return done.returncode, done.stdout, done.stderr

    def check(self, where, arguments, variables=()):
        # Everything before it is parsed when clap comes to --help.
        code, text, error = self.run(*arguments, "--help")
        if code != 0 or "Usage: slotkeep" not in text:
            report(where, f"slotkeep does not take `{shlex.join(arguments)}`: {error.strip()}")
            return
        for name in variables:
            if f"[env: {name}=" not in text and not VARIABLES.fullmatch(name):
                report(where, f"`slotkeep {arguments[0]}` does not read {name}")

    def check_settings(self, where, text):
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder, "slotkeep.toml")
            path.write_text(text)
            # There is no such repository: any other complaint than of usage means that the settings were understood.
            code, _, error = self.run("list", "--config", str(path), "--repo", folder + "/none")
        if code == 2:
            report(where, f"slotkeep does not take the settings: {error.strip()}")

    def check_object(self, where, item):
        if item["kind"] == "ConfigMap":
            self.check_settings(where, item["data"]["slotkeep.toml"])
        pod = pod_of(item)
        for container in containers(pod) if pod else []:
            if container["name"] == "slotkeep":
                self.check(where, container["args"], [variable["name"] for variable in container["env"]])

    def check_unit(self, path):
        variables, command = [], None
        dropped = [DEPLOY.joinpath("systemd", "drop-ins", name) for name in drop_ins(path.name)]
        for file in [path, *dropped]:
            for line in file.read_text().splitlines():
                key, _, value = line.partition("=")
                if key == "ExecStart":
                    command = shlex.split(value.replace("%i", "main"))
                elif key == "Environment":
                    variables += [word.partition("=")[0] for word in shlex.split(value)]
        if command is None or command[0] != "/usr/bin/slotkeep":
            report(path.name, "does not start /usr/bin/slotkeep")
        else:
            self.check(path.name, command[1:], variables)

    def check_dockerfile(self, path):
        text = path.read_text()
        found = re.findall(r"^(ENTRYPOINT|CMD) \[(.*)\]$", text, re.MULTILINE)
        program = [word for _, line in found for word in re.findall(r'"([^"]*)"', line)]
        if program != ["/usr/bin/slotkeep", "--help"]:
            report(path.name, f"starts {program}")
        for want in (r"^USER 65532:65532$", r"^STOPSIGNAL SIGTERM$"):
            if not re.search(want, text, re.MULTILINE):
                report(path.name, f"has no line {want}")
        if re.search(r"^(ARG|ENV) .*(PASSWORD|SECRET|IDENTITY|TOKEN|PASSPHRASE)", text, re.MULTILINE):
            report(path.name, "puts a secret into the image")

    def check_page(self, path):
        text = path.read_text()
        lines = re.findall(r"`(slotkeep [^`\n]+)`", text)
        for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL):
            lines += block.replace("\\\n", " ").splitlines()
        for line in lines:
            words = shlex.split(line, comments=True)
            # Slotkeep itself, or what a container of its image is given.
            for place, word in enumerate(words):
                if (place == 0 and word == "slotkeep") or (words[:2] == ["docker", "run"] and re.match(r"slotkeep(-engine)?:", word)):
                    self.check(f"{path.name}: {line}", words[place + 1 :])


def check_context():
    """What the program includes of other folders than its crates gets into the image's build too."""
    root = DEPLOY.parent
    allowed = (DEPLOY / "docker" / "Dockerfile.dockerignore").read_text().splitlines()
    for source in root.glob("crates/*/src/**/*.rs"):
        for name in re.findall(r'include_(?:str|bytes)!\("(\.\./[^"]*)"\)', source.read_text()):
            path = (source.parent / name).resolve().relative_to(root)
            if path.parts[0] != "crates" and f"!{path}" not in allowed:
                report("Dockerfile.dockerignore", f"keeps {path} off, which {source.relative_to(root)} includes")


def check_versions():
    """The chart and the page name the version that is built here."""
    version = re.search(r'^version = "(.*)"$', (DEPLOY.parent / "Cargo.toml").read_text(), re.MULTILINE)[1]
    chart = yaml.load((CHART / "Chart.yaml").read_text(), Strict)
    if chart["appVersion"] != version:
        report("Chart.yaml", f"appVersion is not {version}")
    for path in (DEPLOY.parent / "docs" / "deploy.md", *MANIFESTS.glob("*.yaml"), *DEPLOY.glob("docker/Dockerfile*")):
        for tag in re.findall(r"\bslotkeep(?:-engine)?:(\d[\w.]*)", path.read_text()):
            if tag != version:
                report(path.name, f"names an image of {tag} instead of {version}")


def drop_ins(unit):
    """Those that docs/deploy.md allows for the unit."""
    if unit.startswith(("slotkeep-archive", "slotkeep-backup", "slotkeep-prune")):
        return ["writer-of-signed.conf", "local-repository.conf"]
    return ["reader-of-encrypted.conf", "local-repository.conf"]


def main():
    if sys.argv[1:] == ["--write"]:
        RENDERED.write_text(plain_manifests())
        return
    lines = CommandLines(sys.argv[1])
    kinds = []
    for where, item in [*check_chart(), *check_manifests()]:
        kinds.append(item["kind"])
        check_schema(where, item)
        pod = pod_of(item)
        if pod:
            check_pod(where, item, pod)
        lines.check_object(where, item)
    units = sorted(DEPLOY.glob("systemd/*.service"))
    for unit in units:
        lines.check_unit(unit)
    for dockerfile in (DEPLOY / "docker" / "Dockerfile", DEPLOY / "docker" / "Dockerfile.engine"):
        lines.check_dockerfile(dockerfile)
    check_context()
    check_versions()
    lines.check_page(DEPLOY.parent / "docs" / "deploy.md")
    for problem in problems:
        print(problem, file=sys.stderr)
    if problems:
        sys.exit(1)
    print(f"{len(kinds)} objects of {len(set(kinds))} kinds, {len(units)} services")


main()
