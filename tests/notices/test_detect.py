"""Which cloud this is, by what real machines' firmware says; and never by asking."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from ksupervise.notices import Notice, aws, azure, detect, explain, gcp, watch
from ksupervise.notices.detect import _OVERRIDES

NITRO = {
    "sys_vendor": "Amazon EC2",
    "product_name": "g5.2xlarge",
    "bios_vendor": "Amazon EC2",
    "bios_version": "1.0",
    "board_asset_tag": "i-0123456789abcdef0",
    "chassis_asset_tag": "Amazon EC2",
}
XEN = {"sys_vendor": "Xen", "product_name": "HVM domU", "bios_vendor": "Xen", "bios_version": "4.11.amazon"}
XEN_ELSEWHERE = {**XEN, "bios_version": "4.13.5"}
GCE = {
    "sys_vendor": "Google",
    "product_name": "Google Compute Engine",
    "bios_vendor": "Google",
    "bios_version": "Google",
    "board_asset_tag": "9F4C4E2D-71D7-8A1B-2C3D-5E6F708192A3",
    "chassis_asset_tag": "",
}
AZURE = {
    "sys_vendor": "Microsoft Corporation",
    "product_name": "Virtual Machine",
    "bios_vendor": "American Megatrends Inc.",
    "bios_version": "090008",
    "board_asset_tag": "None",
    "chassis_asset_tag": "7783-7084-3265-9085-8269-3286-77",
}
HYPER_V = {**AZURE, "chassis_asset_tag": "4568-2345-6432-9324-3433-2346-47"}
LAPTOP = {
    "sys_vendor": "LENOVO",
    "product_name": "20XW00A6GE",
    "bios_vendor": "LENOVO",
    "bios_version": "N32ET80W (1.56 )",
    "board_asset_tag": "Not Available",
    "chassis_asset_tag": "No Asset Information",
}
CHROMEBOOK = {"sys_vendor": "Google", "product_name": "Eve", "bios_vendor": "coreboot"}
KVM = {"sys_vendor": "QEMU", "product_name": "Standard PC (Q35 + ICH9, 2009)", "bios_vendor": "SeaBIOS"}
OPENSTACK = {"sys_vendor": "OpenStack Foundation", "product_name": "OpenStack Nova", "bios_vendor": "SeaBIOS"}


def firmware(folder: Path, fields: dict[str, str]) -> Path:
    """A tree like /sys/class/dmi/id."""
    for name, value in fields.items():
        (folder / name).write_text(f"{value}\n")
    return folder


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        (NITRO, ("aws",)),
        ({**NITRO, "product_name": "i3.metal", "bios_vendor": "Amazon EC2"}, ("aws",)),
        (XEN, ("aws",)),
        ({**XEN, "bios_version": "4.2.amazon"}, ("aws",)),
        (XEN_ELSEWHERE, ()),
        ({**XEN_ELSEWHERE, "product_uuid": "ec2e1916-9099-7caf-fd21-012345abcdef"}, ("aws",)),
        ({**XEN_ELSEWHERE, "product_uuid": "EC2E1916-9099-7CAF-FD21-012345ABCDEF"}, ("aws",)),
        ({**XEN_ELSEWHERE, "product_uuid": "45E12AEC-DCD1-B213-94ED-012345ABCDEF"}, ("aws",)),
        ({**XEN_ELSEWHERE, "product_uuid": "1234ec2e-9099-7caf-fd21-012345abcdef"}, ()),
        ({**LAPTOP, "product_uuid": "ec2e1916-9099-7caf-fd21-012345abcdef"}, ()),
        (GCE, ("gcp",)),
        (CHROMEBOOK, ()),
        (AZURE, ("azure",)),
        ({**HYPER_V, "board_asset_tag": "7783-7084-3265-9085-8269-3286-77"}, ("azure",)),
        (HYPER_V, ()),
        (LAPTOP, ()),
        (KVM, ()),
        (OPENSTACK, ()),
        ({}, ()),
        ({"sys_vendor": ""}, ()),
    ],
)
def test_firmware(tmp_path: Path, fields: dict[str, str], found: tuple[str, ...]) -> None:
    assert detect({}, firmware(tmp_path, fields)) == found


@pytest.mark.parametrize(
    ("fields", "environ", "found"),
    [
        (LAPTOP, {"AWS_EC2_METADATA_SERVICE_ENDPOINT": "http://127.0.0.1:1"}, ("aws",)),
        (LAPTOP, {"AWS_EC2_METADATA_SERVICE_ENDPOINT": ""}, ()),
        (LAPTOP, {"AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE": "IPv6"}, ()),
        (NITRO, {"AWS_EC2_METADATA_DISABLED": "true"}, ()),
        (NITRO, {"AWS_EC2_METADATA_DISABLED": "false"}, ("aws",)),
        (LAPTOP, {"AWS_EC2_METADATA_SERVICE_ENDPOINT": "http://x", "AWS_EC2_METADATA_DISABLED": "TRUE"}, ()),
        (NITRO, {"AWS_EXECUTION_ENV": "AWS_ECS_EC2"}, ("aws",)),
        (NITRO, {"AWS_EXECUTION_ENV": "AWS_ECS_FARGATE"}, ()),
        (LAPTOP, {"GCE_METADATA_HOST": "127.0.0.1:1"}, ("gcp",)),
        (LAPTOP, {"GCE_METADATA_ROOT": "127.0.0.1:1"}, ("gcp",)),
        (LAPTOP, {"GCE_METADATA_IP": "127.0.0.1:1"}, ("gcp",)),
        (GCE, {"NO_GCE_CHECK": "true"}, ()),
        (GCE, {"NO_GCE_CHECK": "false"}, ("gcp",)),
        (LAPTOP, {"GCE_METADATA_HOST": "127.0.0.1:1", "NO_GCE_CHECK": "true"}, ()),
        (LAPTOP, {"KSUPERVISE_AZURE_METADATA": "http://127.0.0.1:1"}, ("azure",)),
        (LAPTOP, {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "AWS_REGION": "eu-central-1"}, ()),
        (GCE, {"KSUPERVISE_AZURE_METADATA": "http://127.0.0.1:1"}, ("gcp", "azure")),
    ],
)
def test_environment(tmp_path: Path, fields: dict[str, str], environ: dict[str, str], found: tuple[str, ...]) -> None:
    assert detect(environ, firmware(tmp_path, fields)) == found


def test_it_says_why(tmp_path: Path) -> None:
    findings = {finding.source: finding for finding in explain({"NO_GCE_CHECK": "true"}, firmware(tmp_path, NITRO))}
    assert tuple(findings) == ("aws", "gcp", "azure")
    assert findings["aws"].chosen
    assert findings["aws"].why == "sys_vendor is 'Amazon EC2'"
    assert findings["gcp"].why == "NO_GCE_CHECK is true"
    assert "neither" in findings["azure"].why


def test_what_may_not_be_read_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "sys_vendor").mkdir()
    (tmp_path / "product_name").write_bytes(b"\xff\xfe" * 100_000)
    assert detect({}, tmp_path) == ()


def test_the_variables_are_those_of_the_sources() -> None:
    assert _OVERRIDES == {
        "aws": ("AWS_EC2_METADATA_SERVICE_ENDPOINT",),
        "gcp": gcp.VARIABLES,
        "azure": (azure.VARIABLE,),
    }
    assert aws.endpoint({_OVERRIDES["aws"][0]: "http://127.0.0.1:1"}) == "http://127.0.0.1:1"


def test_nobody_is_asked_to_find_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def touched(*_: object, **__: object) -> None:
        raise AssertionError("the network")

    monkeypatch.setattr(socket.socket, "connect", touched)
    monkeypatch.setattr(socket, "getaddrinfo", touched)
    notices: list[Notice] = []
    notes: list[str] = []
    for number, fields in enumerate((LAPTOP, HYPER_V, CHROMEBOOK, XEN_ELSEWHERE, KVM, {})):
        folder = tmp_path / str(number)
        folder.mkdir()
        made = watch("auto", tell=notices.append, note=notes.append, environ={}, dmi=firmware(folder, fields))
        assert made.names == ()
        assert not made._ears
        made.close()
    assert not notices
    assert not notes
