"""Which cloud this is, by what the firmware says of itself and by the environment.

Never by asking: 169.254.169.254 may be anybody's, and a request to it from somebody's office is an alarm there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

DMI = Path("/sys/class/dmi/id")
AZURE_TAG = "7783-7084-3265-9085-8269-3286-77"  # of every Azure machine's chassis; other Hyper-V has others
# Where a client is sent elsewhere on purpose. Named here too, so that the sources need not be imported.
_OVERRIDES = {
    "aws": ("AWS_EC2_METADATA_SERVICE_ENDPOINT",),
    "gcp": ("GCE_METADATA_HOST", "GCE_METADATA_ROOT", "GCE_METADATA_IP"),
    "azure": ("KSUPERVISE_AZURE_METADATA",),
}


@dataclass(frozen=True)
class Finding:
    """What `auto` makes of one cloud.

    Attributes:
        source: aws, gcp or azure.
        chosen: it is watched.
        why: the evidence, in words.
    """

    source: str
    chosen: bool
    why: str


def detect(environ: Mapping[str, str], dmi: Path = DMI) -> tuple[str, ...]:
    """The clouds whose notices `auto` watches on this machine; usually one or none."""
    return tuple(finding.source for finding in explain(environ, dmi) if finding.chosen)


def explain(environ: Mapping[str, str], dmi: Path = DMI) -> tuple[Finding, ...]:
    """One finding for each cloud, with its reason."""
    firmware = {"aws": _amazon(dmi), "gcp": _google(dmi), "azure": _microsoft(dmi)}
    return tuple(_finding(source, environ, evidence) for source, evidence in firmware.items())


def _finding(source: str, environ: Mapping[str, str], evidence: str) -> Finding:
    if switch := _switched_off(source, environ):
        return Finding(source, False, switch)
    for variable in _OVERRIDES[source]:
        if environ.get(variable):
            return Finding(source, True, f"{variable} is set")
    if evidence and source == "aws" and environ.get("AWS_EXECUTION_ENV") == "AWS_ECS_FARGATE":
        return Finding(source, False, "Fargate has no metadata service for this; it sends SIGTERM")
    return Finding(source, bool(evidence), evidence or "neither the firmware nor the environment says so")


def _switched_off(source: str, environ: Mapping[str, str]) -> str:
    """Why the source's own clients are told not to look for it; "" if they are not."""
    if source == "aws" and environ.get("AWS_EC2_METADATA_DISABLED", "").lower() == "true":
        return "AWS_EC2_METADATA_DISABLED is true"
    if source == "gcp" and environ.get("NO_GCE_CHECK") == "true":
        return "NO_GCE_CHECK is true"
    return ""


def _amazon(dmi: Path) -> str:
    """Nitro machines and bare metal say Amazon; the older Xen ones show it in the BIOS' version or their uuid."""
    for field in ("sys_vendor", "bios_vendor"):
        if (value := _read(dmi, field)) == "Amazon EC2":
            return f"{field} is {value!r}"
    if _read(dmi, "sys_vendor") != "Xen":
        return ""  # the beginning of a uuid alone is anybody's, once in 4,096 machines
    if (version := _read(dmi, "bios_version")).endswith(".amazon"):
        return f"bios_version is {version!r}"
    if _is_amazons(_read(dmi, "product_uuid")):  # for root alone to read
        return "sys_vendor is 'Xen' and product_uuid begins as EC2's do"
    return ""


def _is_amazons(uuid: str) -> bool:
    """It begins with ec2, in either order of its bytes."""
    swapped = uuid[6:8] + uuid[4:6]
    return uuid.lower().startswith("ec2") or swapped.lower().startswith("ec2")


def _google(dmi: Path) -> str:
    """By the product: the vendor of a Chromebook is Google too."""
    value = _read(dmi, "product_name")
    return f"product_name is {value!r}" if value == "Google Compute Engine" else ""


def _microsoft(dmi: Path) -> str:
    """By the tag of the chassis: the vendor and the product are those of any Hyper-V."""
    for field in ("chassis_asset_tag", "board_asset_tag"):
        if _read(dmi, field) == AZURE_TAG:
            return f"{field} is Azure's"
    return ""


def _read(dmi: Path, field: str) -> str:
    """What the firmware says; "" where there is no such field, or it is not ours to read."""
    try:
        return (dmi / field).read_bytes()[:256].decode("utf-8", "replace").strip("\0 \t\r\n")
    except OSError:
        return ""
