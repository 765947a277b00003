"""Writes the table of values in helm/avouch/README.md from the comments in values.yaml.

    readme.py           writes it
    readme.py --check   says whether it is as it would be written
"""

import json
import pathlib
import re
import sys

import yaml

CHART = pathlib.Path(__file__).resolve().parents[2] / "helm/avouch"
BEGIN, END = "<!-- values -->\n", "<!-- end of values -->\n"
KEY = re.compile(r"^( *)([A-Za-z]\w*):(.*)$")


def at(values, path):
    """The value under a path of keys."""
    for key in path:
        values = values[key]
    return values


def rows(text):
    """Path, default and comment of every value that has a comment."""
    values, path, comment, found, inside = yaml.safe_load(text), [], [], [], None
    for line in text.splitlines():
        if line.lstrip().startswith("#"):
            comment.append(line.strip().lstrip("#").strip())
        elif match := KEY.match(line):
            depth = len(match[1]) // 2
            # Inside the default of a value that was described as a whole.
            if inside is not None and depth > inside:
                continue
            path, inside = path[:depth] + [match[2]], None
            if comment:
                found.append((".".join(path), at(values, path), " ".join(comment)))
                inside = depth
            elif not isinstance(at(values, path), dict):
                raise SystemExit(f"values.yaml: {'.'.join(path)} has no comment")
            comment = []
        else:
            comment = []
    return found


def table(text):
    """The table, Markdown."""
    lines = ["| value | default | what |", "|---|---|---|"]
    for path, default, comment in rows(text):
        cell = comment.replace("|", "\\|")
        lines.append(f"| `{path}` | `{json.dumps(default)}` | {cell} |")
    return "\n".join(lines) + "\n"


def written():
    """The README as it is, and as it would be written."""
    old = (CHART / "README.md").read_text()
    head, rest = old.split(BEGIN)
    tail = rest.split(END)[1]
    return old, head + BEGIN + table((CHART / "values.yaml").read_text()) + END + tail


if __name__ == "__main__":
    before, after = written()
    if sys.argv[1:] == ["--check"]:
        sys.exit(before != after and "helm/avouch/README.md is not current: run tests/chart/readme.py")
    (CHART / "README.md").write_text(after)
