"""A client that knows nothing of avouch but its protos, over real sockets, against the real binary.

usage: client.py PATH-OF-AVOUCH

Logs in, verifies the access token as any service would, refreshes, watches, revokes, and sees that
everybody heard of it. Prints each thing that it did.
"""

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import grpc
import jwt
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status
from grpc_tools import protoc

ROOT = Path(__file__).resolve().parents[2]
STUBS = ROOT / "target" / "python"
ISSUER = "https://id.example.com"
PATIENCE = 30.0


def generate_stubs():
    STUBS.mkdir(parents=True, exist_ok=True)
    protos = sorted(str(path) for path in (ROOT / "proto").rglob("*.proto"))
    included = Path(protoc.__file__).parent / "_proto"
    flags = [f"-I{ROOT / 'proto'}", f"-I{included}"]
    outputs = [f"--python_out={STUBS}", f"--grpc_python_out={STUBS}"]
    if protoc.main(["protoc", *flags, *outputs, *protos]) != 0:
        sys.exit("the stubs cannot be generated")
    sys.path.insert(0, str(STUBS))


generate_stubs()
from avouch.v1 import admin_service_pb2 as admin_pb  # noqa: E402
from avouch.v1 import admin_service_pb2_grpc as admin_grpc  # noqa: E402
from avouch.v1 import identity_service_pb2 as identity_pb  # noqa: E402
from avouch.v1 import identity_service_pb2_grpc as identity_grpc  # noqa: E402
from avouch.v1 import revocation_pb2  # noqa: E402
from avouch.v1 import revocation_service_pb2 as watch_pb  # noqa: E402
from avouch.v1 import revocation_service_pb2_grpc as watch_grpc  # noqa: E402
from avouch.v1 import session_service_pb2 as session_pb  # noqa: E402
from avouch.v1 import session_service_pb2_grpc as session_grpc  # noqa: E402
from avouch.v1 import token_pb2  # noqa: E402
from google.rpc import error_details_pb2  # noqa: E402


def did(what):
    print(f"ok: {what}", flush=True)


def check(true, what):
    if not true:
        raise AssertionError(what)


class Server:
    """The binary, in a directory that goes when it stops."""

    def __init__(self, program):
        self.scratch = tempfile.TemporaryDirectory(prefix="avouch-")
        self.data = Path(self.scratch.name) / "data"
        self.log = Path(self.scratch.name) / "log"
        settings = {
            "store.path": self.data,
            "server.listen": "127.0.0.1:0",
            "server.public_listen": "127.0.0.1:0",
            "server.ops_listen": "127.0.0.1:0",
            "issuer.url": ISSUER,
        }
        flags = [f"--set={key}={value}" for key, value in settings.items()]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("AVOUCH_")}
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                [program, "serve", "--dev", *flags],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
            )
        addresses = self.data / "addresses.json"
        deadline = time.monotonic() + PATIENCE
        while not addresses.exists():
            check(self.process.poll() is None, "the server ended before it listened")
            check(time.monotonic() < deadline, "the server did not listen in time")
            time.sleep(0.02)
        self.addresses = self.read_json("addresses.json")

    def read_json(self, name):
        return json.loads((self.data / name).read_text())

    def client(self, name):
        """A client's credentials, as its file holds them."""
        return token_pb2.ClientAuthentication(**self.read_json(name))

    def http(self, listener, path):
        url = f"http://{self.addresses[listener]}{path}"
        with urllib.request.urlopen(url, timeout=PATIENCE) as response:
            return response.read().decode()

    def stop(self):
        """SIGTERM; returns the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE)

    def clean_up(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.scratch.cleanup()


class Watcher:
    """A thread that reads the stream of revocations, as a service would."""

    def __init__(self, channel, token):
        stub = watch_grpc.RevocationServiceStub(channel)
        self.frames = queue.Queue()
        self.call = stub.WatchRevocations(
            watch_pb.WatchRevocationsRequest(subscriber_id="python"), metadata=bearer(token)
        )
        self.thread = threading.Thread(target=self.read, daemon=True)
        self.thread.start()

    def read(self):
        try:
            for frame in self.call:
                self.frames.put((time.monotonic(), frame))
        except grpc.RpcError as error:
            self.frames.put((time.monotonic(), error))

    def next(self, kind):
        """The next frame of a kind, and when it came."""
        deadline = time.monotonic() + PATIENCE
        while True:
            at, frame = self.frames.get(timeout=deadline - time.monotonic())
            if isinstance(frame, grpc.RpcError):
                raise frame
            if frame.WhichOneof("frame") == kind:
                return at, getattr(frame, kind)


def bearer(token):
    return [("authorization", f"Bearer {token}")]


def refused(code, reason, call):
    """The call fails with this code and this reason, under avouch's domain."""
    try:
        call()
    except grpc.RpcError as error:
        check(error.code() == code, f"{code} was expected, not {error.code()}: {error.details()}")
        info = error_details_pb2.ErrorInfo()
        details = rpc_status.from_call(error).details
        check(any(detail.Unpack(info) for detail in details), "there is no ErrorInfo")
        check(info.domain == "avouch", f"the domain is {info.domain}")
        check(reason is None or info.reason == reason, f"the reason is {info.reason}")
        return info.reason
    raise AssertionError(f"{code} was expected, but the call succeeded")


def verify(server, token):
    """Signature and claims against the public keys over HTTP, with a library of others."""
    keys = jwt.PyJWKSet.from_json(server.http("public", "/.well-known/jwks.json"))
    header = jwt.get_unverified_header(token)
    check(header["typ"] == "at+jwt", f"typ is {header['typ']}")
    claims = jwt.decode(
        token,
        keys[header["kid"]].key,
        algorithms=["ES256"],
        audience="orders",
        issuer=ISSUER,
        options={"require": ["iss", "sub", "aud", "exp", "iat", "jti", "client_id", "sid"]},
    )
    return header, claims


def story(server):
    channel = grpc.insecure_channel(server.addresses["grpc"])
    identity = identity_grpc.IdentityServiceStub(channel)
    login, admin = server.client("login-client.json"), server.client("admin-client.json")
    password = (server.data / "ada.password").read_text().strip()

    health = health_pb2_grpc.HealthStub(channel)
    serving = health_pb2.HealthCheckResponse.SERVING
    answer = health.Check(health_pb2.HealthCheckRequest(), timeout=PATIENCE, wait_for_ready=True)
    check(answer.status == serving, "health says that it does not serve")
    check(server.http("ops", "/readyz") == "ready\n", "/readyz says otherwise")
    did("health: SERVING over gRPC, ready over HTTP")

    reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
    asked = reflection_pb2.ServerReflectionRequest(list_services="")
    listed = next(reflection.ServerReflectionInfo(iter([asked]), timeout=PATIENCE))
    names = {service.name for service in listed.list_services_response.service}
    ours = {f"avouch.v1.{name}Service" for name in ("Admin", "Identity", "Revocation", "Session")}
    check(ours <= names, f"reflection lists {names}")
    did(f"reflection: {', '.join(sorted(names))}")

    wrong = identity_pb.AuthenticateRequest(
        client=login, password=identity_pb.PasswordGrant(username="ada", password="wrong")
    )
    unauthenticated = grpc.StatusCode.UNAUTHENTICATED
    reason = refused(unauthenticated, None, lambda: identity.Authenticate(wrong, timeout=PATIENCE))
    wrong.password.username = "nobody"
    refused(unauthenticated, reason, lambda: identity.Authenticate(wrong, timeout=PATIENCE))
    did(f"a wrong password and an unknown user are both refused: UNAUTHENTICATED, {reason}")

    first = identity.Authenticate(
        identity_pb.AuthenticateRequest(
            client=login,
            password=identity_pb.PasswordGrant(username="ada", password=password),
            audiences=["orders"],
            device=token_pb2.Device(device_name="A Python client"),
        ),
        timeout=PATIENCE,
    ).tokens
    check(first.refresh_token.startswith("avr1_"), "it is no refresh token")
    did(f"logged in: session {first.session_id}, {first.expires_in_seconds} s")

    header, claims = verify(server, first.access_token)
    check(claims["sid"] == first.session_id, "the token names another session")
    check(claims["sub"] == first.subject, "the token names another subject")
    did(f"verified by PyJWT and the JWKS: {header['alg']}, {header['typ']}, iss {claims['iss']}")
    tampered = first.access_token[:-8] + ("A" * 8)
    try:
        verify(server, tampered)
    except jwt.InvalidSignatureError:
        did("a tampered token is refused by PyJWT")
    else:
        raise AssertionError("a tampered token was accepted")

    refresh = identity_pb.RefreshRequest(client=login, refresh_token=first.refresh_token)
    second = identity.Refresh(refresh, timeout=PATIENCE).tokens
    check(second.session_id == first.session_id, "a refresh changed the session")
    check(second.refresh_token != first.refresh_token, "a refresh changed nothing")
    again = identity.Refresh(refresh, timeout=PATIENCE).tokens
    check(again.refresh_token == second.refresh_token, "a retry got another successor")
    did("refreshed; the same call again gets the same refresh token")

    def introspect(token, at_least=None):
        request = identity_pb.IntrospectRequest(client=admin, token=token, at_least=at_least)
        return identity.Introspect(request, timeout=PATIENCE)

    check(introspect(second.access_token).active, "a good token is called inactive")
    check(introspect(second.refresh_token).active, "a good refresh token is called inactive")
    did("introspected: both tokens are active")

    own = identity.Authenticate(
        identity_pb.AuthenticateRequest(
            client=admin,
            client_credentials=identity_pb.ClientCredentialsGrant(),
            audiences=["avouch"],
        ),
        timeout=PATIENCE,
    ).tokens
    check(not own.refresh_token, "client credentials got a refresh token")
    users = admin_grpc.AdminServiceStub(channel)
    ada = users.GetUser(
        admin_pb.GetUserRequest(username="ada"), metadata=bearer(own.access_token), timeout=PATIENCE
    ).user
    check(ada.subject == first.subject, "ada is somebody else")
    sessions = session_grpc.SessionServiceStub(channel)
    listed = sessions.ListSessions(
        session_pb.ListSessionsRequest(subject=ada.subject),
        metadata=bearer(own.access_token),
        timeout=PATIENCE,
    ).sessions
    check([one.session_id for one in listed] == [first.session_id], "the session is not listed")
    check(listed[0].device.device_name == "A Python client", "the device is not listed")
    did("the admin client sees the user and the session")

    refused(
        unauthenticated,
        None,
        lambda: next(iter(watch_grpc.RevocationServiceStub(channel).WatchRevocations(
            watch_pb.WatchRevocationsRequest(), timeout=PATIENCE
        ))),
    )
    watcher = Watcher(channel, own.access_token)
    _, synced = watcher.next("synced")
    did(f"watching, without a token refused: synced at revision {synced.through.revision}")

    began = time.monotonic()
    revoked = identity.Revoke(
        identity_pb.RevokeRequest(
            client=admin,
            session_id=first.session_id,
            reason=revocation_pb2.REVOCATION_REASON_ADMIN_ACTION,
        ),
        timeout=PATIENCE,
    )
    returned = time.monotonic()
    at, batch = watcher.next("batch")
    check(list(batch.revocations) == [revoked.revoked], "the watcher heard something else")
    check(batch.through == revoked.cursor, "the watcher is elsewhere in the log")
    event = batch.revocations[0]
    check(event.session.session_id == first.session_id, "another session was revoked")
    check(event.reason == revocation_pb2.REVOCATION_REASON_ADMIN_ACTION, "for another reason")
    did(
        f"revoked at revision {event.revision}: Revoke took {(returned - began) * 1e3:.1f} ms, "
        f"the watcher had it {(at - began) * 1e3:.1f} ms after it was called"
    )

    for token in (first.access_token, second.access_token, second.refresh_token):
        answer = introspect(token, revoked.cursor)
        check(answer == identity_pb.IntrospectResponse(), f"a revoked token: {answer}")
    did("introspected: inactive, and nothing else is said")
    refresh.refresh_token = second.refresh_token
    reason = refused(unauthenticated, None, lambda: identity.Refresh(refresh, timeout=PATIENCE))
    did(f"refresh is refused: UNAUTHENTICATED, {reason}, domain avouch")

    metrics = server.http("ops", "/metrics")
    for secret in (password, login.client_secret, first.refresh_token, first.access_token):
        check(secret not in metrics, "a secret is among the metrics")
    check("avouch_" in metrics and metrics.endswith("# EOF\n"), "these are no metrics")
    did("metrics are served and hold no secret")

    code = server.stop()
    check(code == 0, f"the server ended with {code}")
    _, away = watcher.next("go_away")
    check(away.reason == watch_pb.GO_AWAY_REASON_DRAIN, f"go_away for {away.reason}")
    did("SIGTERM: the watcher was told to go, the server ended with 0")
    log = server.log.read_text() + (server.data / "audit.jsonl").read_text()
    secrets = (password, login.client_secret, admin.client_secret, own.access_token)
    secrets += (first.refresh_token, first.access_token, second.refresh_token)
    check(not any(secret in log for secret in secrets), "a secret is in a log")
    did("neither the log nor the audit log holds a secret")


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    server = Server(sys.argv[1])
    try:
        story(server)
    except BaseException:
        print(server.log.read_text(), file=sys.stderr)
        raise
    finally:
        server.clean_up()
    print("the Python client is content")


if __name__ == "__main__":
    main()
