"""The Helm chart in a real Kubernetes API server: cluster.py [--build] DIRECTORY

DIRECTORY has the programs etcd and kube-apiserver; with --build they are made there by Go from the
module proxy, which takes 4 minutes on 4 cores and 1 GB of Go's cache. No kubelet runs: what is tried is
whether the API server takes the objects, with Pod Security enforced, when they are installed, upgraded,
rolled back and applied by the server's side.
"""

import copy
import json
import os
import pathlib
import secrets
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

import helm_python
import yaml

import check
import rules

KUBERNETES = "1.33.3"
ETCD = "3.5.21"
# What Kubernetes keeps beside its own module, by names of k8s.io.
STAGING = """api apiextensions-apiserver apimachinery apiserver cli-runtime client-go cloud-provider
cluster-bootstrap code-generator component-base component-helpers controller-manager cri-api cri-client
csi-translation-lib dynamic-resource-allocation endpointslice externaljwt kms kube-aggregator
kube-controller-manager kube-proxy kube-scheduler kubectl kubelet metrics mount-utils
pod-security-admission sample-apiserver sample-cli-plugin sample-controller""".split()
TOKEN = secrets.token_hex(16)


def build(into):
    """Makes both programs, unless they are there."""
    if (into / "kube-apiserver").exists() and (into / "etcd").exists():
        return
    staging = "v0." + KUBERNETES.split(".", 1)[1]
    replaced = [f"replace k8s.io/{it} => k8s.io/{it} {staging}" for it in STAGING]
    sources = {
        "kube-apiserver": ("k8s.io/kubernetes v" + KUBERNETES, replaced, "package main\n\n"
                           'import _ "k8s.io/kubernetes/cmd/kube-apiserver/app"\n\nfunc main() {}\n',
                           "k8s.io/kubernetes/cmd/kube-apiserver"),
        "etcd": ("go.etcd.io/etcd/server/v3 v" + ETCD, [], 'package main\n\nimport (\n\t"os"\n\n'
                 '\t"go.etcd.io/etcd/server/v3/etcdmain"\n)\n\nfunc main() { etcdmain.Main(os.Args) }\n',
                 "."),
    }
    flag = f"-X k8s.io/component-base/version.gitVersion=v{KUBERNETES}"
    environment = os.environ | {"GOFLAGS": "-mod=mod"}
    for name, (module, replace, main, package) in sources.items():
        source = into / f"{name}.source"
        source.mkdir(parents=True, exist_ok=True)
        (source / "go.mod").write_text("\n".join(
            ["module built", "go 1.24", f"require {module}", *replace, ""]))
        (source / "main.go").write_text(main)
        subprocess.run(["go", "mod", "tidy"], cwd=source, check=True, env=environment)
        subprocess.run(["go", "build", "-ldflags", flag, "-o", str(into / name), package], cwd=source,
                       check=True, env=environment)


def free_port():
    """A port that nobody listens at now."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


class Server:
    """An API server with its store."""

    def __init__(self, programs, scratch):
        self.programs, self.scratch, self.running = programs, scratch, []
        self.port, self.context = free_port(), None

    def begin(self):
        """Starts both, and waits until the API server is ready."""
        programs, scratch, clients, peers = self.programs, self.scratch, free_port(), free_port()
        self.start("etcd", [programs / "etcd", "--data-dir", scratch / "etcd", "--unsafe-no-fsync",
                            f"--listen-client-urls=http://127.0.0.1:{clients}",
                            f"--advertise-client-urls=http://127.0.0.1:{clients}",
                            f"--listen-peer-urls=http://127.0.0.1:{peers}"])
        key = scratch / "accounts.key"
        subprocess.run(["openssl", "genrsa", "-out", key, "2048"], check=True, capture_output=True)
        (scratch / "tokens.csv").write_text(f"{TOKEN},tests,1,system:masters\n")
        self.start("kube-apiserver", [
            programs / "kube-apiserver", f"--etcd-servers=http://127.0.0.1:{clients}",
            "--bind-address=127.0.0.1", f"--secure-port={self.port}", f"--cert-dir={scratch}/certs",
            "--service-account-issuer=https://tests.invalid", f"--service-account-key-file={key}",
            f"--service-account-signing-key-file={key}", f"--token-auth-file={scratch}/tokens.csv",
            "--authorization-mode=RBAC", "--disable-admission-plugins=ServiceAccount",
            "--service-cluster-ip-range=10.96.0.0/16", "--endpoint-reconciler-type=none"])
        deadline = time.monotonic() + 180
        while True:
            try:
                self.context = ssl.create_default_context(cafile=f"{scratch}/certs/apiserver.crt")
                self.ask("GET", "/readyz")
                break
            except (OSError, ssl.SSLError):
                if time.monotonic() > deadline or any(it.poll() is not None for it in self.running):
                    raise SystemExit((scratch / "kube-apiserver.log").read_text()[-4000:]) from None
                time.sleep(0.2)

    def start(self, name, args):
        """Runs a program until `stop`."""
        with (self.scratch / f"{name}.log").open("w") as log:
            self.running.append(subprocess.Popen(list(map(str, args)), stdout=log, stderr=log))

    def stop(self):
        """Ends both."""
        for it in reversed(self.running):
            it.terminate()
            it.wait()

    def kubeconfig(self):
        """The file that Helm reads."""
        certificate = str(self.scratch / "certs/apiserver.crt")
        return yaml.safe_dump({
            "apiVersion": "v1", "kind": "Config", "current-context": "tests",
            "clusters": [{"name": "tests", "cluster": {
                "server": f"https://127.0.0.1:{self.port}", "certificate-authority": certificate}}],
            "users": [{"name": "tests", "user": {"token": TOKEN}}],
            "contexts": [{"name": "tests", "context": {"cluster": "tests", "user": "tests"}}]})

    def ask(self, method, path, body=None, kind="application/json"):
        """The status, the warnings and the answer."""
        request = urllib.request.Request(
            f"https://127.0.0.1:{self.port}{path}", method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {TOKEN}", "Content-Type": kind})
        try:
            with urllib.request.urlopen(request, context=self.context, timeout=60) as answer:
                return answer.status, answer.headers.get_all("Warning") or [], answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.headers.get_all("Warning") or [], error.read().decode()

    def must(self, *args, **more):
        """The answer, which is neither an error nor has warnings."""
        status, warnings, answer = self.ask(*args, **more)
        assert status in (200, 201) and not warnings, (status, warnings, answer)
        return answer


def plural(kind):
    """The name of a kind in paths."""
    return kind.lower()[:-1] + "ies" if kind.endswith("y") else kind.lower() + "s"


def path(it, name=True):
    """Where an object is."""
    root = "/api/v1" if it["apiVersion"] == "v1" else f"/apis/{it['apiVersion']}"
    where = f"{root}/namespaces/{it['metadata']['namespace']}/{plural(it['kind'])}"
    return f"{where}/{it['metadata']['name']}" if name else where


def prepare(server):
    """Kinds that are not Kubernetes' own, and namespaces."""
    for group, kind in sorted(check.FOREIGN):
        group, version = group.split("/")
        server.must("POST", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", {
            "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
            "metadata": {"name": f"{plural(kind)}.{group}"},
            "spec": {"group": group, "scope": "Namespaced",
                     "names": {"plural": plural(kind), "singular": kind.lower(), "kind": kind},
                     "versions": [{"name": version, "served": True, "storage": True, "schema": {
                         "openAPIV3Schema": {"type": "object",
                                             "x-kubernetes-preserve-unknown-fields": True}}}]}})
    for name, level in (("identity", "restricted"), ("shop", "restricted"), ("avouch-nodes", "privileged")):
        labels = {f"pod-security.kubernetes.io/{it}": level for it in ("enforce", "warn")}
        server.must("POST", "/api/v1/namespaces", {
            "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
    deadline = time.monotonic() + 60
    for group, kind in sorted(check.FOREIGN):
        while server.ask("GET", f"/apis/{group}/namespaces/shop/{plural(kind)}")[0] != 200:
            assert time.monotonic() < deadline, kind
            time.sleep(0.1)


def pod(it):
    """A pod as its owner would make it. There is no kubelet, and no class of priorities but two."""
    meta, spec = copy.deepcopy(rules.pod_of(it))
    spec.pop("priorityClassName", None)
    for claim in it["spec"].get("volumeClaimTemplates", []):
        spec["volumes"].append({"name": claim["metadata"]["name"], "persistentVolumeClaim":
                                {"claimName": claim["metadata"]["name"]}})
    meta |= {"name": "try", "namespace": it["metadata"]["namespace"]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec}


def apply_all(server):
    """Everything that is rendered, by server-side apply, strict about fields; and the pods of it."""
    total = 0
    sources = [lambda name=name: check.render(check.profile(name)) for name in check.PROFILES]
    sources += [lambda name=name: check.example(name) for name in check.EXAMPLES]
    for source in sources:
        objects = source()
        for it in objects:
            server.must("PATCH", f"{path(it)}?fieldManager=tests&fieldValidation=Strict&force=true", it,
                        kind="application/apply-patch+yaml")
            total += 1
            if it["kind"] in (*rules.SERVING, "CronJob", "Job"):
                made = pod(it)
                server.must("POST", f"{path(made, name=False)}?dryRun=All", made)
                if it["metadata"]["namespace"] == "avouch-nodes":
                    # Pod Security is on: the agent's directory of the node is refused elsewhere.
                    made["metadata"]["namespace"] = "identity"
                    status, _, answer = server.ask("POST", f"{path(made, name=False)}?dryRun=All", made)
                    assert status == 403 and "violates PodSecurity" in answer, (status, answer)
        for it in objects:
            server.must("DELETE", f"{path(it)}?propagationPolicy=Background")
            if it["kind"] == "PersistentVolumeClaim":
                # Nobody runs here who sees that no pod uses it.
                server.must("PATCH", path(it), {"metadata": {"finalizers": None}},
                            kind="application/merge-patch+json")
    print(f"server-side apply took {total} objects without a warning")


def releases(server):
    """Install, upgrade, roll back."""
    with helm_python.Config(namespace="identity", kubeconfig_content=server.kubeconfig()) as helm:
        base = check.profile("cert-manager")
        helm.install(str(check.CHART), "avouch", base)

        def state():
            found = json.loads(server.must("GET", "/apis/apps/v1/namespaces/identity/statefulsets/avouch"))
            return found["metadata"]["generation"], found["spec"]["template"]

        first = state()
        helm.upgrade(str(check.CHART), "avouch", base)
        assert state() == first, "an upgrade to the same changed the pods"
        helm.upgrade(str(check.CHART), "avouch", check.changed(base, "password.workers", 3))
        assert state()[1] != first[1]
        helm.rollback("avouch", version=1)
        assert state()[1] == first[1], "a rollback did not bring back what was there"
        for name in ("mesh", "cert-manager"):
            helm.upgrade(str(check.CHART), "avouch", check.profile(name))
        try:
            helm.upgrade(str(check.CHART), "avouch", check.changed(base, "persistence.size", "20Gi"))
            raise AssertionError("another size was taken: say so in the README")
        except helm_python.HelmError as error:
            assert "updates to statefulset spec" in str(error), error
        helm.uninstall("avouch")
        servers = "/apis/apps/v1/namespaces/identity/deployments/avouch"
        scaled = check.profile("etcd")
        helm.install(str(check.CHART), "avouch", scaled)

        def replicas():
            return json.loads(server.must("GET", servers))["spec"]["replicas"]

        # What an autoscaler said stays, whatever is upgraded.
        server.must("PATCH", f"{servers}/scale", {"spec": {"replicas": 7}},
                    kind="application/merge-patch+json")
        helm.upgrade(str(check.CHART), "avouch", check.changed(scaled, "password.workers", 3))
        assert replicas() == 7, replicas()
        fixed = check.changed(check.changed(scaled, "autoscaling.enabled", False), "replicas", 4)
        helm.upgrade(str(check.CHART), "avouch", fixed)
        assert replicas() == 4, replicas()
        helm.upgrade(str(check.CHART), "avouch", check.profile("etcd-mesh"))
        helm.rollback("avouch", version=3)
        assert replicas() == 4, replicas()
        helm.uninstall("avouch")
    print("installed, upgraded, rolled back, uninstalled")


if __name__ == "__main__":
    directory = pathlib.Path(sys.argv[-1]).resolve()
    if "--build" in sys.argv:
        build(directory)
    temporary = pathlib.Path(tempfile.mkdtemp(prefix="avouch-cluster-"))
    running = Server(directory, temporary)
    try:
        running.begin()
        prepare(running)
        apply_all(running)
        releases(running)
    finally:
        running.stop()
        shutil.rmtree(temporary)
