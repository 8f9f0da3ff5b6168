"""What is peculiar to each object store: the variables that lead there, and what obstore's errors mean.

obstore's texts are for its developers: several lines, addresses with whatever is in them, the causes only in a dump of
its structures. Here they become one sentence for people and the kind of fault. Nothing secret gets into it: of the
text only what is known is taken over, and what a variable keeps secret is crossed out even there.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

from ksupervise.errors import UsageError
from ksupervise.replicas.place import NotThere, ReplicaFault, ReplicaFull, ReplicaRefused, ReplicaUnreachable

_NO_BUCKET = {"NoSuchBucket", "ContainerNotFound"}
_FULL = {"QuotaExceeded", "StorageFull", "XMinioStorageFull", "XMinioAdminBucketQuotaExceeded"}
_EXPIRED = {"ExpiredToken", "TokenRefreshRequired", "InvalidToken"}
_SKEWED = {"RequestTimeTooSkewed", "RequestExpired"}
_WRONG = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "AuthenticationFailed", "InvalidAuthenticationInfo"}
_REGION = {"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"}
_REDIRECTED = "redirect without LOCATION"  # obstore's words: S3 answers so for a bucket of another region
# Whom obstore asks where no credentials are set.
_METADATA = ("/latest/api/token", "/latest/meta-data/", "/computeMetadata/", "/metadata/identity/", "/msi/token")
_TRUE = {"1", "true", "on", "yes", "y"}
_ENDPOINT = re.compile(r"https?://(\[[0-9A-Fa-f:.]+\]|[^\s/?#@:\[\]]+)(:\d{1,5})?(/[^\s?#@]*)?")
_SECRET = re.compile(r"(AWS|AZURE|GOOGLE)_.*(KEY|TOKEN|SECRET|PASSWORD)")
_MOST = 200  # letters of a store's own sentence


@dataclass(frozen=True)
class Cloud:
    """What is peculiar to one.

    Attributes:
        kind: the class in obstore.store.
        prefix: of its variables.
        credentials: variables with the credentials, for people.
        hint: what else to know about those, for who has none yet.
        container: what it calls a bucket.
        endpoints: variables with the address of a server that is not the cloud's own.
        location: the variable that the cloud's own address is made of; "" for none.
        plain: variables that hold one word each.
    """

    kind: str = ""
    prefix: str = ""
    credentials: str = "what credentials it wants"
    hint: str = ""
    container: str = "bucket"
    endpoints: tuple[str, ...] = ()
    location: str = ""
    plain: tuple[str, ...] = ()

    @property
    def addresses(self) -> str:
        """The variables by which the address that is asked was found, for people; "" for none."""
        return " and ".join(self._given) or self.location

    @property
    def _given(self) -> list[str]:
        return [name for name in self.endpoints if os.environ.get(name)]

    @property
    def region(self) -> str:
        """The variables that decide which region is asked, for people; "" for none."""
        return " and ".join([*filter(None, [self.location]), *self._given])


CLOUDS = {
    "s3": Cloud(
        "S3Store",
        "AWS",
        "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_REGION",
        " (a profile in ~/.aws is not read: `aws configure export-credentials --format env` turns it into them)",
        endpoints=("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"),
        location="AWS_REGION",
        plain=("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_REGION", "AWS_DEFAULT_REGION"),
    ),
    "gs": Cloud(
        "GCSStore",
        "GOOGLE",
        "GOOGLE_APPLICATION_CREDENTIALS",
        " to the file with your credentials",
        endpoints=("GOOGLE_BASE_URL",),
        plain=("GOOGLE_APPLICATION_CREDENTIALS",),
    ),
    "az": Cloud(
        "AzureStore",
        "AZURE",
        "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
        container="container",
        endpoints=("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"),
        location="AZURE_STORAGE_ACCOUNT_NAME",
        plain=("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_SAS_TOKEN"),
    ),
}


def check_environment(cloud: Cloud, name: str) -> bool:
    """Whether plain HTTP is wanted for the place of that name.

    Raises:
        UsageError: a variable holds what cannot be used. obstore would not say which, or break down over it.
    """
    for variable in cloud.plain:
        value = os.environ.get(variable)
        if value is not None and (not value or value != value.strip() or not value.isprintable()):
            wrong = "is empty" if not value.strip() else "has blanks or line breaks around or in it"
            raise UsageError(f"--replica {name}: {variable} {wrong}; mend or unset it.")
    allowed = os.environ.get(f"{cloud.prefix}_ALLOW_HTTP", "").lower() in _TRUE
    for variable in cloud.endpoints:
        endpoint = os.environ.get(variable, "")
        if endpoint and not _ENDPOINT.fullmatch(endpoint):
            raise UsageError(f"--replica {name}: {variable} is no http://HOST[:PORT]; mend or unset it.")
        if endpoint.startswith("http:") and not allowed:
            raise UsageError(
                f"--replica {name}: {variable} is plain HTTP, which anybody on the way can read. "
                f"Set {cloud.prefix}_ALLOW_HTTP=true if that is meant."
            )
    return allowed


def is_panic(error: BaseException) -> bool:
    """obstore broke down. Its exception for that is no Exception, and has no name to import."""
    return type(error).__name__ == "PanicException"


def opening_fault(error: BaseException, name: str, cloud: Cloud) -> ReplicaRefused:
    """The fault for which obstore makes no store of these settings."""
    if is_panic(error):
        return _panic(name, cloud)
    text = str(error).partition("\n\nDebug source")[0]
    text = re.sub(r"^Generic \w+ error: ", "", text)
    text = re.sub(r"(Unable to decode .*? file).*", r"\1", text, flags=re.DOTALL)  # it may quote what is in there
    return ReplicaRefused(f"{name} cannot be used: {_tidy(text)}. Set {cloud.credentials}{cloud.hint}.")


def fault(error: BaseException, name: str, key: str, cloud: Cloud, *, answered: bool) -> ReplicaFault:
    """The fault that an error of obstore stands for.

    Args:
        error: as it was raised.
        name: of the place, without anything secret.
        key: the object that was asked for.
        cloud: whose store it is.
        answered: the store has answered before, so that this is not for want of credentials.
    """
    if is_panic(error):
        return _panic(name, cloud)
    code = code_of(error)
    if isinstance(error, FileNotFoundError) and code not in _NO_BUCKET:
        return NotThere(f"{name}/{key} is not there.")
    text = str(error)
    if not answered and any(path in text for path in _METADATA):
        return ReplicaRefused(f"{name}: no credentials were found. Set {cloud.credentials}{cloud.hint}.")
    if "HTTP error" in text:
        return _unanswered(text, name, cloud)
    return _answered(_Answer(text, code, status_of(error)), name, f"{name}/{key}", cloud)


def code_of(error: BaseException) -> str:
    """The store's own word for it, from the answer's body; empty if there is none."""
    found = re.search(r"<Code>(\w+)</Code>", str(error))
    return found[1] if found else ""


def status_of(error: BaseException) -> int | None:
    """The answer's status, if there was an answer."""
    found = re.search(r"status code: (\d{3})", str(error))
    return int(found[1]) if found else None


@dataclass(frozen=True)
class _Answer:
    """An answer that is none of success.

    Attributes:
        text: the whole of obstore's.
        code: the store's own word.
        status: of HTTP, None if it is not told.
    """

    text: str
    code: str
    status: int | None

    @property
    def words(self) -> str:
        """What was answered by whom, as `nas:9000 answered 403 Forbidden, AccessDenied: not for you`."""
        if _REDIRECTED in self.text:
            return f"{_host(self.text)} sends us elsewhere, and does not say where to"
        if self.status is None:
            return _tidy(_plain(self.text))
        found = re.search(r"status code: \d{3} ([A-Za-z -]*[A-Za-z])", self.text)
        line = f"{_host(self.text)} answered {self.status}{' ' + found[1] if found else ''}"
        line += f", {self.code}" if self.code else ""
        message = _message(self.text)
        return _tidy(f"{line}: {message}" if message else line)


def _answered(answer: _Answer, name: str, where: str, cloud: Cloud) -> ReplicaFault:
    """What an answer means that is none of success."""
    status = answer.status
    told = f"{where}: {answer.words}."
    if answer.code in _NO_BUCKET or (status == 404 and "list request" in answer.text):
        return ReplicaRefused(
            f"{name}: there is no such {cloud.container} at {_host(answer.text)}. Create it"
            f"{_see(cloud, ', see whether ', ' is right')}, or choose another place with --replica."
        )
    if answer.code in _FULL or status == 507:
        return ReplicaFull(f"{told} Free some space or quota there, or keep less with --replica-keep.")
    if answer.code in _SKEWED:
        return ReplicaRefused(f"{told} The clock of this machine is wrong: set it.")
    if answer.code in _EXPIRED:
        return ReplicaRefused(f"{told} The credentials have expired: get new ones ({cloud.credentials}).")
    if answer.code in _REGION or _REDIRECTED in answer.text:
        hint = f": see {cloud.region}" if cloud.region else ""
        return ReplicaRefused(f"{told} The {cloud.container} is in another region than is asked{hint}.")
    if answer.code in _WRONG or status == 401 or ("token request" in answer.text and status in (400, 403)):
        return ReplicaRefused(f"{told} The credentials are wrong: see {cloud.credentials}.")
    if status == 403 or "lacked the necessary privileges" in answer.text:
        return ReplicaRefused(
            f"{told} The credentials may not read, list, write and delete there, or are wrong: allow it to them, or "
            f"see {cloud.credentials}."
        )
    if "builder error" in answer.text:
        return ReplicaRefused(f"{name}: its address cannot be asked{_see(cloud, ': mend ')}.")
    if status is not None and 300 <= status < 500 and status not in (408, 409, 429):
        return ReplicaRefused(f"{told} See whether {cloud.container}, region and endpoint belong together.")
    if status == 429 or (status or 0) >= 500:
        return ReplicaUnreachable(f"{told} It is overloaded or out of order: nothing has to be done unless that lasts.")
    return ReplicaUnreachable(f"{told} See whether the network and the server are up.")


def _unanswered(text: str, name: str, cloud: Cloud) -> ReplicaFault:
    """There was no answer. Why is said only in what obstore dumps of its structures."""
    host = _host(text)
    if "InvalidCertificate" in text:
        return ReplicaRefused(
            f"{name}: this machine does not trust the certificate of {host}. See whether the address is "
            f"right{_see(cloud, ' (', ')')}, or name the file of its authority in SSL_CERT_FILE."
        )
    if "InvalidMessage" in text or "InvalidContentType" in text:
        return ReplicaRefused(
            f"{name}: {host} does not speak TLS. If it is meant to be asked without, write its address "
            f"with http://{_see(cloud, ' in ')}, and set {cloud.prefix}_ALLOW_HTTP=true."
        )
    if "dns error" in text:
        return ReplicaUnreachable(
            f"{name}: the address of {host} is not to be found. See whether the network is "
            f"up{_see(cloud, ', and whether ', ' is right')}."
        )
    if "ConnectionRefused" in text:
        return ReplicaUnreachable(
            f"{name}: {host} refuses the connection. See whether the server is "
            f"up{_see(cloud, ', and whether ', ' is right')}."
        )
    if "kind: Timeout" in text or "TimedOut" in text:
        return ReplicaUnreachable(
            f"{name}: {host} does not answer in time. See whether the network and the server are up."
        )
    return ReplicaUnreachable(
        f"{name}: the connection to {host} broke off. See whether the network and the server are up."
    )


def _panic(name: str, cloud: Cloud) -> ReplicaRefused:
    return ReplicaRefused(
        f"{name}: the client for object stores breaks down over its settings: one of the variables {cloud.prefix}_… "
        "(or what they lead to) holds what it cannot use. Mend or unset it."
    )


def _see(cloud: Cloud, before: str, after: str = "") -> str:
    """A hint at the variables that the address comes from; empty where there are none."""
    return f"{before}{cloud.addresses}{after}" if cloud.addresses else ""


def _host(text: str) -> str:
    """Who was asked: `nas.example:9000`. Of the rest of the address nothing is shown, a key may be in it."""
    found = re.search(r"Error performing [A-Z]+ (https?://\S+)", text)
    try:
        parts = urlsplit(found[1] if found else "")
        host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
        return f"{host}:{parts.port}" if host and parts.port else host or "the server"
    except ValueError:
        return "the server"


def _message(text: str) -> str:
    """The store's own sentence: XML of S3 and Azure, JSON of Google."""
    body = text.partition("\n\nDebug source")[0]
    if found := re.search(r"<Message>([^<]*)</Message>", body):
        return found[1].strip().partition("\n")[0]
    begin = body.find("{")
    if begin < 0:
        return ""
    try:
        return next(_messages(json.JSONDecoder().raw_decode(body[begin:])[0]), "")
    except (ValueError, RecursionError):
        return ""


def _messages(found: object) -> Iterator[str]:
    """`{"error": {"message": …}}`, or `{"error": "invalid_grant", "error_description": …}` for a token."""
    error = found.get("error") if isinstance(found, dict) else None
    if isinstance(error, dict) and isinstance(error.get("message"), str):
        yield error["message"]
    if isinstance(error, str):
        yield error


def _plain(text: str) -> str:
    """obstore's own sentence, without addresses and what follows a body."""
    text = text.partition("\n\nDebug source")[0].partition("<")[0]
    text = re.sub(r"^Generic \w+ error: ", "", text)
    return re.sub(r"https?://\S+", "its address", text)


def _tidy(text: str) -> str:
    """One short line, without what variables keep secret."""
    for variable, value in os.environ.items():
        if len(value) > 3 and _SECRET.fullmatch(variable):
            text = text.replace(value, "…")
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    return (line if len(line) <= _MOST else f"{line[: _MOST - 1]}…").rstrip(" .:-")
