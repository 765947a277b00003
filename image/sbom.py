"""Prints what the binary is made from, as SPDX 2.3 JSON: every crate that is linked into it, the
Rust standard library and the C library. The same sources give the same text."""

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import tomllib
from datetime import datetime, timezone

PRODUCT = "SPDXRef-avouch"


def output(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def identifier(name, version):
    return "SPDXRef-" + re.sub(r"[^A-Za-z0-9.-]", "-", f"{name}-{version}")


def linked(target):
    """Name, version and licence of every crate in the binary: no build scripts, macros or tests."""
    lines = output(
        "cargo", "tree", "--locked", "--target", target, "--edges", "normal,no-proc-macro",
        "--prefix", "none", "--format", "{p}\t{l}",
    ).splitlines()
    found = {}
    for line in lines:
        package, _, licence = line.removesuffix(" (*)").partition("\t")
        if "(proc-macro)" in package:
            continue
        name, version = package.split(" ")[:2]
        # The old `MIT/Apache-2.0` means OR.
        found[name, version.removeprefix("v")] = licence.removesuffix(" (*)").replace("/", " OR ")
    return found


def document(target, created):
    with open("Cargo.lock", "rb") as file:
        locked = {(it["name"], it["version"]): it for it in tomllib.load(file)["package"]}
    crates = linked(target)
    packages, relations = [], []
    for (name, version), licence in sorted(crates.items()):
        entry = locked[name, version]
        package = {
            "SPDXID": PRODUCT if name == "avouch" else identifier(name, version),
            "name": name,
            "versionInfo": version,
            "downloadLocation": "NOASSERTION",
            "filesAnalyzed": False,
            "licenseConcluded": "NOASSERTION",
            "licenseDeclared": licence or "NOASSERTION",
            "copyrightText": "NOASSERTION",
        }
        if "checksum" in entry:
            package["downloadLocation"] = f"https://crates.io/api/v1/crates/{name}/{version}/download"
            package["checksums"] = [{"algorithm": "SHA256", "checksumValue": entry["checksum"]}]
            package["externalRefs"] = [{
                "referenceCategory": "PACKAGE-MANAGER",
                "referenceType": "purl",
                "referenceLocator": f"pkg:cargo/{name}@{version}",
            }]
        packages.append(package)
    rust = re.search(r"rustc (\S+)", output("rustc", "--version"))[1]
    glibc = output("getconf", "GNU_LIBC_VERSION").split()[1]
    for name, version, licence in [
        ("rust-std", rust, "MIT OR Apache-2.0"),
        ("glibc", glibc, "LGPL-2.1-or-later"),
    ]:
        packages.append({
            "SPDXID": identifier(name, version),
            "name": name,
            "versionInfo": version,
            "downloadLocation": "NOASSERTION",
            "filesAnalyzed": False,
            "licenseConcluded": "NOASSERTION",
            "licenseDeclared": licence,
            "copyrightText": "NOASSERTION",
        })
    relations.append(("SPDXRef-DOCUMENT", "DESCRIBES", PRODUCT))
    for package in packages:
        if package["SPDXID"] != PRODUCT:
            relations.append((PRODUCT, "STATIC_LINK", package["SPDXID"]))
    version = next(it["versionInfo"] for it in packages if it["SPDXID"] == PRODUCT)
    digest = hashlib.sha256(json.dumps(packages, sort_keys=True).encode()).hexdigest()
    return {
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": f"avouch-{version}-{target}",
        "documentNamespace": f"https://spdx.org/spdxdocs/avouch-{version}-{digest[:32]}",
        "creationInfo": {"created": created, "creators": ["Tool: avouch-image-sbom"]},
        "packages": packages,
        "relationships": [
            {"spdxElementId": one, "relationshipType": kind, "relatedSpdxElement": other}
            for one, kind, other in relations
        ],
    }


def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--target", required=True)
    target = arguments.parse_args().target
    # The time is an argument, as reproducible-builds.org asks; without one it is the beginning.
    created = datetime.fromtimestamp(int(os.environ.get("SOURCE_DATE_EPOCH", "0")), timezone.utc)
    text = created.strftime("%Y-%m-%dT%H:%M:%SZ")
    json.dump(document(target, text), sys.stdout, indent=1)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
