"""Keeps docs/ true.

    docs.py PROGRAM           checks that what is generated is current, and runs every command
    docs.py PROGRAM --write   generates it again, and runs nothing

Generated are docs/configuration.md, from `avouch check-config --reference`, and docs/api.md, from the
protos. In the rest, each ```console block is run as printed: `$ ` begins a command, what follows is
what it has to print, where … stands for anything and a line of it for any lines. A command that
begins with `avouch serve` runs on once it is ready. All of a file runs in one empty directory, in a
network of its own, as the ports are the usual ones.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

from google.protobuf import descriptor_pb2

from image import loopback_up

DOCS = Path("docs")
PROTOS = Path("proto")
PATIENCE = 60
GENERATED = "<!-- Generated: tests/python/docs.py PROGRAM --write -->\n"


def configuration(program):
    """The reference as tables."""
    text = subprocess.run([program, "check-config", "--reference"], check=True, env={},
                          capture_output=True, text=True).stdout
    lines = [
        "# Configuration\n\n", GENERATED,
        "\nA TOML file (`--config`, or `AVOUCH_CONFIG`), over it the environment, over that flags:\n"
        "`server.listen` is `AVOUCH_SERVER_LISTEN` and `--set server.listen=…`. A key that is not known is a\n"
        "mistake. `avouch check-config` reports every mistake at once; `avouch check-config --reference`\n"
        "prints what is below as a file to start from. Durations are `250ms`, `5s`, `10m`, `1h`, `30d`; sizes\n"
        "`64KiB`, `256MiB`. Secrets are given by the path of a file, mode 0600 or 0400.\n",
    ]
    grants = text.index("# What a caller with a client certificate")
    doc = None
    keys = 0
    for line in text[:grants].splitlines():
        if section := re.fullmatch(r"\[(\w+)\]", line):
            lines.append(f"\n## [{section[1]}]\n\n| key | default | what |\n|---|---|---|\n")
        elif described := re.fullmatch(r"# (.*) \[(AVOUCH_\w+)\]", line):
            doc = described[1]
        elif (key := re.fullmatch(r"#(\w+) = (.*)", line)) and doc:
            value = key[2].strip('"')
            shown = f"`{value}`" if value else "not set"
            escaped = doc.replace("|", "\\|")
            lines.append(f"| `{key[1]}` | {shown} | {escaped} |\n")
            doc, keys = None, keys + 1
    # Without this a change of the form would empty the tables.
    assert keys == len(re.findall(r"^#\w+ = ", text[:grants], re.M)) and keys > 60, keys
    body = re.sub(r"^#(?! )", "", text[grants:], flags=re.M)
    lines.append(f"\n## [[grant]]\n\n```toml\n{body.strip()}\n```\n")
    return "".join(lines)


def api():
    """The comments of the protos, by service and message."""
    files = sorted(PROTOS.rglob("*.proto"))
    with tempfile.TemporaryDirectory() as directory:
        target = Path(directory, "set")
        subprocess.run([sys.executable, "-m", "grpc_tools.protoc", f"--proto_path={PROTOS}",
                        "--include_source_info", f"--descriptor_set_out={target}", *map(str, files)],
                       check=True)
        described = descriptor_pb2.FileDescriptorSet.FromString(target.read_bytes())
    services, messages, enums = [], [], []
    for file in described.file:
        comments = {tuple(it.path): it.leading_comments or it.trailing_comments
                    for it in file.source_code_info.location}
        for n, service in enumerate(file.service):
            services.append(service_text(service, (6, n), comments))
        for n, message in enumerate(file.message_type):
            messages += message_texts(message, (4, n), comments, "")
        for n, enum in enumerate(file.enum_type):
            enums.append(enum_text(enum, (5, n), comments, ""))
    return "".join([
        "# API\n\n", GENERATED, "\nPackage `avouch.v1`, from the comments of the protos in `proto/avouch/v1`.\n",
        *services, "\n## Messages\n", *messages, "\n## Enums\n", *enums,
    ])


def prose(comment):
    """A comment as paragraphs."""
    lines = [line.removeprefix(" ").rstrip() for line in comment.strip("\n").splitlines()]
    return "\n".join(lines).strip() + "\n"


def cell(comment):
    return " ".join(comment.split()).replace("|", "\\|")


def type_name(field):
    name = field.type_name.removeprefix(".avouch.v1.").removeprefix(".")
    if not name:
        name = descriptor_pb2.FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()
    repeated = field.label == descriptor_pb2.FieldDescriptorProto.LABEL_REPEATED
    return f"repeated {name}" if repeated else name


def service_text(service, path, comments):
    text = f"\n## {service.name}\n\n{prose(comments.get(path, ''))}"
    for n, method in enumerate(service.method):
        ask = method.input_type.rpartition(".")[2]
        answer = method.output_type.rpartition(".")[2]
        stream = "stream of " if method.server_streaming else ""
        text += f"\n### {method.name}\n\n`{ask}` → {stream}`{answer}`\n\n{prose(comments[(*path, 2, n)])}"
    return text


def message_texts(message, path, comments, prefix):
    if message.options.map_entry:
        return []
    name = prefix + message.name
    text = f"\n### {name}\n\n{prose(comments.get(path, ''))}"
    if message.field:
        text += "\n| field | type | what |\n|---|---|---|\n"
    for n, field in enumerate(message.field):
        one_of = ""
        if field.HasField("oneof_index") and not field.proto3_optional:
            one_of = f", one of `{message.oneof_decl[field.oneof_index].name}`"
        text += f"| `{field.name}` | {type_name(field)}{one_of} | {cell(comments.get((*path, 2, n), ''))} |\n"
    texts = [text]
    for n, nested in enumerate(message.nested_type):
        texts += message_texts(nested, (*path, 3, n), comments, f"{name}.")
    for n, enum in enumerate(message.enum_type):
        texts.append(enum_text(enum, (*path, 4, n), comments, f"{name}."))
    return texts


def enum_text(enum, path, comments, prefix):
    text = f"\n### {prefix}{enum.name}\n\n{prose(comments.get(path, ''))}\n| value | what |\n|---|---|\n"
    for n, value in enumerate(enum.value):
        text += f"| `{value.name}` | {cell(comments.get((*path, 2, n), ''))} |\n"
    return text


def blocks(text):
    """The commands of the ```console blocks, each with what it prints."""
    for block in re.findall(r"^```console\n(.*?)^```$", text, re.M | re.S):
        command, expected = None, []
        for line in block.splitlines():
            if line.startswith("$ "):
                if command is not None:
                    yield command, expected
                command, expected = line[2:], []
            elif command.endswith("\\") and not expected:
                command += "\n" + line
            else:
                expected.append(line)
        yield command, expected


def pattern(expected):
    """What a command may print. One line `…` is any lines; nothing is anything."""
    if not expected:
        return re.compile(".*", re.S)
    parts = []
    for line in expected:
        if line == "…":
            parts.append(r"(?:.*\n)*?")
        else:
            parts.append(".*".join(re.escape(part) for part in line.split("…")) + r"\n")
    return re.compile("".join(parts))


class Shell:
    """Runs the commands of one file."""

    def __init__(self, directory, program):
        self.directory = directory
        tools = directory / ".bin"
        tools.mkdir()
        (tools / "avouch").symlink_to(Path(program).resolve())
        self.environment = {"PATH": f"{tools}:{os.environ['PATH']}", "LC_ALL": "C.UTF-8"}
        self.servers = []

    def run(self, command, expected):
        if match := re.fullmatch(r"export (\w+)=(\S+)", command):
            self.environment[match[1]] = match[2]
            return
        print(f"$ {command}", flush=True)
        wanted = pattern(expected)
        if command.startswith("avouch serve"):
            said = self.serve(command)
        else:
            done = subprocess.run(["bash", "-euo", "pipefail", "-c", command], cwd=self.directory,
                                  env=self.environment, check=False, text=True, timeout=PATIENCE,
                                  stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            said = done.stdout
            fails = bool(expected) and expected[0].startswith("error")
            assert (done.returncode != 0) == fails, f"exit code {done.returncode}: {said}"
        print(said, end="", flush=True)
        assert wanted.fullmatch(said), f"it printed\n{said}instead of\n" + "\n".join(expected)

    def serve(self, command):
        """Starts a server; what it said if it ended, nothing once it is ready."""
        for server in self.servers:
            server.wait(timeout=PATIENCE)
        log = self.directory / ".server"
        with log.open("w", encoding="utf-8") as out:
            server = subprocess.Popen(["bash", "-c", f"exec {command}"], cwd=self.directory,
                                      env=self.environment, stdout=subprocess.DEVNULL, stderr=out)
        deadline = time.monotonic() + PATIENCE
        while server.poll() is None:
            assert time.monotonic() < deadline, log.read_text()
            try:
                urllib.request.urlopen("http://127.0.0.1:7702/readyz", timeout=5).close()
                self.servers.append(server)
                return ""
            except (urllib.error.URLError, OSError):
                time.sleep(0.02)
        said = log.read_text()
        return "\n".join(line for line in said.splitlines() if line.startswith("error")) + "\n"

    def end(self):
        for server in self.servers:
            if server.poll() is None:
                server.send_signal(signal.SIGTERM)
                assert server.wait(timeout=PATIENCE) == 0


def run_file(path, program):
    directory = Path(tempfile.mkdtemp(prefix="avouch-docs-"))
    shell = Shell(directory, program)
    try:
        for count, (command, expected) in enumerate(blocks(path.read_text()), 1):
            shell.run(command, expected)
        shell.end()
        print(f"{path}: {count} commands did what it says")
    finally:
        for server in shell.servers:
            server.kill()
        shutil.rmtree(directory)


def main(program, write):
    for name, text in [("configuration.md", configuration(program)), ("api.md", api())]:
        if write:
            (DOCS / name).write_text(text)
        elif (DOCS / name).read_text() != text:
            sys.exit(f"docs/{name} is not current: run tests/python/docs.py {program} --write")
    for path in [*DOCS.glob("*.md"), Path("README.md")]:
        for link in re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text()):
            assert (path.parent / link).exists(), f"{path} links to {link}, which is not there"
    if not write:
        loopback_up()
        for name in ("install.md", "operate.md"):
            run_file(DOCS / name, program)


if __name__ == "__main__":
    if "--write" not in sys.argv and os.environ.get("AVOUCH_IN_NAMESPACES") != "1":
        os.environ["AVOUCH_IN_NAMESPACES"] = "1"
        own = ["--net"] if os.geteuid() == 0 else ["--net", "--map-root-user"]
        os.execvp("unshare", ["unshare", *own, sys.executable, *sys.argv])
    main(sys.argv[1], "--write" in sys.argv)
