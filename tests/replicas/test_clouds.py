"""What people are told of a bucket that cannot be used: by servers on loopback that answer so, or do not answer.

For each of the three kinds of store the real client asks; only what is on the other side is ours.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from ksupervise.errors import KsuperviseError, UsageError
from ksupervise.replicas.objects import Objects, open_bucket
from ksupervise.replicas.place import NotThere, Place, ReplicaFull, ReplicaRefused, ReplicaUnreachable

pytest.importorskip("obstore")

SCHEMES = ("s3", "gs", "az")
ENDPOINTS = {"s3": "AWS_ENDPOINT_URL", "gs": "GOOGLE_BASE_URL", "az": "AZURE_STORAGE_ENDPOINT"}
CREDENTIALS = {"s3": "AWS_ACCESS_KEY_ID", "gs": "GOOGLE_APPLICATION_CREDENTIALS", "az": "AZURE_STORAGE_ACCOUNT_KEY"}
HIDDEN = "c2VjcmV0IG9mIG1pbmU="
KEY = "run/x"
_WAIT = 60.0  # seconds; for a thread that is to end


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of whoever runs the tests leads to a real cloud."""
    for name in [name for name in os.environ if name.startswith(("AWS_", "GOOGLE_", "AZURE_", "SSL_CERT"))]:
        monkeypatch.delenv(name)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Credentials for all three, as a user sets them."""
    account = {"type": "service_account", "disable_oauth": True, "client_email": "me", "private_key_id": "1"}
    (tmp_path / "account.json").write_text(json.dumps({**account, "private_key": HIDDEN}))
    for name, value in {
        "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
        "AWS_SECRET_ACCESS_KEY": HIDDEN,
        "AWS_REGION": "us-east-1",
        "AWS_ALLOW_HTTP": "true",
        "GOOGLE_SERVICE_ACCOUNT": str(tmp_path / "account.json"),
        "GOOGLE_ALLOW_HTTP": "true",
        "AZURE_STORAGE_ACCOUNT_NAME": "mine",
        "AZURE_STORAGE_ACCOUNT_KEY": HIDDEN,
        "AZURE_ALLOW_HTTP": "true",
    }.items():
        monkeypatch.setenv(name, value)
    return tmp_path


@contextlib.contextmanager
def answering(status: int, body: str = "", tls: ssl.SSLContext | None = None) -> Iterator[int]:
    """A server that answers everything so; its port."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            """Nothing."""

        def answer(self) -> None:
            """The same for all."""
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body.encode())))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body.encode())

    for method in ("GET", "HEAD", "PUT", "POST", "DELETE"):
        setattr(Handler, f"do_{method}", Handler.answer)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # type: ignore[method-assign] # a client that gave up
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join(_WAIT)
        server.server_close()


def opened(scheme: str) -> Objects:
    """The place, with a second's patience."""
    return open_bucket(f"{scheme}://bucket/my%20model", connect=1.0, patience=1.0)


def told(place: Place, kind: type[KsuperviseError], way: str = "entries") -> str:
    """What is said when it is asked; one line, and nothing secret or of the client's own language in it."""
    ask = (lambda: place.entries("run/")) if way == "entries" else (lambda: place.write(KEY, [b"x"], 1))
    with pytest.raises(kind) as raised:
        ask()
    text = str(raised.value)
    assert text.startswith(place.name)
    assert text.isprintable()
    assert text.endswith(".")
    for word in (HIDDEN, "AKIA", "Generic", "Debug source", "Error performing", "retries", "http error", "prefix="):
        assert word.lower() not in text.lower(), text
    return text


def xml(code: str, message: str = "So it is.") -> str:
    """As S3 and Azure say it."""
    return f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message><Key>{HIDDEN}</Key></Error>"


# No answer -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", SCHEMES)
def test_who_refuses_the_connection_is_named(here: Path, monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    monkeypatch.setenv(ENDPOINTS[scheme], f"http://127.0.0.1:{port}")
    for way in ("entries", "write"):
        text = told(opened(scheme), ReplicaUnreachable, way)
        assert f"127.0.0.1:{port} refuses the connection" in text
        assert f"whether {ENDPOINTS[scheme]} is right" in text


@pytest.mark.parametrize("scheme", SCHEMES)
def test_who_does_not_answer_in_time_is_named(here: Path, monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv(ENDPOINTS[scheme], f"http://{address}")
        assert f"{address} does not answer in time" in told(opened(scheme), ReplicaUnreachable)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_host_that_is_not_known_is_named(here: Path, monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    monkeypatch.setenv(ENDPOINTS[scheme], "http://no-such-host.invalid")
    text = told(opened(scheme), ReplicaUnreachable)
    assert "the address of no-such-host.invalid is not to be found" in text
    assert ENDPOINTS[scheme] in text


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_server_without_tls_asked_with_it(here: Path, monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    with answering(200) as port:
        monkeypatch.setenv(ENDPOINTS[scheme], f"https://127.0.0.1:{port}")
        text = told(opened(scheme), ReplicaRefused)
    assert f"127.0.0.1:{port} does not speak TLS" in text
    assert f"with http:// in {ENDPOINTS[scheme]}, and set {ENDPOINTS[scheme].split('_')[0]}_ALLOW_HTTP=true" in text


def test_a_certificate_that_is_not_trusted(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority = certified(here, context)
    with answering(404, xml("NoSuchBucket"), context) as port:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"https://127.0.0.1:{port}")
        text = told(opened("s3"), ReplicaRefused)
        assert f"does not trust the certificate of 127.0.0.1:{port}" in text
        assert "SSL_CERT_FILE" in text
        monkeypatch.setenv("SSL_CERT_FILE", str(authority))
        assert "no such bucket" in told(opened("s3"), ReplicaRefused), "and then it is"


def certified(folder: Path, context: ssl.SSLContext) -> Path:
    """Give the context a certificate for 127.0.0.1; the file of the authority that made it."""
    pytest.importorskip("cryptography")
    import datetime as dt
    import ipaddress

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    now = dt.datetime.now(dt.timezone.utc)
    issuer = x509.Name([x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, "authority")])
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
    made = []
    for is_authority, key in zip((True, False), keys, strict=True):
        subject = issuer if is_authority else x509.Name([])
        builder = x509.CertificateBuilder(issuer, subject, key.public_key(), x509.random_serial_number())
        builder = builder.not_valid_before(now - dt.timedelta(1)).not_valid_after(now + dt.timedelta(1))
        builder = builder.add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
        if not is_authority:
            names = [x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=True)
        made.append(builder.sign(keys[0], hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    (folder / "authority.pem").write_bytes(made[0])
    (folder / "server.pem").write_bytes(
        made[1]
        + keys[1].private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    context.load_cert_chain(folder / "server.pem")
    return folder / "authority.pem"


# Answers -------------------------------------------------------------------------------------------

GOOGLES = json.dumps({"error": {"code": 403, "message": "me does not have storage.objects.list access."}})
PAGE = "<html><head><title>Out of order</title></head>\n<body>Come\nback later</body></html>"


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(
    ("status", "body", "kind", "words"),
    [
        (503, "", ReplicaUnreachable, "answered 503 Service Unavailable. It is overloaded or out of order"),
        (503, xml("SlowDown"), ReplicaUnreachable, "answered 503 Service Unavailable, SlowDown: So it is. It is over"),
        (503, PAGE, ReplicaUnreachable, "answered 503 Service Unavailable. It is overloaded or out of order"),
        (500, xml("InternalError", "a\nb"), ReplicaUnreachable, "500 Internal Server Error, InternalError: a. It is"),
        (429, GOOGLES, ReplicaUnreachable, "429 Too Many Requests: me does not have storage.objects.list access. It"),
        (403, "", ReplicaRefused, "403 Forbidden. The credentials may not read, list, write and delete there, or"),
        (403, GOOGLES, ReplicaRefused, "403 Forbidden: me does not have storage.objects.list access. The credentials"),
        (403, xml("AccessDenied"), ReplicaRefused, "403 Forbidden, AccessDenied: So it is. The credentials may not"),
        (403, xml("SignatureDoesNotMatch"), ReplicaRefused, "The credentials are wrong: see"),
        (403, xml("AuthenticationFailed", f"no {HIDDEN}"), ReplicaRefused, "AuthenticationFailed: no …. The cred"),
        (401, "", ReplicaRefused, "401 Unauthorized. The credentials are wrong: see"),
        (403, xml("RequestTimeTooSkewed"), ReplicaRefused, "The clock of this machine is wrong"),
        (400, xml("ExpiredToken"), ReplicaRefused, "The credentials have expired"),
        (400, xml("AuthorizationHeaderMalformed"), ReplicaRefused, "is in another region than is asked"),
        (301, "", ReplicaRefused, "sends us elsewhere, and does not say where to"),
        (404, xml("NoSuchBucket"), ReplicaRefused, "there is no such"),
        (404, PAGE, ReplicaRefused, "there is no such"),
        (507, xml("XMinioStorageFull"), ReplicaFull, "Free some space or quota there"),
        (405, "", ReplicaRefused, "region and endpoint belong together"),
    ],
)
def test_answers_are_told_in_words(
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    scheme: str,
    status: int,
    body: str,
    kind: type[KsuperviseError],
    words: str,
) -> None:
    with answering(status, body) as port:
        monkeypatch.setenv(ENDPOINTS[scheme], f"http://127.0.0.1:{port}")
        text = told(opened(scheme), kind)
        assert words in text
        assert f"127.0.0.1:{port}" in text
        if status != 404:  # which without a word may be about an object
            told(opened(scheme), kind, "write")
    if "credentials" in words and "expired" not in words:
        assert CREDENTIALS[scheme] in text
    if status in (301, 404):
        assert ENDPOINTS[scheme] in text


@pytest.mark.parametrize("scheme", SCHEMES)
def test_an_object_that_is_not_there_is_no_missing_bucket(
    here: Path, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    with answering(404, xml("NoSuchKey")) as port:
        monkeypatch.setenv(ENDPOINTS[scheme], f"http://127.0.0.1:{port}")
        with pytest.raises(NotThere, match=f"{scheme}://bucket/my model/{KEY} is not there"):
            opened(scheme).read(KEY)


# The environment -----------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["", " ", "key\n", " key", "a\nb"])
@pytest.mark.parametrize(
    ("scheme", "variable"),
    [
        ("s3", "AWS_ACCESS_KEY_ID"),
        ("s3", "AWS_SECRET_ACCESS_KEY"),
        ("s3", "AWS_SESSION_TOKEN"),
        ("s3", "AWS_REGION"),
        ("gs", "GOOGLE_APPLICATION_CREDENTIALS"),
        ("az", "AZURE_STORAGE_ACCOUNT_KEY"),
    ],
)
def test_a_variable_that_is_empty_or_has_a_line_break_is_named(
    here: Path, monkeypatch: pytest.MonkeyPatch, scheme: str, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(UsageError, match=f"{variable} (is empty|has blanks or line breaks).*mend or unset it"):
        opened(scheme)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(
    "endpoint",
    [
        "nonsense",
        "http://",
        "ftp://host",
        "http://[::1",
        "http://a b",
        "http://:80",
        "http://host:port",
        f"http://me:{HIDDEN}@127.0.0.1",
        f"https://127.0.0.1/?sig={HIDDEN}",
    ],
)
def test_an_endpoint_that_is_none_is_named_and_not_shown(
    here: Path, monkeypatch: pytest.MonkeyPatch, scheme: str, endpoint: str
) -> None:
    monkeypatch.setenv(ENDPOINTS[scheme], endpoint)
    with pytest.raises(
        UsageError, match=rf"{ENDPOINTS[scheme]} is no http://HOST\[:PORT\]; mend or unset it"
    ) as raised:
        opened(scheme)
    assert HIDDEN not in str(raised.value)


def test_a_client_that_breaks_down_over_a_variable_is_no_crash_of_ours(
    here: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "nonsense")
    text = told(opened("s3"), ReplicaRefused)
    assert "one of the variables AWS_…" in text
    assert "panicked" in capfd.readouterr().err, "else there is nothing to be caught any more"


@pytest.mark.parametrize("written", ["{", '{"type": "strange"}', f'"{HIDDEN}"', '{"private_key": 5}'])
def test_what_a_file_with_credentials_holds_is_not_quoted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: str
) -> None:
    (tmp_path / "key.json").write_text(written)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "key.json"))
    with pytest.raises(ReplicaRefused, match=r"Unable to decode service account file\. Set GOOGLE_APP") as raised:
        opened("gs")
    assert HIDDEN not in str(raised.value)
