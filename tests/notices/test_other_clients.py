"""The emulators are honest: the clients of the clouds' own makers work with them, through the same variables."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from typing import Any

import pytest

from .emulator import Aws, Gcp

BOTOCORE = pytest.mark.skipif(not importlib.util.find_spec("botocore"), reason="botocore is not installed")
GOOGLE = pytest.mark.skipif(
    not importlib.util.find_spec("google") or not importlib.util.find_spec("google.auth"),
    reason="google-auth is not installed",
)


def run(program: str, **variables: str) -> Any:
    """What `program` prints, as JSON; in a process of its own, since these clients read the environment at import."""
    blocked = {"PROXY", "AWS_", "GCE_", "GOOGLE_", "GCLOUD_"}
    environ = {name: value for name, value in os.environ.items() if not any(b in name.upper() for b in blocked)}
    command = [sys.executable, "-c", program]
    done = subprocess.run(
        command, env={**environ, **variables}, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


CREDENTIALS = """
import json
from botocore.session import Session
provider = Session().get_component("credential_provider").get_provider("iam-role")
credentials = provider.load()
print(json.dumps(credentials and [credentials.access_key, credentials.token]))
"""
FETCHER = """
import json, os
from botocore.utils import IMDSFetcher
fetcher = IMDSFetcher(base_url=os.environ["AWS_EC2_METADATA_SERVICE_ENDPOINT"])
token = fetcher._fetch_metadata_token()
answer = fetcher._get_request("latest/meta-data/spot/instance-action", lambda answer: False, token)
print(json.dumps([bool(token), answer.status_code, answer.text]))
"""
REGION = """
import json, os
from botocore.utils import InstanceMetadataRegionFetcher
fetcher = InstanceMetadataRegionFetcher(base_url=os.environ["AWS_EC2_METADATA_SERVICE_ENDPOINT"])
print(json.dumps(fetcher.retrieve_region()))
"""


@BOTOCORE
def test_botocore_gets_credentials_by_imdsv2(aws: Aws) -> None:
    assert run(CREDENTIALS, AWS_EC2_METADATA_SERVICE_ENDPOINT=aws.url) == ["ASIAEXAMPLE", "emulated-session"]
    assert aws.asked("api/token"), "with a token"


@BOTOCORE
def test_botocore_reads_the_spot_notice(aws: Aws) -> None:
    assert run(FETCHER, AWS_EC2_METADATA_SERVICE_ENDPOINT=aws.url)[:2] == [True, 404]
    aws.interrupt(120)
    _, status, text = run(FETCHER, AWS_EC2_METADATA_SERVICE_ENDPOINT=aws.url)
    assert status == 200
    assert json.loads(text)["action"] == "terminate"


@BOTOCORE
def test_botocore_falls_back_where_there_are_no_tokens(aws: Aws) -> None:
    aws.put_status = 403
    assert run(CREDENTIALS, AWS_EC2_METADATA_SERVICE_ENDPOINT=aws.url) is None, "tokens are required"
    aws.optional = True
    assert run(CREDENTIALS, AWS_EC2_METADATA_SERVICE_ENDPOINT=aws.url) == ["ASIAEXAMPLE", "emulated-session"]


@BOTOCORE
def test_botocore_obeys_the_switch_that_we_obey(aws: Aws) -> None:
    environ = {"AWS_EC2_METADATA_SERVICE_ENDPOINT": aws.url, "AWS_EC2_METADATA_DISABLED": "true"}
    assert run(CREDENTIALS, **environ) is None
    assert not aws.asked()


@BOTOCORE
def test_botocore_finds_the_region(aws: Aws) -> None:
    assert run(REGION, AWS_EC2_METADATA_SERVICE_ENDPOINT=aws.url) == "eu-central-1"


PING = """
import json
from google.auth.compute_engine import _metadata
from google.auth.transport.requests import Request
request = Request()
print(json.dumps([_metadata.ping(request, retry_count=1), _metadata.is_on_gce(request)]))
"""
GET = """
import json
from google.auth.compute_engine import _metadata
from google.auth.transport.requests import Request
request = Request()
print(json.dumps([
    _metadata.get(request, "instance/preempted", retry_count=1),
    _metadata.get(request, "instance/maintenance-event", retry_count=1),
    _metadata.get_project_id(request),
    _metadata.get(request, "instance/gone", retry_count=1, return_none_for_not_found_error=True),
]))
"""
WAIT = """
import json
from google.auth.compute_engine import _metadata
from google.auth.transport.requests import Request
params = {"wait_for_change": "true", "timeout_sec": "30"}
print(json.dumps(_metadata.get(Request(), "instance/preempted", params=params, retry_count=1, timeout=40)))
"""


@GOOGLE
def test_google_auth_knows_the_server_for_google(gcp: Gcp, aws: Aws) -> None:
    assert run(PING, GCE_METADATA_IP=gcp.host) == [True, True]
    assert run(PING, GCE_METADATA_IP=aws.host)[0] is False


@GOOGLE
def test_google_auth_obeys_the_switch_that_we_obey(gcp: Gcp) -> None:
    assert run(PING, GCE_METADATA_IP=gcp.host, NO_GCE_CHECK="true")[1] is False


@GOOGLE
@pytest.mark.parametrize("variable", ["GCE_METADATA_HOST", "GCE_METADATA_ROOT"])
def test_google_auth_reads_the_keys_that_we_read(gcp: Gcp, variable: str) -> None:
    gcp.put("instance/preempted", "TRUE")
    assert run(GET, **{variable: gcp.host}) == ["TRUE", "NONE", "emulated-project", None]


@GOOGLE
def test_google_auth_waits_for_a_change(gcp: Gcp) -> None:
    """Asked without an etag, it waits for the next one."""
    import threading

    def change() -> None:
        gcp.await_first("preempted")
        gcp.put("instance/preempted", "TRUE")

    changer = threading.Thread(target=change)
    changer.start()
    assert run(WAIT, GCE_METADATA_HOST=gcp.host) == "TRUE"
    changer.join()
