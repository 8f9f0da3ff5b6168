"""How often each source is asked, and how long an answer may take."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Pace:
    """All in seconds.

    Attributes:
        aws: between two looks; what AWS itself advises, of a notice of 120.
        azure: between two looks; Azure advises 1, and gives 30 at the least.
        gcp: between two long polls. A change in between is not missed: the next poll names the last etag.
        gcp_hold: how long a long poll may be held; also how long a connection that died silently goes unseen.
        file: between two looks at a file.
        disk: between two looks at the free space.
        timeout: for an answer of a metadata service.
        azure_first: for the first answer of Azure's, which may take two minutes to set the events up.
        retry: after the first failure; then twice as long each time, with jitter …
        retry_most: … up to this.
        slow: after three failures where nothing has ever answered.
        lead: before its deadline from which on a final notice is told as final, not as advisory.
    """

    aws: float = 5.0
    azure: float = 2.0
    gcp: float = 1.0
    gcp_hold: float = 60.0
    file: float = 0.5
    disk: float = 10.0
    timeout: float = 2.0
    azure_first: float = 150.0
    retry: float = 1.0
    retry_most: float = 10.0
    slow: float = 60.0
    lead: float = 900.0
