"""The Helm chart, rendered by Helm's own engine: check.py [--update] PROGRAM

PROGRAM is the avouch that was built: it has to take what the chart renders for it. With --update the
snapshots and the schema of `settings` are written anew; look at what changed before you keep it.
"""

import base64
import copy
import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
import unittest
import urllib.error
import urllib.request

import helm_python
import kubernetes_validate
import yaml

import etcd
import readme
import rules

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CHART = ROOT / "helm/avouch"
PROFILES = {path.stem: path for path in sorted((HERE / "profiles").glob("*.yaml"))}
# The oldest that Chart.yaml takes, and the latest three.
KUBERNETES = ("1.30", "1.35", "1.36", "1.37")
# Kinds whose schemas are not Kubernetes' own. Their fields are in the snapshots only.
FOREIGN = {
    ("cert-manager.io/v1", "Certificate"),
    ("monitoring.coreos.com/v1", "PodMonitor"),
    ("monitoring.coreos.com/v1", "PrometheusRule"),
    ("monitoring.coreos.com/v1", "ServiceMonitor"),
    ("networking.istio.io/v1", "ServiceEntry"),
    ("security.istio.io/v1", "AuthorizationPolicy"),
    ("security.istio.io/v1", "PeerAuthentication"),
    ("security.istio.io/v1", "RequestAuthentication"),
}
# Keys of the configuration that neither the chart sets nor `settings` takes: they name files that no
# volume brings.
LEFT_OUT = {"password.blocklist_file"}
# What the chart says itself, of what other values say, and no setting may change.
OWN = {
    "audit.otlp_ca_file", "audit.otlp_endpoint", "audit.output",
    "etcd.ca_file", "etcd.cert_file", "etcd.key_file", "etcd.password_file",
    "etcd.plaintext_behind_mesh", "etcd.username", "issuer.audience", "issuer.url", "keys.backup_key_file", "keys.encryption_key_file", "limits.max_connections",
    "password.memory_kib", "password.pepper_file", "password.workers", "server.admin_client_file", "server.drain_delay",
    "server.drain_timeout", "server.files_dir",
    "server.listen", "server.ops_listen", "server.plaintext_mesh", "server.public_listen",
    "store.cache_bytes", "store.path", "store.url", "tls.cert_file", "tls.client_auth", "tls.client_ca_file",
    "tls.key_file",
}
PROGRAM = None
UPDATE = False


class Loader(yaml.SafeLoader):
    """YAML that refuses a key that is there twice."""


def mapping(loader, node, deep=False):
    """A mapping whose keys differ."""
    keys = [loader.construct_object(key, deep=True) for key, _ in node.value]
    if len(keys) != len(set(keys)):
        raise ValueError(f"a key is there twice: {sorted(keys)}")
    return yaml.SafeLoader.construct_mapping(loader, node, deep)


Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping)


def documents(text):
    """The objects in a stream of YAML."""
    return [it for it in yaml.load_all(text, Loader) if it]


def profile(name):
    """The values of a profile."""
    return yaml.safe_load(PROFILES[name].read_text())


def manifests(values, name="avouch", **how):
    """The files that the chart renders with these values."""
    with helm_python.Chart.load(CHART) as chart:
        return chart.render(values, name=name, namespace="identity", **how)


def render(values, **how):
    """The objects that the chart renders with these values."""
    files = manifests(values, **how)
    return [it for path, text in sorted(files.items()) if path.endswith(".yaml")
            for it in documents(text)]


def changed(values, path, value):
    """The values with one of them changed; `None` takes it away."""
    values = copy.deepcopy(values)
    inner, *last = values, path.split(".")
    *way, key = last[0]
    for step in way:
        inner = inner.setdefault(step, {})
    if value is None:
        inner.pop(key, None)
    else:
        inner[key] = value
    return values


def one(objects, kind, part=None):
    """The only object of a kind, and of a part of avouch."""
    found = [it for it in objects if it["kind"] == kind and part in
             (None, it["metadata"].get("labels", {}).get("app.kubernetes.io/component"))]
    assert len(found) == 1, f"{len(found)} of {kind}"
    return found[0]


def server(objects):
    """What runs the servers."""
    (found,) = [it for it in objects if it["kind"] in ("StatefulSet", "Deployment")]
    return found


def config(objects):
    """The configuration file among rendered objects."""
    (text,) = [it["data"]["avouch.toml"] for it in objects
               if it["kind"] == "ConfigMap" and "avouch.toml" in it["data"]]
    return text


def reference():
    """Every key of the program's configuration, with its default as TOML writes it."""
    text = subprocess.run([PROGRAM, "check-config", "--reference"], check=True, text=True,
                          capture_output=True).stdout.split("#[[grant]]")[0]
    section, keys = None, {}
    for line in text.splitlines():
        if match := re.match(r"\[(\w+)\]$", line):
            section = match[1]
        elif match := re.match(r"#(\w+) = (.*)$", line):
            keys[section, match[1]] = match[2]
    return keys


def settings_schema():
    """The schema of `settings`: the keys of the program, less those that are the chart's."""
    sections = {}
    for (section, key), default in reference().items():
        if f"{section}.{key}" in OWN | LEFT_OUT:
            continue
        if default.startswith('"'):
            kind = {"type": "string"}
        elif default in ("true", "false"):
            kind = {"type": "boolean"}
        else:
            kind = {"type": "integer", "minimum": 0}
        # The memory is computed from these.
        if key in ("connection_window_bytes", "send_buffer_bytes"):
            kind["pattern"] = "^[1-9][0-9]*(KiB|MiB)$"
        sections.setdefault(section, {})[key] = kind
    closed = {"type": "object", "additionalProperties": False}
    return closed | {"properties": {name: closed | {"properties": keys}
                                    for name, keys in sections.items()}}


# The examples, and a namespace of each. One that mounts a directory of the node needs a privileged one.
EXAMPLES = {"migrate": "identity", "node-agent": "avouch-nodes", "restore": "identity", "sidecar": "shop"}


def example(name):
    """The objects of an example, each with a namespace."""
    objects = documents((CHART / f"examples/{name}.yaml").read_text())
    for it in objects:
        it["metadata"]["namespace"] = EXAMPLES[name]
    return objects


ETCD = {"engine": "etcd", "etcd.endpoints": ["etcd:2379"], "etcd.caSecretName": "x",
        "etcd.peers": [{"podSelector": {}}], "adminClient.secretName": "y"}
BACKUP = {"backup.enabled": True, "backup.credentialsSecretName": "x"}
# What was changed in the profile cert-manager, and what the refusal says.
REFUSED = [
    ({"engine": "postgres"}, "at '/engine'"),
    ({"replicas": 2}, "replicas is 2, and engine sled keeps its data in one place: replicas must be 1"),
    ({"replicas": -1}, "at '/replicas'"),
    ({"autoscaling.enabled": True}, "autoscaling.enabled needs engine etcd"),
    ({"etcd.endpoints": ["etcd:2379"]}, "etcd has no effect: set engine to etcd"),
    ({"etcd.caSecretName": "x"}, "etcd has no effect: set engine to etcd"),
    ({"etcd.certificateSecretName": "x"}, "etcd has no effect: set engine to etcd"),
    ({"etcd.username": "x"}, "etcd has no effect: set engine to etcd"),
    ({"etcd.passwordSecretName": "x"}, "etcd has no effect: set engine to etcd"),
    ({"etcd.plaintextBehindMesh": True}, "etcd has no effect: set engine to etcd"),
    ({"etcd.peers": [{"podSelector": {}}]}, "etcd has no effect: set engine to etcd"),
    ({"settings.etcd.request_timeout": "1s"}, "settings.etcd has no effect: set engine to etcd"),
    (ETCD | {"etcd.endpoints": []}, "engine etcd needs etcd.endpoints"),
    (ETCD | {"etcd.endpoints": ["etcd:2379", "etcd:2379"]}, "at '/etcd/endpoints'"),
    (ETCD | {"etcd.endpoints": ["https://etcd:2379"]}, "at '/etcd/endpoints/0'"),
    (ETCD | {"etcd.endpoints": ["root:secret@etcd:2379"]}, "at '/etcd/endpoints/0'"),
    (ETCD | {"etcd.prefix": "avouch"}, "at '/etcd/prefix'"),
    (ETCD | {"etcd.prefix": "/avouch/"}, "at '/etcd/prefix'"),
    (ETCD | {"etcd.caSecretName": ""}, "engine etcd needs etcd.caSecretName to know the members by"),
    (ETCD | {"etcd.plaintextBehindMesh": True},
     "etcd.caSecretName and etcd.certificateSecretName have no effect with etcd.plaintextBehindMesh"),
    (ETCD | {"etcd.plaintextBehindMesh": True, "etcd.caSecretName": "", "etcd.certificateSecretName": "x"},
     "etcd.caSecretName and etcd.certificateSecretName have no effect with etcd.plaintextBehindMesh"),
    (ETCD | {"etcd.username": "avouch"}, "etcd.username and etcd.passwordSecretName go together"),
    (ETCD | {"etcd.passwordSecretName": "x"}, "etcd.username and etcd.passwordSecretName go together"),
    (ETCD | {"etcd.password": "x"}, "additional properties 'password' not allowed"),
    (ETCD | {"etcd.peers": []}, "engine etcd needs etcd.peers"),
    (ETCD | {"adminClient": None}, "engine etcd needs adminClient.secretName"),
    (ETCD | {"autoscaling.enabled": True, "replicas": 3}, "replicas is 3 and autoscaling.enabled"),
    (ETCD | {"autoscaling.enabled": True, "autoscaling.minReplicas": 10},
     "autoscaling.minReplicas is 10, more than autoscaling.maxReplicas, 9"),
    (ETCD | {"autoscaling.minReplicas": 1}, "at '/autoscaling/minReplicas'"),
    (ETCD | {"podDisruptionBudget.maxUnavailable": 3},
     "podDisruptionBudget.maxUnavailable is 3 and there may be 3 servers"),
    (ETCD | {"replicas": 5, "podDisruptionBudget.maxUnavailable": 5},
     "podDisruptionBudget.maxUnavailable is 5 and there may be 5 servers"),
    (ETCD | {"autoscaling.enabled": True, "podDisruptionBudget.maxUnavailable": 3},
     "podDisruptionBudget.maxUnavailable is 3 and there may be 3 servers"),
    (ETCD | {"podDisruptionBudget.maxUnavailable": 0}, "at '/podDisruptionBudget/maxUnavailable'"),
    (ETCD | {"spread.zones": "Never"}, "at '/spread/zones'"),
    (ETCD | {"settings.etcd.username": "x"}, "additional properties 'username' not allowed"),
    (ETCD | {"settings.server.files_dir": "/x"}, "'files_dir' not allowed"),
    ({"settings.store.url": "etcd://x"}, "'url' not allowed"),
    ({"adminClient.secretName": "A_B"}, "at '/adminClient/secretName'"),
    ({"image.tag": "latest"}, "image.tag is latest"),
    ({"image.digest": "sha256:12"}, "at '/image/digest'"),
    ({"issuer.url": None}, "issuer.url is missing"),
    ({"issuer.url": "http://id.example.com"}, "issuer.url must begin with https://"),
    ({"issuer.url": "https://id.example.com/"}, "at '/issuer/url'"),
    ({"issuer.url": "https://id.example.com?x"}, "at '/issuer/url'"),
    ({"encryptionKey.secretName": None}, "encryptionKey.secretName is missing: make the Secret once"),
    ({"encryptionKey.secretName": "A_B"}, "at '/encryptionKey/secretName'"),
    ({"tls.mode": None, "tls.certManager": None}, "tls.mode is missing"),
    ({"tls.mode": "none"}, "at '/tls/mode'"),
    ({"tls.certManager.issuerName": None}, "tls.mode certManager needs tls.certManager.issuerName"),
    ({"tls.mode": "secret", "tls.certManager": None}, "tls.mode secret needs tls.secretName"),
    ({"tls.mode": "secret", "tls.secretName": "x"}, "tls.certManager.issuerName has no effect"),
    ({"tls.secretName": "x"}, "tls.secretName has no effect"),
    ({"tls.clientAuth": "optional"}, "tls.clientAuth needs tls.clientCaSecretName"),
    ({"tls.clientCaSecretName": "x"}, "tls.clientCaSecretName has no effect"),
    ({"tls.mode": "mesh", "tls.certManager": None, "tls.clientAuth": "required",
      "tls.clientCaSecretName": "x"}, "tls.clientAuth has no effect in tls.mode mesh"),
    ({"tls.mode": "mesh", "tls.certManager": None}, "tls.mode mesh needs networkPolicy.egress"),
    ({"grants": [{"certificateName": "a", "right": "watch"}]}, "grants have no effect"),
    ({"grants": [{"certificateName": "a", "right": "everything"}]}, "at '/grants/0/right'"),
    ({"grants": [{"right": "watch"}]}, "missing property 'certificateName'"),
    ({"tls.mode": "mesh", "tls.certManager": None, "networkPolicy.egress": [{}],
      "service.type": "LoadBalancer"}, "service.type LoadBalancer hands plaintext"),
    ({"resources.memory": "256Mi"}, "resources.memory is 256Mi and at least 462Mi are needed: base 64Mi, "
     "cache 96Mi, hashes 38Mi, connections 125Mi, streams 32Mi, sessions 16Mi, and a quarter more"),
    ({"resources.memory": "512Mi", "password.workers": 8}, "hashes 152Mi"),
    ({"resources.memory": "512Mi", "store.cache": "256Mi"}, "cache 384Mi"),
    ({"resources.memory": "512Mi", "settings.limits.connection_window_bytes": "128KiB"},
     "connections 250Mi"),
    (ETCD | {"resources.memory": "256Mi"}, "resources.memory is 256Mi and at least 483Mi are needed: base 64Mi, "
     "cache 128Mi, hashes 38Mi, connections 125Mi, streams 32Mi, sessions 0Mi, and a quarter more"),
    ({"resources.memory": "1G"}, "at '/resources/memory'"),
    ({"resources.cpu.limit": 2}, "at '/resources/cpu/limit'"),
    ({"persistence.size": "512Mi"}, "persistence.size is 512Mi and must be more than 1Gi"),
    ({"persistence.accessMode": "ReadWriteMany"}, "at '/persistence/accessMode'"),
    ({"settings.server.listen": "0.0.0.0:1"}, "additional properties 'listen' not allowed"),
    ({"settings.keys.encryption_key_file": "/x"}, "'encryption_key_file' not allowed"),
    ({"settings.sotre.path": "/x"}, "additional properties 'sotre' not allowed"),
    ({"audit.collectorUrl": "http://collector:4317"}, "audit.collectorUrl must begin with https://"),
    ({"audit.collectorUrl": "https://collector:4317"}, "audit.collectorUrl is https and needs audit.caSecretName"),
    ({"audit.caSecretName": "x"}, "audit.caSecretName has no effect"),
    ({"audit.collectorUrl": "https://collector:4317", "audit.caSecretName": "x"},
     "audit.collectorUrl needs networkPolicy.egress"),
    ({"settings.telemetry.otlp_endpoint": "http://10.0.0.1:4317"},
     "settings.telemetry.otlp_endpoint needs networkPolicy.egress"),
    ({"audit.collectorUrl": "https://user@collector:4317"}, "at '/audit/collectorUrl'"),
    ({"settings.audit.output": "/tmp/audit"}, "additional properties 'output' not allowed"),
    ({"pod.userId": 0}, "at '/pod/userId'"),
    ({"pod.labels": {"app.kubernetes.io/name": "x"}}, "invalid propertyName 'app.kubernetes.io/name'"),
    ({"pod.annotations": {"checksum/config": "x"}}, "invalid propertyName 'checksum/config'"),
    ({"shutdown.delaySeconds": 0}, "at '/shutdown/delaySeconds'"),
    ({"networkPolicy.clients": [{}]}, "at '/networkPolicy/clients/0'"),
    ({"serviceMonitor.enabled": True}, "serviceMonitor.enabled needs networkPolicy.scrapers"),
    ({"nodeAgent.enabled": True}, "nodeAgent.enabled needs nodeAgent.credentialsSecretName"),
    ({"nodeAgent.enabled": True, "nodeAgent.credentialsSecretName": "x", "nodeAgent.memory": "100Mi"},
     "nodeAgent.memory is 100Mi and at least 126Mi are needed"),
    ({"nodeAgent.enabled": True, "nodeAgent.credentialsSecretName": "x", "nodeAgent.namespace": "y"},
     "nodeAgent.namespace needs nodeAgent.caSecretName"),
    ({"nodeAgent.enabled": True, "nodeAgent.credentialsSecretName": "x", "tls.clientAuth": "required",
      "tls.clientCaSecretName": "y"}, "nodeAgent.enabled needs tls.clientAuth none or optional"),
    ({"tls.mode": "mesh", "tls.certManager": None, "networkPolicy.egress": [{}],
      "nodeAgent.enabled": True, "nodeAgent.credentialsSecretName": "x",
      "nodeAgent.caSecretName": "y"}, "nodeAgent.caSecretName has no effect in tls.mode mesh"),
    ({"backup.enabled": True}, "backup.enabled needs backup.credentialsSecretName, or"),
    (BACKUP | {"backup.certificateSecretName": "y"}, "are both set: the job calls as one of them"),
    (BACKUP | {"tls.clientAuth": "required", "tls.clientCaSecretName": "y"},
     "backup.credentialsSecretName does not do where tls.clientAuth is required"),
    ({"backup.enabled": True, "backup.certificateSecretName": "x", "backup.certificateName": "a"},
     "backup.certificateSecretName needs tls.clientAuth optional or required"),
    ({"backup.enabled": True, "backup.certificateSecretName": "x", "tls.clientAuth": "optional",
      "tls.clientCaSecretName": "y"}, "backup.certificateSecretName needs backup.certificateName"),
    (BACKUP | {"backup.certificateName": "a"}, "backup.certificateName has no effect"),
    (BACKUP | {"backup.destination": "upload"}, "backup.destination upload needs backup.upload.image"),
    (BACKUP | {"backup.destination": "upload", "backup.upload.image": "app:latest"},
     "backup.upload.image is latest"),
    (BACKUP | {"backup.destination": "upload", "backup.upload.image": "a:1"},
     "backup.destination upload needs backup.upload.egress"),
    (BACKUP | {"backup.destination": "upload", "backup.volume.existingClaim": "z"},
     "backup.volume.existingClaim has no effect"),
    (BACKUP | {"backup.upload.image": "a:1"}, "backup.upload.image has no effect"),
    (BACKUP | {"backup.upload.image": "a"}, "at '/backup/upload/image'"),
    (BACKUP | {"backup.destination": "s3"}, "at '/backup/destination'"),
    (BACKUP | {"backup.schedule": "3 * * *"}, "at '/backup/schedule'"),
    (BACKUP | {"backup.schedule": "TZ=UTC 3 * * * *"}, "at '/backup/schedule'"),
    (BACKUP | {"backup.keep": 0}, "at '/backup/keep'"),
    (BACKUP | {"backup.history.failed": 0}, "at '/backup/history/failed'"),
    (BACKUP | {"backup.deadlineSeconds": 0}, "at '/backup/deadlineSeconds'"),
    (BACKUP | {"backup.volume.accessMode": "ReadOnlyMany"}, "at '/backup/volume/accessMode'"),
    (BACKUP | {"backup.memory": ""}, "at '/backup/memory'"),
    ({"settings.keys.backup_key_file": "/x"}, "'backup_key_file' not allowed"),
    ({"backupKey.secretName": "A_B"}, "at '/backupKey/secretName'"),
    ({"istio.peerAuthentication": True}, "istio.peerAuthentication needs tls.mode mesh"),
    ({"istio.authorizationPolicies": [
        {"name": "a", "matchLabels": {"app": "x"}, "provider": "avouch"},
        {"name": "b", "matchLabels": {"app": "x"}, "provider": "opa"}]}, "names two providers"),
    ({"istio.requestAuthentications": [{"name": "a", "matchLabels": {}, "audiences": ["x"]}]},
     "at '/istio/requestAuthentications/0/matchLabels'"),
    ({"nonsense": 1}, "additional properties 'nonsense' not allowed"),
    ({"image.nonsense": 1}, "additional properties 'nonsense' not allowed"),
]


class Chart(unittest.TestCase):
    """What is rendered."""

    def test_lint(self):
        for name in PROFILES:
            for version in KUBERNETES:
                report = helm_python.lint(CHART, profile(name), strict=True, namespace="identity",
                                          kube_version=f"v{version}.0")
                worst = [it for it in report["messages"] if it["severity"] >= 2]
                self.assertEqual((worst, report["errors"]), ([], []), f"{name} on {version}")

    def test_snapshots(self):
        for name in PROFILES:
            files = manifests(profile(name))
            text = "".join(f"# {path}\n{text.strip()}\n" for path, text in sorted(files.items())
                           if text.strip())
            path = HERE / "snapshots" / f"{name}.yaml"
            if UPDATE:
                path.write_text(text)
            self.assertEqual(text, path.read_text(), f"{path} differs: check.py --update, and look")
        kept = {path.stem for path in (HERE / "snapshots").iterdir()}
        self.assertEqual(kept, set(PROFILES), "a snapshot without a profile")

    def test_an_upgrade_renders_the_same_as_the_installation(self):
        for name in PROFILES:
            first = manifests(profile(name), is_install=True)
            again = manifests(profile(name), is_upgrade=True, revision=2)
            self.assertEqual(first, again)
        # Neither chance nor the cluster says what is rendered, and no Secret is.
        for path in sorted((CHART / "templates").rglob("*.*")):
            found = re.findall(r"\b(rand\w+|gen\w+(?:CA|Cert|Key)\w*|uuidv4|htpasswd|bcrypt|now|lookup|"
                               r"encryptAES|kind: Secret)\b", path.read_text())
            self.assertEqual(found, [], path)

    def test_what_cannot_work_is_refused_and_says_why(self):
        base = profile("cert-manager")
        render(base)
        for changes, message in REFUSED:
            values = base
            for path, value in changes.items():
                values = changed(values, path, value)
            with self.subTest(changes=changes):
                with self.assertRaises(helm_python.HelmError) as caught:
                    manifests(values)
                self.assertIn(message, str(caught.exception))

    def test_every_refusal_is_in_the_table(self):
        text = (CHART / "templates/_check.tpl").read_text()
        messages = re.findall(r'append \$bad (?:\(printf )?"((?:[^"\\]|\\.)*)"', text)
        self.assertGreater(len(messages), 25)
        # What depends on files of the chart is looked at by `test_files`.
        messages = [it for it in messages if "this chart has no" not in it]
        for message in messages:
            pattern = ".*".join(re.escape(part) for part in re.split(r"%[ds]", message))
            found = [said for _, said in REFUSED
                     if re.search(re.escape(said.split(" is ")[0]), message) or re.match(pattern, said)]
            self.assertTrue(found, message)

    def test_the_commands_of_the_readme_render(self):
        commands = re.findall(r"^helm install avouch helm/avouch .*?(?<!\\)$", (CHART / "README.md").read_text(),
                              re.M | re.S)
        kinds = []
        for command in commands:
            words = shlex.split(command.replace("\\\n", " "))
            self.assertEqual(words[:6], ["helm", "install", "avouch", "helm/avouch", "--namespace", "identity"])
            self.assertEqual(set(words[6::2]), {"--set"})
            values = {}
            for word in words[7::2]:
                path, value = word.split("=", 1)
                # A dot in a key is escaped, and a list stands in braces or by its only index.
                *way, key = [it.replace("\\.", ".") for it in re.split(r"(?<!\\)\.", path)]
                inner = values
                for step in way:
                    step, first = (step[:-3], True) if step.endswith("[0]") else (step, False)
                    inner = inner.setdefault(step, [{}] if first else {})
                    inner = inner[0] if first else inner
                inner[key] = value[1:-1].split(",") if value.startswith("{") else value
            kinds.append(server(render(values))["kind"])
        self.assertEqual(kinds, ["StatefulSet", "Deployment"])

    def test_everything_wrong_is_said_at_once(self):
        with self.assertRaises(helm_python.HelmError) as caught:
            manifests({"replicas": 3, "persistence": {"size": "1Gi"}})
        for part in ("replicas is 3", "issuer.url", "encryptionKey", "tls.mode", "persistence.size"):
            self.assertIn(part, str(caught.exception))

    def test_memory_is_refused_one_mebibyte_below_what_is_computed(self):
        for name in ("cert-manager", "mesh", "etcd"):
            base = profile(name)
            pod = server(render(base))["spec"]["template"]["spec"]
            memory = pod["containers"][0]["resources"]["limits"]["memory"]
            enough = int(memory.removesuffix("Mi"))
            render(changed(base, "resources.memory", f"{enough}Mi"))
            with self.assertRaises(helm_python.HelmError) as caught:
                render(changed(base, "resources.memory", f"{enough - 1}Mi"))
            self.assertIn(f"at least {enough}Mi are needed", str(caught.exception))

    def test_hashes_follow_the_cpus(self):
        base = profile("cert-manager")
        for limit, workers in (("500m", 1), ("2", 2), ("3500m", 3), ("16", 16)):
            parsed = tomllib.loads(config(render(changed(base, "resources.cpu.limit", limit))))
            self.assertEqual(parsed["password"]["workers"], workers)
        parsed = tomllib.loads(config(render(changed(base, "password.workers", 5))))
        self.assertEqual(parsed["password"]["workers"], 5)

    def test_settings_go_over_the_defaults_of_the_chart(self):
        settings = {"log": {"format": "human"}, "limits": {"max_connections_per_peer": 7}}
        parsed = tomllib.loads(config(render(changed(profile("mesh"), "settings", settings))))
        self.assertEqual(parsed["log"]["format"], "human")
        self.assertEqual(parsed["limits"]["max_connections_per_peer"], 7)
        self.assertEqual(parsed["limits"]["max_connections"], 2000)

    def test_the_kubelet_waits_longer_than_the_server_drains(self):
        values = changed(profile("cert-manager"), "shutdown", {"delaySeconds": 7, "drainSeconds": 90})
        objects = render(values)
        pod = one(objects, "StatefulSet")["spec"]["template"]["spec"]
        server = tomllib.loads(config(objects))["server"]
        self.assertEqual((server["drain_delay"], server["drain_timeout"]), ("7s", "90s"))
        self.assertEqual(pod["terminationGracePeriodSeconds"], 7 + 90 + 10)
        # The server waits by itself: a sleep before the signal would be waited for as well.
        self.assertNotIn("lifecycle", pod["containers"][0])

    def test_another_configuration_is_another_pod_and_another_chart_version_is_not(self):
        base = profile("cert-manager")
        before = one(render(base), "StatefulSet")["spec"]["template"]["metadata"]
        after = one(render(changed(base, "settings.log.level", "debug")), "StatefulSet")
        after = after["spec"]["template"]["metadata"]
        self.assertNotEqual(before["annotations"], after["annotations"])
        self.assertFalse({"helm.sh/chart", "app.kubernetes.io/version"} & set(before["labels"]))

    def test_nobody_gets_in_where_nobody_is_named(self):
        values = changed(profile("cert-manager"), "networkPolicy.clients", [])
        policy = one(render(values), "NetworkPolicy", "server")
        ports = [port["port"] for rule in policy["spec"]["ingress"] for port in rule["ports"]]
        self.assertEqual(ports, [7701])
        self.assertEqual(policy["spec"]["egress"], [])

    def test_what_goes_with_the_release(self):
        for retain, policy in ((True, "Retain"), (False, "Delete")):
            values = changed(profile("cert-manager"), "persistence.retain", retain)
            spec = one(render(values), "StatefulSet")["spec"]
            kept = spec["persistentVolumeClaimRetentionPolicy"]
            self.assertEqual(kept, {"whenDeleted": policy, "whenScaled": "Retain"})

    def test_many_servers_are_a_deployment_without_a_volume_of_its_own(self):
        for name, least, budget in (("etcd", 3, 1), ("etcd-mesh", 5, 2)):
            objects = render(profile(name))
            made = one(objects, "Deployment", "server")
            self.assertFalse([it for it in objects if it["kind"] == "StatefulSet"])
            spec, pod = made["spec"], made["spec"]["template"]["spec"]
            self.assertEqual(spec["strategy"], {"type": "RollingUpdate", "rollingUpdate":
                                                {"maxUnavailable": 0, "maxSurge": 1}})
            self.assertGreater(spec["progressDeadlineSeconds"], 600)
            self.assertEqual(one(objects, "PodDisruptionBudget")["spec"]["maxUnavailable"], budget)
            scaled = [it["spec"] for it in objects if it["kind"] == "HorizontalPodAutoscaler"]
            if name == "etcd":
                # Two that say how many there are would undo each other's work.
                self.assertNotIn("replicas", spec)
                self.assertEqual([it["minReplicas"] for it in scaled], [least])
            else:
                self.assertEqual((spec["replicas"], scaled), (least, []))
            spread = {it["topologyKey"]: it["whenUnsatisfiable"] for it in pod["topologySpreadConstraints"]}
            zones = "DoNotSchedule" if name == "etcd-mesh" else "ScheduleAnyway"
            self.assertEqual(spread, {"topology.kubernetes.io/zone": zones,
                                      "kubernetes.io/hostname": "ScheduleAnyway"})
            kinds = {it["name"]: set(it) - {"name"} for it in pod["volumes"]}
            self.assertEqual(kinds["data"], {"emptyDir"})
            self.assertFalse([it for it in kinds.values() if it == {"persistentVolumeClaim"}])
        self.assertEqual(one(render(changed(profile("etcd"), "autoscaling", None)), "Deployment", "server")
                         ["spec"]["replicas"], 3)
        alone = render(changed(profile("etcd-mesh") | {"podDisruptionBudget": {}}, "replicas", 1))
        self.assertFalse([it for it in alone if it["kind"] == "PodDisruptionBudget"])

    def test_what_opens_etcd_is_in_files(self):
        objects = render(profile("etcd"))
        parsed = tomllib.loads(config(objects))
        members = "etcd-0.etcd.storage.svc:2379,etcd-1.etcd.storage.svc:2379,etcd-2.etcd.storage.svc"
        self.assertEqual(parsed["store"], {"url": f"etcds://{members}/avouch/prod"})
        self.assertEqual(parsed["etcd"], {
            "ca_file": "/etc/avouch/etcd-ca/ca.crt", "cert_file": "/etc/avouch/etcd-certificate/tls.crt",
            "key_file": "/etc/avouch/etcd-certificate/tls.key", "username": "avouch",
            "password_file": "/etc/avouch/etcd-password/password", "request_timeout": "1s"})
        container = server(objects)["spec"]["template"]["spec"]["containers"][0]
        self.assertEqual({it["name"] for it in container["env"]}, {"AVOUCH_SERVER", "AVOUCH_CA_FILE"})
        plain = tomllib.loads(config(render(profile("etcd-mesh"))))
        self.assertEqual(plain["store"]["url"],
                         "etcd://etcd.storage.svc:12379,etcd-other.storage.svc:2379/avouch")
        self.assertEqual(plain["etcd"], {"plaintext_behind_mesh": True})

    def test_servers_reach_etcd_and_nobody_else(self):
        for name, ports in (("etcd", [2379]), ("etcd-mesh", [12379, 2379])):
            values = profile(name)
            dns, etcd, *rest = one(render(values), "NetworkPolicy", "server")["spec"]["egress"]
            self.assertEqual([it["port"] for it in dns["ports"]], [53, 53])
            self.assertEqual([it["port"] for it in etcd["ports"]], ports)
            self.assertEqual(etcd["to"], values["etcd"]["peers"])
            self.assertEqual(rest, values["networkPolicy"].get("egress", []))

    def test_a_backup_has_a_caller_and_a_place(self):
        for name in ("full", "mesh"):
            objects = render(profile(name))
            job = one(objects, "CronJob")["spec"]["jobTemplate"]["spec"]["template"]
            grants = tomllib.loads(config(objects)).get("grant", [])
            mine = [it for it in grants if it["right"] == "backup"]
            claims = [it["metadata"]["name"] for it in objects if it["kind"] == "PersistentVolumeClaim"]
            kinds = {it["name"]: set(it) - {"name"} for it in job["spec"]["volumes"]}
            (made,) = [it for it in rules.containers(job["spec"]) if it["name"] == "backup"]
            if name == "full":
                # The certificate is all that it shows, and the server lets it do just that.
                named = profile(name)["backup"]["certificateName"]
                self.assertEqual(mine, [{"certificate_name": named, "right": "backup"}])
                self.assertNotIn("credentials", kinds)
                self.assertEqual((claims, kinds["backup"]), (["id-backup"], {"persistentVolumeClaim"}))
                self.assertIn("--keep=48", made["args"])
                self.assertEqual(job["spec"]["containers"], [made])
            else:
                self.assertEqual((mine, claims, kinds["backup"]), ([], [], {"emptyDir"}))
                self.assertNotIn("certificate", kinds)
                self.assertEqual(job["spec"]["initContainers"], [made])
                self.assertFalse([it for it in made["args"] if it.startswith("--keep")])
            policy = one(objects, "NetworkPolicy", "server")
            asked = [it for rule in policy["spec"]["ingress"] for it in rule["from"]
                     if rule["ports"][0]["port"] == 7700 and "podSelector" in it]
            labels = job["metadata"]["labels"]
            self.assertTrue([it for it in asked if it["podSelector"]
                             and it["podSelector"]["matchLabels"].items() <= labels.items()])
        given = changed(profile("full"), "backup.volume.existingClaim", "shelf")
        objects = render(given)
        self.assertEqual([it for it in objects if it["kind"] == "PersistentVolumeClaim"], [])
        spec = one(objects, "CronJob")["spec"]["jobTemplate"]["spec"]["template"]["spec"]
        self.assertIn({"name": "backup", "persistentVolumeClaim": {"claimName": "shelf"}}, spec["volumes"])
        for retain in (True, False):
            objects = render(changed(profile("full"), "backup.volume.retain", retain))
            notes = one(objects, "PersistentVolumeClaim")["metadata"].get("annotations", {})
            self.assertEqual(notes.get("helm.sh/resource-policy") == "keep", retain)

    def test_files(self):
        for value, path in (("prometheusRule", "alerts.yaml"), ("dashboard", "dashboard.json")):
            values = changed(profile("cert-manager"), f"{value}.enabled", True)
            source = yaml.safe_load((CHART / "files" / path).read_text())
            (made,) = [it for it in render(values)
                       if it["kind"] == "PrometheusRule" or "avouch.json" in it.get("data", {})]
            self.assertEqual(made.get("spec") or json.loads(made["data"]["avouch.json"]), source)
            with tempfile.TemporaryDirectory() as scratch:
                without = shutil.copytree(CHART, pathlib.Path(scratch) / "avouch",
                                          ignore=shutil.ignore_patterns(path))
                with helm_python.Chart.load(without) as chart, \
                        self.assertRaises(helm_python.HelmError) as caught:
                    chart.render(values, name="avouch", namespace="identity")
                self.assertIn(f"this chart has no files/{path}", str(caught.exception))

    def test_readme_is_current(self):
        before, after = readme.written()
        self.assertEqual(before, after, "run tests/chart/readme.py")


class Schema(unittest.TestCase):
    """values.schema.json."""

    def setUp(self):
        self.schema = json.loads((CHART / "values.schema.json").read_text())

    def test_no_object_takes_what_is_not_named(self):
        # Labels and such have names of your own; affinity is Kubernetes' own, and so is `global` Helm's.
        open_ends = set()

        def walk(node, path):
            if node.get("type") == "object" and node.get("additionalProperties") is not False:
                open_ends.add(path[-1])
            for key, inner in node.get("properties", {}).items():
                walk(inner, [*path, key])
            if "items" in node:
                walk(node["items"], path)

        walk(self.schema, ["values"])
        self.assertEqual(open_ends, {"annotations", "global", "labels", "serviceAccountAnnotations", "matchLabels", "nodeAffinity",
                                     "nodeSelector", "podAffinity", "podAntiAffinity"})

    def test_every_value_is_in_the_schema_and_the_other_way_round(self):
        def names(node, path=""):
            for key, inner in node.items():
                yield f"{path}{key}"
                if isinstance(inner, dict):
                    yield from names(inner, f"{path}{key}.")

        def known(node, path=""):
            for key, inner in node.get("properties", {}).items():
                yield f"{path}{key}"
                yield from known(inner, f"{path}{key}.")

        values = yaml.safe_load((CHART / "values.yaml").read_text())
        mine = {it for it in names(values) if not it.startswith("dashboard.labels.")}
        other = {it for it in known(self.schema) if not it.startswith("settings.")
                 and not it.startswith("pod.affinity.")} - {"global"}
        self.assertEqual(mine, other)

    def test_settings_are_the_keys_of_the_program_less_those_of_the_chart(self):
        rendered = set()
        for name in PROFILES:
            own = changed(profile(name), "settings", None)
            for head, inner in tomllib.loads(config(render(own))).items():
                if head != "grant":
                    rendered |= {f"{head}.{key}" for key in inner}
        # Two are defaults, which settings may go over.
        self.assertEqual(rendered, OWN | {"log.format", "limits.max_connections_per_peer"})
        self.assertEqual(self.schema["properties"]["settings"], settings_schema(),
                         "check.py --update writes it, unless a key shall be the chart's own")


class Cluster(unittest.TestCase):
    """What the API server and those who look after clusters say of the objects."""

    def everything(self):
        for name in PROFILES:
            yield name, render(profile(name))
        self.assertEqual(set(EXAMPLES), {it.stem for it in (CHART / "examples").iterdir()})
        for name in EXAMPLES:
            yield f"example {name}", example(name)

    def test_kubernetes_knows_every_field(self):
        for name, objects in self.everything():
            for it in objects:
                if (it["apiVersion"], it["kind"]) in FOREIGN:
                    continue
                for version in KUBERNETES:
                    with self.subTest(profile=name, kind=it["kind"], version=version):
                        kubernetes_validate.validate(it, version, strict=True)
        # And it would say so if it did not.
        wrong = one(render(profile("full")), "StatefulSet")
        wrong["spec"]["template"]["spec"]["containers"][0]["livenessProb"] = {}
        with self.assertRaises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(wrong, KUBERNETES[-1], strict=True)

    def test_pod_security_restricted(self):
        for name, objects in self.everything():
            for it in objects:
                if not (pod := rules.pod_of(it)):
                    continue
                with self.subTest(profile=name, kind=it["kind"]):
                    # The socket of the agent is on the node, and nothing else is out of the ordinary.
                    agent = ["volume socket is a hostPath"] if it["kind"] == "DaemonSet" else []
                    if name == "example node-agent":
                        agent = ["volume avouch-agent is a hostPath"]
                    self.assertEqual(rules.restricted(pod[1]), agent)

    def test_the_rules_of_linters(self):
        for name, objects in self.everything():
            with self.subTest(profile=name):
                # An example may use a volume that the chart made.
                known = objects
                if name.startswith("example"):
                    values = profile("cert-manager")
                    for path, value in BACKUP.items():
                        values = changed(values, path, value)
                    known = objects + render(values)
                    # That of the StatefulSet is made by its controller.
                    known += [it for it in example("restore") if it["kind"] == "PersistentVolumeClaim"]
                found = [f"{it['kind']}: {said}" for it in objects
                         for said in rules.linted(it, known)]
                found += rules.joined(objects)
                self.assertEqual(found, [])

    def test_a_long_name_is_cut_where_names_may_be_no_longer(self):
        long = "a-release-with-a-name-as-long-as-helm-takes-it-abcdef"
        self.assertEqual(len(long), 53)
        objects = render(profile("full"), name=long)
        objects += render(changed(profile("full"), "fullnameOverride", ""), name=long)
        for it in objects:
            # A StatefulSet names its revisions in labels, 11 characters more.
            self.assertLessEqual(len(it["metadata"]["name"]), 52, it["metadata"]["name"])
        short = render(changed(profile("full"), "fullnameOverride", ""), name=long)
        self.assertEqual(rules.joined(short), [])

    def test_the_rules_would_say_so(self):
        spoilt = [
            ("spec.hostNetwork", True), ("spec.hostPID", True),
            ("spec.automountServiceAccountToken", True), ("spec.enableServiceLinks", None),
            ("spec.serviceAccountName", "other"), ("spec.affinity", None),
            ("spec.securityContext.runAsNonRoot", False), ("spec.securityContext.runAsUser", 1000),
            ("spec.securityContext.seccompProfile", None), ("metadata.labels", {}),
            ("spec.securityContext.fsGroupChangePolicy", "Always"), ("metadata.labels.a", "1+2"),
            ("container.securityContext.privileged", True),
            ("container.securityContext.allowPrivilegeEscalation", None),
            ("container.securityContext.capabilities", {"drop": ["NET_RAW"]}),
            ("container.securityContext.capabilities", {"drop": ["ALL"], "add": ["SYS_TIME"]}),
            ("container.securityContext.readOnlyRootFilesystem", None),
            ("container.securityContext.runAsNonRoot", False),
            ("container.image", "avouch"), ("container.image", "avouch:latest"),
            ("container.livenessProbe", None), ("container.readinessProbe.httpGet.port", "other"),
            ("container.startupProbe.httpGet.host", "127.0.0.1"),
            ("container.resources.limits", {}), ("container.resources.requests.memory", "1Mi"),
            ("container.ports", []), ("container.volumeMounts", []),
            ("container.env", [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "s"}}}]),
            ("container.env", [{"name": "CLIENT_SECRET", "value": "x"}]),
        ]
        for path, value in spoilt:
            objects = render(profile("full"))
            it = one(objects, "StatefulSet")
            template = it["spec"]["template"]
            whole = template | {"container": template["spec"]["containers"][0]}
            new = changed(whole, path, value)
            it["spec"]["template"] = {"metadata": new["metadata"], "spec": new["spec"]}
            if path.startswith("container."):
                new["spec"]["containers"][0] = new["container"]
            said = rules.restricted(new["spec"]) + rules.linted(it, objects) + rules.joined(objects)
            self.assertTrue(said, path)
        job = "spec.jobTemplate.spec"
        pod = f"{job}.template.spec"
        for path, value in [
            ("spec.concurrencyPolicy", "Allow"), ("spec.startingDeadlineSeconds", None),
            ("spec.successfulJobsHistoryLimit", None), ("spec.failedJobsHistoryLimit", None),
            (f"{job}.activeDeadlineSeconds", None), (f"{job}.backoffLimit", None),
            (f"{pod}.restartPolicy", "OnFailure"), (f"{pod}.serviceAccountName", "other"),
            (f"{pod}.securityContext.runAsUser", 0), (f"{pod}.automountServiceAccountToken", None),
            (f"{job}.template.metadata.labels", {}),
        ]:
            objects = render(profile("full"))
            it = changed(one(objects, "CronJob"), path, value)
            objects[objects.index(one(objects, "CronJob"))] = it
            said = (rules.restricted(rules.pod_of(it)[1]) + rules.linted(it, objects)
                    + rules.joined(objects))
            self.assertTrue(said, path)
        objects = [it for it in render(profile("full")) if it["kind"] != "PersistentVolumeClaim"]
        self.assertTrue(rules.linted(one(objects, "CronJob"), objects), "a claim that is not there")
        for name, kind, path, value in [
            ("etcd", "PodDisruptionBudget", "spec.selector.matchLabels", {"app": "x"}),
            ("etcd", "HorizontalPodAutoscaler", "spec.scaleTargetRef.name", "x"),
            ("etcd", "Deployment", "spec.replicas", 3), ("etcd-mesh", "PodDisruptionBudget", "kind", "X"),
            ("etcd-mesh", "PodDisruptionBudget", "spec.maxUnavailable", 5),
            ("etcd", "Deployment", "spec.template.spec.topologySpreadConstraints", None),
        ]:
            objects = render(profile(name))
            at = next(n for n, it in enumerate(objects) if it["kind"] == kind)
            objects[at] = changed(objects[at], path, value)
            said = rules.joined(objects)
            said += rules.linted(objects[at], objects) if kind == "Deployment" else []
            self.assertTrue(said, f"{kind} {path}")
        for kind, path, value in [
            ("Service", "spec.selector", {"app": "x"}), ("NetworkPolicy", "spec.policyTypes", ["Ingress"]),
            ("NetworkPolicy", "spec.ingress", [{"ports": []}]),
            ("NetworkPolicy", "spec.podSelector.matchLabels", {"app": "x"}),
            ("ServiceAccount", "automountServiceAccountToken", True),
            ("ServiceMonitor", "spec.endpoints", [{"port": "metrics"}]),
            ("PodMonitor", "spec.podMetricsEndpoints", [{"port": "metrics"}]),
            ("PodMonitor", "spec.selector.matchLabels", {"app": "x"}),
        ]:
            objects = render(profile("full"))
            at = next(n for n, it in enumerate(objects) if it["kind"] == kind)
            objects[at] = changed(objects[at], path, value)
            self.assertTrue(rules.joined(objects), f"{kind} {path}")


class Program(unittest.TestCase):
    """Whether avouch takes what is rendered for it."""

    def setUp(self):
        self.scratch = pathlib.Path(tempfile.mkdtemp(prefix="avouch-chart-"))
        self.addCleanup(shutil.rmtree, self.scratch)

    def run_program(self, *args, **more):
        return subprocess.run([PROGRAM, *map(str, args)], text=True, capture_output=True, check=False,
                              timeout=60, **more)

    def environment(self, container):
        """What the pod's environment is to the program."""
        given = {it["name"]: it.get("value", "node-1") for it in container.get("env", [])}
        return {"PATH": os.environ["PATH"]} | given

    def test_the_configuration_is_good(self):
        for name in PROFILES:
            objects = render(profile(name))
            container = server(objects)["spec"]["template"]["spec"]["containers"][0]
            path = self.scratch / "avouch.toml"
            path.write_text(config(objects))
            done = self.run_program("check-config", "--config", path, "--without-files",
                                    env=self.environment(container))
            self.assertEqual((done.returncode, name), (0, name), done.stderr)
            # Each file that it names is in a volume that is mounted.
            mounts = {it["mountPath"]: it["name"] for it in container["volumeMounts"]}
            for file in re.findall(r'"(/(?:etc|var)/[^"]+)"', config(objects)):
                where = [it for it in mounts if f"{file}/".startswith(f"{it}/")]
                self.assertEqual(len(where), 1, f"{name}: {file}")
            volumes = server(objects)["spec"]["template"]["spec"]["volumes"]
            for volume in volumes:
                for item in volume.get("secret", {}).get("items", []):
                    mount = next(key for key, it in mounts.items() if it == volume["name"])
                    self.assertIn(f'"{mount}/{item["path"]}"', config(objects), name)

    def start(self, objects):
        """The server of these objects, with its files beneath `scratch`; it and its addresses."""
        container = server(objects)["spec"]["template"]["spec"]["containers"][0]
        text = config(objects).replace("/etc/avouch", f"{self.scratch}/etc")
        text = text.replace("/var/lib/avouch", f"{self.scratch}/var")
        text = re.sub(r'"0\.0\.0\.0:77\d\d"', '"127.0.0.1:0"', text)
        for folder in ("etc/config", "var"):
            (self.scratch / folder).mkdir(parents=True)
        (self.scratch / "etc/config/avouch.toml").write_text(text)
        if not (self.scratch / "etc/encryption/encryption.key").exists():
            self.secret("etc/encryption/encryption.key", base64.b64encode(os.urandom(32)).decode() + "\n")
        args = [it.replace("/etc/avouch", f"{self.scratch}/etc") for it in container["args"]]
        with (self.scratch / "log").open("w") as log:
            process = subprocess.Popen([PROGRAM, *args], stdout=log, stderr=log,
                                       env=self.environment(container), cwd="/", umask=0o022)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        found = self.scratch / "var" / ("data" if "path" in tomllib.loads(text)["store"] else "") / "addresses.json"
        deadline = time.monotonic() + 120
        while not found.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        self.assertTrue(found.exists(), (self.scratch / "log").read_text())
        return process, json.loads(found.read_text())

    def test_servers_on_etcd_start_as_rendered(self):
        password = "a password of etcd"
        values = profile("etcd")
        member = etcd.Etcd(self.scratch / "member", values["etcd"]["prefix"] + "/",
                           values["etcd"]["username"], password)
        self.addCleanup(member.stop)
        values = changed(values, "etcd.endpoints", [member.address])
        # The listeners' own certificate is not what is tried here.
        values = changed(changed(values, "tls", {"mode": "mesh"}), "networkPolicy.egress", [{}])
        values = changed(values, "issuer.url", "http://id.example.com")
        objects = render(values)
        encryption = base64.b64encode(os.urandom(32)).decode()
        credentials = json.dumps({"client_id": "admin", "client_secret": "avs1_" + "s" * 43})
        home, servers = self.scratch, []
        for number in range(3):
            self.scratch = home / str(number)
            for path, text in (
                    ("etcd-ca/ca.crt", (member.files / "ca.crt").read_text()),
                    ("etcd-certificate/tls.crt", (member.files / "client.crt").read_text()),
                    ("etcd-certificate/tls.key", (member.files / "client.key").read_text()),
                    ("etcd-password/password", password), ("encryption/encryption.key", encryption),
                    ("admin-client/credentials.json", credentials)):
                self.secret(f"etc/{path}", text)
            servers.append(self.start(objects))
        given = home / "0/etc/admin-client/credentials.json"

        def listed(addresses):
            done = self.run_program("client", "list", "--json", "--credentials", given,
                                    "--server", f"http://{addresses['grpc']}", env={})
            self.assertEqual(done.returncode, 0, done.stderr)
            return [json.loads(it)["client_id"] for it in done.stdout.splitlines()]

        for _, addresses in servers:
            self.wait_for(f"http://{addresses['ops']}/readyz", time.monotonic() + 120)
            self.assertEqual(listed(addresses), ["admin"])
        # What one of them was told the others know, and nobody keeps it but etcd.
        done = self.run_program("client", "create", "web", "--audience", "orders", "--json", "--credentials",
                                given, "--server", f"http://{servers[0][1]['grpc']}", env={})
        self.assertEqual(done.returncode, 0, done.stderr)
        for number, (process, addresses) in enumerate(servers):
            self.assertEqual(listed(addresses), ["admin", "web"])
            kept = sorted(it.name for it in (home / f"{number}/var").iterdir() if not it.name.endswith(".new"))
            self.assertEqual(kept, ["addresses.json", "etcd-seen.json"])
        done = self.run_program("client", "create", "backup", "--audience", "avouch", "--grant", "admin", "--json",
                                "--credentials", given, "--server", f"http://{servers[1][1]['grpc']}", env={})
        self.assertEqual(done.returncode, 0, done.stderr)
        (self.scratch / "etc/backup.json").write_text(done.stdout)
        self.back_up(one(objects, "CronJob"), servers[2][1]["grpc"])
        for process, _ in servers:
            process.send_signal(signal.SIGTERM)
            process.send_signal(signal.SIGTERM)

    def secret(self, name, text):
        """A file as the kubelet makes it of a Secret."""
        path = self.scratch / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o440 if os.getuid() == 0 else 0o400)
        return path

    def test_the_server_starts_as_rendered_and_answers_the_probes(self):
        objects = render(profile("mesh"))
        container = server(objects)["spec"]["template"]["spec"]["containers"][0]
        process, addresses = self.start(objects)
        deadline = time.monotonic() + 120
        ports = {it["name"]: it["containerPort"] for it in container["ports"]}
        self.assertEqual(ports, {"grpc": 7700, "keys": 7701, "ops": 7702})
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            asked = container[probe]["httpGet"]
            self.assertEqual(asked["port"], "ops")
            self.wait_for(f"http://{addresses['ops']}{asked['path']}", deadline)
        (test,) = [it for it in objects if it["kind"] == "Pod"]
        path = test["spec"]["containers"][0]["args"][-1].split(":7701")[1]
        self.wait_for(f"http://{addresses['public']}{path}", deadline)
        for file in (self.scratch / "var/data").glob("*.json"):
            self.assertEqual(file.stat().st_mode & 0o777, 0o600, file)
        # What the README and the notes tell to run in the pod.
        told = (CHART / "README.md").read_text() + manifests(profile("mesh"))["avouch/templates/NOTES.txt"]
        commands = re.findall(r"exec avouch-0 -- \S+ ((?:\\\n|[^\n])+)", told)
        self.assertEqual(len(commands), 3)
        environment = self.environment(container) | {"AVOUCH_SERVER": f"http://{addresses['grpc']}"}
        for command in commands:
            command = command.replace("\\\n", " ").replace("/var/lib", f"{self.scratch}/var/lib")
            command = command.replace("/var/lib/avouch", "/var")
            command = command.split(" > ")[0]
            done = self.run_program(*command.split(), env=environment)
            self.assertEqual(done.returncode, 0, done.stderr)
            if "create" in command:
                made = json.loads(done.stdout)
                self.assertEqual(made["client_id"], command.split()[2])
                self.assertTrue(made["client_secret"])
                (self.scratch / "etc" / f"{made['client_id']}.json").write_text(done.stdout)
        self.back_up(one(objects, "CronJob"), addresses["grpc"])
        # Told to stop it says so, and serves on for the delay, which a second signal ends.
        process.send_signal(signal.SIGTERM)
        self.wait_for(f"http://{addresses['ops']}/readyz", deadline, status=503)
        self.wait_for(f"http://{addresses['public']}{path}", deadline)
        process.send_signal(signal.SIGTERM)
        self.assertEqual(process.wait(60), 0)

    def test_the_admin_client_of_a_secret_is_registered_at_the_first_start(self):
        # As the README tells to make it.
        (told,) = re.findall(r"^\(umask 077 && printf .*?\)$", (CHART / "README.md").read_text(), re.M | re.S)
        subprocess.run(["bash", "-euc", told], check=True, cwd=self.scratch)
        values = changed(profile("mesh"), "adminClient", {"secretName": "avouch-admin-client"})
        objects, files = render(values), manifests(values)
        self.secret("etc/admin-client/credentials.json", (self.scratch / "credentials.json").read_text())
        _, addresses = self.start(objects)
        (command,) = re.findall(r"exec avouch-0 -- \S+ ((?:\\\n|[^\n])+)", files["avouch/templates/NOTES.txt"])
        command = command.replace("\\\n", " ").replace("/etc/avouch", f"{self.scratch}/etc")
        environment = {"AVOUCH_SERVER": f"http://{addresses['grpc']}"}
        done = self.run_program(*command.split(), "--json", env=environment)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(json.loads(done.stdout)["client_id"], "admin")
        self.assertFalse((self.scratch / "var/data/admin-client.json").exists())

    def back_up(self, cron, address):
        """Runs the job as it is rendered, with the credentials that the README tells to make."""
        spec = cron["spec"]["jobTemplate"]["spec"]["template"]["spec"]
        (made,) = [it for it in rules.containers(spec) if it["name"] == "backup"]
        credentials = self.secret("etc/credentials.json", (self.scratch / "etc/backup.json").read_text())
        shelf = self.scratch / "backup"
        shelf.mkdir()
        args = [f"--credentials={credentials}" if it.startswith("--credentials=")
                else f"--server=http://{address}" if it.startswith("--server=")
                else it.replace("/backup", str(shelf)) for it in made["args"]]
        done = self.run_program(*args, env={})
        self.assertEqual(done.returncode, 0, done.stderr)
        file = json.loads(done.stdout)["file"]
        self.assertEqual([str(it) for it in shelf.glob("*.backup")], [file])
        # Whoever takes it away has the job's user and group.
        self.assertEqual(pathlib.Path(file).stat().st_mode & 0o777, 0o600)
        done = self.run_program("verify-store", "--backup", file, "--key-file",
                                self.scratch / "etc/encryption/encryption.key")
        self.assertEqual(done.returncode, 0, done.stderr)

    def wait_for(self, url, deadline, status=200):
        """Until it answers with this status."""
        while True:
            try:
                with urllib.request.urlopen(url, timeout=10) as answer:
                    got = answer.status
            except urllib.error.HTTPError as error:
                error.close()
                got = error.code
            if got == status:
                return
            self.assertLess(time.monotonic(), deadline, f"{url} answers {got}")
            time.sleep(0.05)

    def accepted(self, container, subcommand):
        """Whether the program knows every flag, the variables and the subcommand."""
        self.assertEqual(container["args"][0], subcommand)
        told = self.run_program(subcommand, "--help")
        self.assertEqual(told.returncode, 0, told.stderr)
        for flag in container["args"][1:]:
            name, given, _ = flag.partition("=")
            self.assertRegex(told.stdout, rf"  {name} <" if given else rf"  {name}\n", subcommand)
        for variable in container.get("env", []):
            self.assertIn(f"[env: {variable['name']}=", told.stdout, subcommand)

    @unittest.skipUnless((ROOT / "src/cli/agent.rs").exists(), "there is no node agent in this tree")
    def test_the_node_agent_knows_its_flags(self):
        pod = one(render(profile("full")), "DaemonSet")["spec"]["template"]["spec"]
        self.accepted(pod["containers"][0], "node-agent")
        # Without its files it gets as far as to miss them.
        done = self.run_program(*pod["containers"][0]["args"], env={})
        self.assertIn("/etc/avouch/credentials/credentials.json", done.stderr)

    def test_the_backup_knows_its_flags(self):
        for name in ("full", "mesh"):
            spec = one(render(profile(name)), "CronJob")["spec"]["jobTemplate"]["spec"]["template"]["spec"]
            (made,) = [it for it in rules.containers(spec) if it["name"] == "backup"]
            self.accepted(made, "backup")
            # Without its files it gets as far as to miss them.
            done = self.run_program(*made["args"], env={})
            self.assertIn("/etc/avouch/", done.stderr)
            self.assertEqual(done.returncode, 1, done.stderr)
            mounts = [it["mountPath"] for it in made["volumeMounts"]]
            for file in re.findall(r"=(/\S+)", " ".join(made["args"])):
                self.assertTrue([it for it in mounts if f"{file}/".startswith(f"{it}/")], file)

    @unittest.skipUnless((ROOT / "src/cli/sidecar.rs").exists(), "there is no sidecar in this tree")
    def test_the_examples_of_a_sidecar_are_good(self):
        for name in ("node-agent", "sidecar"):
            objects = example(name)
            deployment = next(it for it in objects if it["kind"] == "Deployment")
            pod = deployment["spec"]["template"]["spec"]
            (sidecar,) = pod["initContainers"]
            self.assertEqual(sidecar["restartPolicy"], "Always")
            self.accepted(sidecar, "sidecar")
            path = self.scratch / "rules.toml"
            path.write_text(objects[0]["data"]["rules.toml"])
            args = [f"--rules={path}" if it.startswith("--rules=") else it for it in sidecar["args"]]
            done = self.run_program(*args, "--check", env={})
            self.assertEqual(done.returncode, 0, done.stderr)
            settings = tomllib.loads(objects[0]["data"]["rules.toml"])["sidecar"]
            if name == "sidecar":
                self.assertNotIn("agent", settings)
                continue
            # The socket is where the agent of the chart has it, and the workload may write to it.
            agent = one(render(profile("full")), "DaemonSet")["spec"]["template"]["spec"]
            served = next(it for it in agent["containers"][0]["args"] if it.startswith("--listen="))
            self.assertEqual(settings["agent"], served.removeprefix("--listen="))
            socket = next(it for it in agent["volumes"] if it["name"] == "socket")["hostPath"]
            mine = next(it for it in pod["volumes"] if it["name"] == "avouch-agent")["hostPath"]
            self.assertEqual(mine, socket)
            mount = next(it for it in sidecar["volumeMounts"] if it["name"] == "avouch-agent")
            self.assertEqual(f"unix://{mount['mountPath']}/agent.sock", settings["agent"])
            group = agent["securityContext"]["runAsGroup"]
            self.assertIn(group, pod["securityContext"]["supplementalGroups"])
            self.assertNotEqual(pod["securityContext"]["runAsUser"], agent["securityContext"]["runAsUser"])

    def test_the_example_of_a_migration_fits_both_engines(self):
        job = next(it for it in example("migrate") if it["kind"] == "Job")
        sled, values = render(profile("cert-manager")), profile("etcd")
        values = changed(values, "etcd.prefix", "/avouch")
        etcd_url = tomllib.loads(config(render(values)))["store"]["url"]
        spec, whole = job["spec"]["template"]["spec"], server(sled)["spec"]["template"]["spec"]
        self.assertEqual(spec["securityContext"], whole["securityContext"])
        (container,) = spec["containers"]
        self.accepted(container, "migrate")
        self.assertIn(f"--from={tomllib.loads(config(sled))['store']['path']}", container["args"])
        # 2379 need not be said.
        (to,) = [it for it in container["args"] if it.startswith("--to=")]
        self.assertEqual(to.replace(":2379", ""), f"--to={etcd_url}".replace(":2379", ""))
        (claim,) = [it["persistentVolumeClaim"]["claimName"] for it in spec["volumes"] if it["name"] == "data"]
        (template,) = server(sled)["spec"]["volumeClaimTemplates"]
        self.assertEqual(claim, f"{template['metadata']['name']}-{server(sled)['metadata']['name']}-0")
        done = self.run_program(*container["args"], env={})
        self.assertIn("/etc/avouch/etcd-ca/ca.crt", done.stderr)
        self.assertNotEqual(done.returncode, 0)

    def test_the_example_of_a_restore_fits_the_server(self):
        objects, served = example("restore"), render(profile("cert-manager"))
        claim, job = one(objects, "PersistentVolumeClaim"), next(it for it in objects if it["kind"] == "Job")
        server = one(served, "StatefulSet")
        (template,) = server["spec"]["volumeClaimTemplates"]
        self.assertEqual(claim["metadata"]["name"],
                         f"{template['metadata']['name']}-{server['metadata']['name']}-0")
        self.assertEqual((claim["metadata"]["labels"], claim["spec"]),
                         (template["metadata"]["labels"], template["spec"]))
        spec, whole = job["spec"]["template"]["spec"], server["spec"]["template"]["spec"]
        self.assertEqual(spec["securityContext"], whole["securityContext"])
        (container,) = spec["containers"]
        parsed = tomllib.loads(config(served))
        self.assertIn(f"--data-dir={parsed['store']['path']}", container["args"])
        self.assertIn(f"--key-file={parsed['keys']['encryption_key_file']}", container["args"])
        mounts = {it["name"]: it["mountPath"] for it in container["volumeMounts"]}
        theirs = {it["name"]: it["mountPath"] for it in whole["containers"][0]["volumeMounts"]}
        self.assertEqual(mounts["data"], theirs["data"])
        self.assertEqual(mounts["encryption"], theirs["encryption"])
        self.assertIn("--revoke-everything", container["args"])
        # It gets as far as to miss the key.
        done = self.run_program(*container["args"], env={})
        self.assertEqual((done.returncode, "encryption.key cannot be read" in done.stderr), (1, True),
                         done.stderr)


if __name__ == "__main__":
    UPDATE = "--update" in sys.argv
    PROGRAM = str(pathlib.Path([it for it in sys.argv[1:] if not it.startswith("-")][0]).resolve())
    if UPDATE:
        file = CHART / "values.schema.json"
        whole = json.loads(file.read_text())
        whole["properties"]["settings"] = settings_schema()
        file.write_text(json.dumps(whole, indent=2) + "\n")
    unittest.main(argv=[sys.argv[0]], verbosity=2)
