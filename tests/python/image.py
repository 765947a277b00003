"""Runs avouch as a container runtime runs the image: in namespaces and a root directory of its own,
which nothing can write to, as an arbitrary user without any capability. It serves, logs a user in,
finds a name over DNS, and drains.

    image.py PROGRAM     the root has this program, with the libraries that it loads
    image.py --image     the root is made by image/build, and the image by buildah; each a second time from
                         another directory, which has to give the same bytes

Needs root: it mounts, changes its root and its user.
"""

import ctypes
import fcntl
import json
import os
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

# Neither root nor the user that the image names.
USER = 54321
PATIENCE = 60
PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 24, 38
CONFIG = """
[server]
listen = "127.0.0.1:7700"
public_listen = "127.0.0.1:7701"
ops_listen = "127.0.0.1:7702"
drain_delay = "200ms"
[issuer]
url = "http://127.0.0.1:7701"
[store]
path = "/var/lib/avouch"
min_free_bytes = "0"
[keys]
encryption_key_file = "/etc/avouch/encryption.key"
[audit]
output = "stdout"
"""

# Read here: after the change of root Python finds none of its own files.
LAST_CAPABILITY = int(Path("/proc/sys/kernel/cap_last_cap").read_text())
libc = ctypes.CDLL(None, use_errno=True)


def run(*command, **options):
    return subprocess.run([str(it) for it in command], check=True, **options)


def confine(root):
    """What a runtime does between fork and exec for `restricted` pods."""
    os.chroot(root)
    os.chdir("/")
    os.umask(0o077)
    for capability in range(LAST_CAPABILITY + 1):
        if libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0):
            raise OSError(ctypes.get_errno(), "PR_CAPBSET_DROP")
    os.setgroups([])
    os.setresgid(USER, USER, USER)
    os.setresuid(USER, USER, USER)
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "PR_SET_NO_NEW_PRIVS")


def libraries(program, root):
    """Copies what a program that is not static loads."""
    listed = subprocess.run(["ldd", program], check=False, capture_output=True, text=True).stdout
    for word in listed.split():
        if word.startswith("/"):
            target = root / word.removeprefix("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(word, target)


def context(into):
    """Copies what a build of the Dockerfile has: what .dockerignore leaves."""
    for line in Path(".dockerignore").read_text().splitlines():
        if line.startswith("!"):
            source, target = Path(line[1:]), into / line[1:]
            copy = shutil.copytree if source.is_dir() else shutil.copy
            copy(source, target)
    # Cargo builds nothing where a target that the manifest names is missing.
    missing = targets(Path()) - targets(into)
    assert not missing, f".dockerignore leaves out the target {missing}"


def targets(directory):
    """What Cargo can build there."""
    said = run("cargo", "metadata", "--no-deps", "--locked", "--format-version=1", cwd=directory,
               capture_output=True).stdout
    return {it["name"] for it in json.loads(said)["packages"][0]["targets"]}


def build_again(first, work):
    """The same root from another directory, with another home of Cargo: no path is in it."""
    source, out, home = work / "some/where/else", work / "again", work / "cargo-home"
    source.mkdir(parents=True)
    context(source)
    home.symlink_to(os.environ.get("CARGO_HOME", Path.home() / ".cargo"))
    run(source / "image/build", out, env=os.environ | {"CARGO_HOME": str(home)})
    files = [sorted(str(it.relative_to(root)) for it in root.rglob("*") if it.is_file())
             for root in (first, out)]
    assert files[0] == files[1], files
    for name in files[0]:
        same = (first / name).read_bytes() == (out / name).read_bytes()
        assert same, f"{name} differs between two builds"
    print(f"built again elsewhere: the same {len(files[0])} files, byte by byte")
    return out


def image_root(root):
    """The root of the image that the Dockerfile makes from a root directory of image/build."""
    run("image/build", "target/image/root")
    work = Path(tempfile.mkdtemp(prefix="avouch-again-"))
    try:
        image_of(root, [Path("target/image/root"), build_again(Path("target/image/root"), work)])
    finally:
        shutil.rmtree(work, ignore_errors=True)


def image_of(root, made):
    """Unpacks the image that is made of each of these root directories, the same one."""
    static = subprocess.run(["ldd", "target/image/root/usr/bin/avouch"], check=False,
                            capture_output=True, text=True)
    assert "statically linked" in static.stdout, static
    storage = tempfile.mkdtemp(prefix="avouch-buildah-")
    buildah = ["buildah", "--storage-driver", "vfs", "--root", f"{storage}/root",
               "--runroot", f"{storage}/run"]
    try:
        images = [run(*buildah, "build", "--isolation", "chroot", "--quiet", "--timestamp", "0",
                      "--build-context", f"root={it}", "--tag", "avouch", ".",
                      capture_output=True, text=True).stdout.split()[-1] for it in made]
        assert len(set(images)) == 1, f"two builds, two images: {images}"
        inspected = run(*buildah, "inspect", "--type", "image", "avouch", capture_output=True).stdout
        config = json.loads(inspected)["OCIv1"]["config"]
        user, group = config["User"].split(":")
        assert int(user) > 10000 and int(group) > 10000, config
        assert config["Entrypoint"] == ["/usr/bin/avouch"], config
        container = run(*buildah, "from", "avouch", capture_output=True, text=True).stdout.strip()
        mounted = run(*buildah, "mount", container, capture_output=True, text=True).stdout.strip()
        shutil.copytree(mounted, root, dirs_exist_ok=True, symlinks=True)
        run(*buildah, "umount", container, stdout=subprocess.DEVNULL)
    finally:
        shutil.rmtree(storage, ignore_errors=True)
    files = sorted(str(it.relative_to(root)) for it in root.rglob("*") if not it.is_dir())
    assert files == [
        "etc/nsswitch.conf",
        "usr/bin/avouch",
        "usr/share/doc/avouch/LICENSE",
        "usr/share/doc/avouch/sbom.spdx.json",
    ], files
    for path in root.rglob("*"):
        mode = stat.S_IMODE(path.lstat().st_mode)
        assert not mode & 0o6022, f"{path} may be written or changes who runs it: {mode:o}"
    check_sbom(root / "usr/share/doc/avouch/sbom.spdx.json")
    size = (root / "usr/bin/avouch").stat().st_size
    print(f"the image has {len(files)} files; the binary has {size / 1e6:.1f} MB")


def check_sbom(path):
    """Whether the list names what is linked, once, with its licence, and nothing else."""
    sbom = json.loads(path.read_text())
    packages = {it["SPDXID"]: it for it in sbom["packages"]}
    assert len(packages) == len(sbom["packages"]), "an identifier stands there twice"
    names = {it["name"] for it in packages.values()}
    assert {"avouch", "aws-lc-sys", "sled", "tonic", "rust-std", "glibc"} <= names, names
    # A macro, a build script's, a test's, and another system's.
    assert not {"syn", "prost-build", "proptest", "windows-sys"} & names, names
    for package in packages.values():
        assert package["licenseDeclared"] != "NOASSERTION", package
        assert package["name"] in ("avouch", "rust-std", "glibc") or package["checksums"], package
    for relation in sbom["relationships"]:
        assert relation["relatedSpdxElement"] in packages, relation
    assert len(sbom["relationships"]) == len(packages)


def answer_dns(sock, asked):
    """A name server that knows avouch.test."""
    while True:
        try:
            query, peer = sock.recvfrom(512)
        except OSError:
            return
        end = query.index(b"\0", 12)
        name, (kind,) = query[12:end], struct.unpack("!H", query[end + 1:end + 3])
        known = name == b"\x06avouch\x04test"
        asked.append(name)
        answer = b""
        if known and kind == 1:
            answer = b"\xc0\x0c" + struct.pack("!HHIH", 1, 1, 1, 4) + socket.inet_aton("127.0.0.1")
        flags = 0x8580 if known else 0x8583
        head = query[:2] + struct.pack("!HHHHH", flags, 1, 1 if answer else 0, 0, 0)
        sock.sendto(head + query[12:end + 5] + answer, peer)


def loopback_up():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        request = struct.pack("16sH14x", b"lo", 0)
        flags = struct.unpack("16sH14x", fcntl.ioctl(sock, 0x8913, request))[1]
        fcntl.ioctl(sock, 0x8914, struct.pack("16sH14x", b"lo", flags | 1))


def mount_root(root, data, secrets):
    for name in ("proc", "var/lib/avouch", "etc/avouch"):
        (root / name).mkdir(parents=True, exist_ok=True)
    # A runtime brings these two.
    (root / "etc/hosts").write_text("127.0.0.1 localhost\n")
    (root / "etc/resolv.conf").write_text("nameserver 127.0.0.1\noptions timeout:5\n")
    run("mount", "--bind", root, root)
    run("mount", "-t", "proc", "-o", "nosuid,nodev,noexec", "proc", root / "proc")
    run("mount", "--bind", data, root / "var/lib/avouch")
    run("mount", "--bind", secrets, root / "etc/avouch")
    run("mount", "-o", "remount,bind,ro", root / "etc/avouch")
    run("mount", "-o", "remount,bind,ro,nosuid,nodev", root)


def main(argument):
    loopback_up()
    work = Path(tempfile.mkdtemp(prefix="avouch-image-"))
    try:
        try_it(argument, work)
    finally:
        subprocess.run(["umount", "--recursive", str(work / "root")], check=False, stderr=subprocess.DEVNULL)
        shutil.rmtree(work, ignore_errors=True)


def try_it(argument, work):
    root, data, secrets = work / "root", work / "data", work / "secrets"
    for directory in (root, data, secrets, work / "context"):
        directory.mkdir()
    work.chmod(0o755)
    if argument == "--image":
        image_root(root)
    else:
        context(work / "context")
        (root / "usr/bin").mkdir(parents=True)
        shutil.copy(argument, root / "usr/bin/avouch")
        libraries(argument, root)
        (root / "etc").mkdir(exist_ok=True)
        shutil.copy("image/root/etc/nsswitch.conf", root / "etc")
    (secrets / "avouch.toml").write_text(CONFIG)
    (secrets / "encryption.key").write_text(os.urandom(32).hex())
    (secrets / "password").write_text("correct horse battery staple")
    for path in (data, *secrets.iterdir()):
        os.chown(path, USER, USER)
        path.chmod(0o700 if path.is_dir() else 0o400)
    mount_root(root, data, secrets)

    def avouch(*arguments, **options):
        # The environment is empty, as in the image.
        return subprocess.Popen(["/usr/bin/avouch", *arguments], env={}, text=True,
                                preexec_fn=lambda: confine(root), **options)

    def call(*arguments):
        """A command of the same image, to its end."""
        process = avouch(*arguments, "--json", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        out, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, (arguments, err)
        return out

    here = ["--server", "http://localhost:7700", "--credentials", "/var/lib/avouch/admin-client.json"]
    server = avouch("serve", "--config", "/etc/avouch/avouch.toml",
                    stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        until(lambda: server.poll() is not None or (data / "addresses.json").exists())
        assert server.poll() is None, server.communicate()[1]
        status = dict(line.split(":\t", 1) for line in
                      Path(f"/proc/{server.pid}/status").read_text().splitlines() if ":\t" in line)
        assert status["Uid"].split() == [str(USER)] * 4, status["Uid"]
        for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
            assert int(status[name], 16) == 0, (name, status[name])
        assert status["NoNewPrivs"] == "1"
        written = subprocess.run(["touch", str(root / "usr/written")], check=False, stderr=subprocess.DEVNULL)
        assert written.returncode != 0, "the root can be written to"

        call("client", "create", "app", "--first-party", "--audience", "orders", "--save", "/var/lib/avouch/app.json", *here)
        call("user", "create", "ada", "--password-file", "/etc/avouch/password", *here)
        names = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        names.bind(("127.0.0.1", 53))
        asked = []
        found = threading.Thread(target=answer_dns, args=(names, asked), daemon=True)
        found.start()
        named = ["--server", "http://avouch.test:7700"]
        call("login", *named, "--credentials", "/var/lib/avouch/app.json", "--username", "ada",
             "--password-file", "/etc/avouch/password", "--save", "/var/lib/avouch/tokens.json")
        assert asked, "no name was looked up"
        answer = json.loads(call("introspect", "/var/lib/avouch/tokens.json", *here))
        assert answer["active"] is True, answer

        server.send_signal(signal.SIGTERM)
        _, said = server.communicate(timeout=PATIENCE)
        assert server.returncode == 0 and "aborted=0" in said, said
        for path in data.rglob("*"):
            mode = stat.S_IMODE(path.lstat().st_mode)
            assert not mode & 0o077, f"{path} can be read by others: {mode:o}"
        print("it served, logged in and drained: read-only root, any user, no capability")
    finally:
        if server.poll() is None:
            server.kill()
            print(server.communicate()[1], file=sys.stderr)


def until(condition):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it takes too long"
        time.sleep(0.01)


if __name__ == "__main__":
    if os.geteuid() != 0:
        sys.exit("image.py: needs root, to mount and to change its root and its user")
    if os.environ.get("AVOUCH_IN_NAMESPACES") != "1":
        os.environ["AVOUCH_IN_NAMESPACES"] = "1"
        os.execvp("unshare", ["unshare", "--mount", "--net", "--propagation", "private",
                              sys.executable, *sys.argv])
    main(sys.argv[1])
