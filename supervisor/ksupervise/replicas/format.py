"""Where everything lies in a replica.

```
NAME/g0001                                        id of the run whose generation that is: where only one can create it
NAME/g0001-1f2e3d4c/run.json                      the run's record; a generation begins with it (`--fresh`: another)
NAME/g0001-1f2e3d4c/checkpoints/DIR/FILE          as in the local store
NAME/g0001-1f2e3d4c/checkpoints/DIR/journal.jsonl what had happened until then
NAME/g0001-1f2e3d4c/checkpoints/DIR/MANIFEST.json written last: with it the checkpoint counts
NAME/g0001-1f2e3d4c/history/000007-HOLDER.0001.jsonl
                                                  the journal of an owner that ended in good order; the last one stays
NAME/g0001-1f2e3d4c/owner/000007.json             who owned the run from attempt 7 on
NAME/g0001-1f2e3d4c/owner/000007-HOLDER.00000012  that owner's 12th sign of life; the ones before are removed
```

The generation's number orders it, the part behind it is the begin of the run's id. DIR is the checkpoint's directory
in the local store, which has attempt and holder in it: two owners never write under one name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

RUN = "run.json"
MANIFEST = "MANIFEST.json"
JOURNAL = "journal.jsonl"
_GENERATION = re.compile(r"g(\d{4,9})-([0-9a-f]{8})")


@dataclass(frozen=True, order=True)
class Generation:
    """One life of a run's name. Ordered by `number`, then `short`.

    Attributes:
        number: from 1.
        short: the first 8 letters of the run's id.
        run: the run's name.
    """

    number: int
    short: str
    run: str

    @property
    def prefix(self) -> str:
        """Of all its keys; ends in "/"."""
        return f"{self.run}/g{self.number:04d}-{self.short}/"

    @property
    def mark(self) -> str:
        """Key of the id of the run whose generation has this number; one run on places that exclude."""
        return f"{self.run}/g{self.number:04d}"

    @property
    def record(self) -> str:
        """Key of its run.json."""
        return self.prefix + RUN

    @property
    def checkpoints(self) -> str:
        """Prefix of its checkpoints; ends in "/"."""
        return f"{self.prefix}checkpoints/"

    @property
    def histories(self) -> str:
        """Prefix of what its owners had to say at their end; ends in "/"."""
        return f"{self.prefix}history/"

    @property
    def owners(self) -> str:
        """Prefix of its owners; ends in "/"."""
        return f"{self.prefix}owner/"


def generation_of(key: str) -> Generation | None:
    """The generation that a key belongs to, None for what is not ours."""
    parts = key.split("/")
    match = _GENERATION.fullmatch(parts[1]) if len(parts) > 2 else None
    return Generation(int(match[1]), match[2], parts[0]) if match else None
