"""Reads every piece of YAML in docs/: it must parse, and names that must agree do."""

import pathlib
import re
import sys

import yaml


def pieces(path):
    """The YAML documents in a file, each with the line where it begins."""
    text = path.read_text()
    if path.suffix == ".yaml":
        found = [(1, text)]
    else:
        blocks = re.finditer(r"^```yaml\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
        found = [(text.count("\n", 0, block.start(1)) + 1, block[1]) for block in blocks]
    for line, piece in found:
        try:
            documents = list(yaml.safe_load_all(piece))
        except yaml.YAMLError as error:
            sys.exit(f"{path}:{line}: {error}")
        for document in documents:
            yield f"{path}:{line}", document


def check_resource(where, resource):
    """What every Kubernetes object has."""
    for key in ("apiVersion", "kind", "metadata", "spec"):
        assert key in resource, f"{where}: no {key}"
    assert re.fullmatch(r"[a-z0-9-]+", resource["metadata"]["name"]), where


def check_istio():
    """The provider, the address behind it, the policy and the container speak of one another."""
    mesh, kinds = None, {}
    for where, document in pieces(pathlib.Path("docs/istio.md")):
        if "kind" in document:
            check_resource(where, document)
            kinds[document["kind"]] = document["spec"]
        else:
            mesh = document
    provider = mesh["extensionProviders"][0]
    grpc = provider["envoyExtAuthzGrpc"]
    assert grpc["failOpen"] is False
    assert float(grpc["timeout"].removesuffix("s")) <= 0.2, "the timeout is left at its default"
    entry = kinds["ServiceEntry"]
    assert entry["hosts"] == [grpc["service"]]
    assert entry["ports"][0]["number"] == grpc["port"]
    policy = kinds["AuthorizationPolicy"]
    assert policy["action"] == "CUSTOM" and policy["provider"]["name"] == provider["name"]
    pod = kinds["Deployment"]["template"]["spec"]
    sidecar = pod["initContainers"][0]
    assert sidecar["restartPolicy"] == "Always"
    arguments = dict(part.split("=", 1) for part in sidecar["args"][1:])
    assert arguments["--ext-authz"] == f"{entry['endpoints'][0]['address']}:{grpc['port']}"
    issuer = kinds["RequestAuthentication"]["jwtRules"][0]["issuer"]
    assert arguments["--issuer"] == issuer
    labels = kinds["Deployment"]["template"]["metadata"]["labels"]
    for kind in ("AuthorizationPolicy", "RequestAuthentication"):
        assert kinds[kind]["selector"]["matchLabels"] == labels, kind
    mounts = {mount["name"] for mount in sidecar["volumeMounts"]}
    assert mounts == {volume["name"] for volume in pod["volumes"]}


def main():
    paths = sorted(pathlib.Path("docs").rglob("*.md")) + sorted(pathlib.Path("docs").rglob("*.yaml"))
    count = sum(1 for path in paths for _ in pieces(path))
    assert count, "there is no YAML in docs/"
    check_istio()
    print(f"{count} pieces of YAML in {len(paths)} documents")


if __name__ == "__main__":
    main()
