"""A real etcd that wants TLS both ways, a user and a password, as a careful operator has it."""

import base64
import json
import os
import pathlib
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
PATIENCE = 60


def program():
    """Where etcd is."""
    found = pathlib.Path(os.environ.get("AVOUCH_ETCD", ROOT / "target/tools/etcd/usr/bin/etcd"))
    assert found.is_file(), f"there is no etcd at {found}: tests/run unpacks it, or set AVOUCH_ETCD"
    return found


def openssl(*args):
    """Runs it quietly."""
    subprocess.run(["openssl", *map(str, args)], check=True, capture_output=True)


def certificates(into):
    """A CA with a certificate for the members and one for the clients, in `into`."""
    openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", 2,
            "-subj", "/CN=etcd CA", "-keyout", into / "ca.key", "-out", into / "ca.crt")
    for name, names in (("member", "IP:127.0.0.1"), ("client", "DNS:avouch")):
        openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj",
                f"/CN={name}", "-keyout", into / f"{name}.key", "-out", into / f"{name}.csr")
        (into / "names").write_text(f"subjectAltName={names}\n")
        openssl("x509", "-req", "-in", into / f"{name}.csr", "-CA", into / "ca.crt", "-CAkey",
                into / "ca.key", "-CAcreateserial", "-days", 2, "-extfile", into / "names",
                "-out", into / f"{name}.crt")


def free_port():
    """A port that nobody listens at now."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


class Etcd:
    """One member. `address` is where it is; the user may use the keys beneath `prefix` alone."""

    def __init__(self, scratch, prefix, username, password):
        scratch.mkdir()
        certificates(scratch)
        clients, peers = free_port(), free_port()
        self.files, self.address = scratch, f"127.0.0.1:{clients}"
        with (scratch / "log").open("w") as log:
            self.process = subprocess.Popen([
                program(), "--data-dir", scratch / "data", f"--listen-client-urls=https://{self.address}",
                f"--advertise-client-urls=https://{self.address}",
                f"--listen-peer-urls=http://127.0.0.1:{peers}",
                f"--initial-advertise-peer-urls=http://127.0.0.1:{peers}",
                f"--initial-cluster=default=http://127.0.0.1:{peers}", "--client-cert-auth",
                f"--cert-file={scratch}/member.crt", f"--key-file={scratch}/member.key",
                f"--trusted-ca-file={scratch}/ca.crt"], stdout=log, stderr=log)
        self.context = ssl.create_default_context(cafile=scratch / "ca.crt")
        self.context.load_cert_chain(scratch / "client.crt", scratch / "client.key")
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                self.ask("maintenance/status", {})
                break
            except OSError:
                assert time.monotonic() < deadline and self.process.poll() is None, \
                    (scratch / "log").read_text()[-2000:]
                time.sleep(0.05)

        def text(it):
            return base64.b64encode(it.encode()).decode()

        self.ask("auth/user/add", {"name": "root", "password": "of nobody's business"})
        self.ask("auth/role/add", {"name": "root"})
        self.ask("auth/user/grant", {"user": "root", "role": "root"})
        self.ask("auth/user/add", {"name": username, "password": password})
        self.ask("auth/role/add", {"name": "avouch"})
        end = prefix[:-1] + chr(ord(prefix[-1]) + 1)
        self.ask("auth/role/grant", {"name": "avouch", "perm": {
            "permType": "READWRITE", "key": text(prefix), "range_end": text(end)}})
        self.ask("auth/user/grant", {"user": username, "role": "avouch"})
        self.ask("auth/enable", {})

    def ask(self, path, body):
        """What its gateway answers."""
        request = urllib.request.Request(f"https://{self.address}/v3/{path}", json.dumps(body).encode())
        with urllib.request.urlopen(request, context=self.context, timeout=10) as answer:
            return json.loads(answer.read())

    def stop(self):
        """Ends it."""
        self.process.kill()
        self.process.wait()
