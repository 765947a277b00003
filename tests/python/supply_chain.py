"""Checks licences, bans and sources of every crate in Cargo.lock against .deny.toml.

Does what `cargo deny check bans licenses sources` does with the keys that .deny.toml uses, without
compiling cargo-deny first. Advisories need cargo-deny and its database: they are checked when both
are there, and otherwise it says that they were not.
"""

import json
import re
import shutil
import subprocess
import sys
import tomllib


def terms(expression):
    """An SPDX expression as tokens. The old `MIT/Apache-2.0` means OR."""
    text = expression.replace("/", " OR ")
    text = re.sub(r"(\S+)\s+WITH\s+([^\s()]+)", r"\1+WITH+\2", text)
    return re.findall(r"[()]|[^\s()]+", text)


def allowed(expression, allow):
    """Whether the licences in `allow` satisfy the expression. AND binds closer than OR."""
    tokens = terms(expression)

    def either():
        good = both()
        while tokens and tokens[0] == "OR":
            tokens.pop(0)
            good = both() or good
        return good

    def both():
        good = one()
        while tokens and tokens[0] == "AND":
            tokens.pop(0)
            good = one() and good
        return good

    def one():
        token = tokens.pop(0)
        if token == "(":
            good = either()
            if tokens.pop(0) != ")":
                raise ValueError(expression)
            return good
        return token.replace("+WITH+", " WITH ") in allow

    try:
        good = either()
    except IndexError:
        return False
    return good and not tokens


def self_check():
    allow = {"MIT", "ISC", "Apache-2.0 WITH LLVM-exception"}
    for expression, expected in [
        ("MIT", True),
        ("GPL-3.0", False),
        ("GPL-3.0 OR MIT", True),
        ("GPL-3.0 AND MIT", False),
        ("GPL-3.0/MIT", True),
        ("ISC AND (GPL-3.0 OR MIT)", True),
        ("MIT OR ISC AND GPL-3.0", True),
        ("Apache-2.0 WITH LLVM-exception", True),
        ("Apache-2.0", False),
        ("", False),
        ("(MIT", False),
    ]:
        assert allowed(expression, allow) == expected, expression


def main():
    self_check()
    with open(".deny.toml", "rb") as file:
        rules = tomllib.load(file)
    metadata = subprocess.run(
        ["cargo", "metadata", "--locked", "--format-version", "1"],
        check=True,
        stdout=subprocess.PIPE,
    )
    crates = json.loads(metadata.stdout)["packages"]
    allow = set(rules["licenses"]["allow"])
    banned = {entry["crate"] for entry in rules["bans"]["deny"]}
    registries = {f"registry+{url}" for url in rules["sources"]["allow-registry"]}
    faults = []
    for crate in crates:
        name = f"{crate['name']} {crate['version']}"
        if not allowed(crate["license"] or "", allow):
            faults.append(f"{name}: its licence is not allowed: {crate['license']}")
        if crate["name"] in banned:
            faults.append(f"{name}: banned")
        # Without a source it is this crate itself, or one by path.
        if crate["source"] not in registries and crate["name"] != "avouch":
            faults.append(f"{name}: its source is not allowed: {crate['source']}")
    for fault in faults:
        print(fault)
    print(f"{len(crates)} crates, {len(faults)} faults in licences, bans and sources")
    if faults:
        return 1
    return advisories()


def advisories():
    """Only an advisory fails this: no tool, or no way to the database, is said and let pass."""
    if not shutil.which("cargo-deny"):
        print("advisories: NOT checked, cargo-deny is not installed")
        return 0
    fetched = subprocess.run(["cargo", "deny", "--locked", "fetch", "db"], capture_output=True)
    if fetched.returncode != 0:
        print("advisories: NOT checked, their database could not be fetched")
        return 0
    command = ["cargo", "deny", "--locked", "check", "--disable-fetch", "advisories"]
    return subprocess.run(command).returncode


if __name__ == "__main__":
    sys.exit(main())
