"""What to copy to a replica next, and what may go from there. Pure: from what lies here and there to names.

One checkpoint *follows* another if whoever resumes from it needs the other no more: it is of a later attempt, or of
the same attempt and the same holder and has a higher seq. Of two holders that both believe to own an attempt (Drive
cannot exclude one) neither follows the other: neither's checkpoints are removed for the other's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ksupervise.replicas.place import Arrival
from ksupervise.store import Manifest

_NAME = re.compile(r"(\d{12,19})-a(\d{4,19})-h([0-9a-f]{6})")


@dataclass(frozen=True)
class Name:
    """What a checkpoint's directory is called, taken apart.

    Attributes:
        text: the directory's name.
        attempt: that trained it.
        seq: its number in the run.
        branch: a hash of who wrote it.
    """

    text: str
    attempt: int
    seq: int
    branch: str

    def follows(self, other: Name) -> bool:
        """Whoever has this one needs the other no more."""
        if self.attempt != other.attempt:
            return self.attempt > other.attempt
        return self.branch == other.branch and self.seq > other.seq


def parse_name(text: str) -> Name | None:
    """The parts of a checkpoint directory's name, None for what is not ours."""
    match = _NAME.fullmatch(text)
    return Name(text, int(match[2]), int(match[1]), match[3]) if match else None


@dataclass(frozen=True)
class Item:
    """A valid checkpoint, here or in a replica: what its manifest says, in brief.

    Attributes:
        name: of its directory, here and there.
        holder: who wrote it.
        kind: "batch", "epoch" or "final".
        fit: in which it stands.
        step: at which it stands.
        bytes: of all its files.
        created: wall clock, for people.
    """

    name: Name
    holder: str
    kind: str
    fit: int
    step: int
    bytes: int
    created: float

    @property
    def order(self) -> tuple[int, int, str]:
        """As `Manifest.order`: sorts from old to new."""
        return (self.name.attempt, self.name.seq, self.holder)

    @property
    def seq(self) -> int:
        """Its number in the run."""
        return self.name.seq


@dataclass(frozen=True)
class Copy:
    """A complete checkpoint in a replica. `arrival` is None where nobody has asked yet."""

    item: Item
    arrival: Arrival | None = None

    @property
    def uploaded(self) -> bool:
        """It is known to have left this machine."""
        return self.arrival is Arrival.UPLOADED


def item_of(name: Name, manifest: Manifest) -> Item:
    """The checkpoint in the directory of that name. Raises ValueError if the manifest is another one's."""
    if (manifest.attempt, manifest.seq) != (name.attempt, name.seq):
        raise ValueError(f"its manifest is that of attempt {manifest.attempt}, number {manifest.seq}")
    at = manifest.position
    return Item(name, manifest.holder, at.kind, at.fit, at.step, manifest.size, manifest.created)


def to_upload(local: Iterable[Item], copies: Iterable[Copy]) -> Item | None:
    """What to copy next, None if all that matters is there.

    The newest first; then the newest final state of every completed fit, newest first.
    """
    there = [copy.item for copy in copies]
    names = {each.name.text for each in there}
    newest_first = sorted(local, key=_order, reverse=True)
    wanted = [*newest_first[:1], *_finals(newest_first)]
    for each in wanted:
        newer_final = each.kind == "final" and any(_replaces_final(other, each) for other in there)
        if each.name.text not in names and (each is newest_first[0] or not newer_final):
            return each
    return None


def is_superseded(uploading: Item, local: Iterable[Item], copies: Iterable[Copy], abandoned: int, finish: int) -> bool:
    """Whether an upload in progress is to be given up for a newer checkpoint.

    Args:
        uploading: what is being copied.
        local: the valid checkpoints here, by now.
        copies: the complete ones there.
        abandoned: uploads given up in a row before this one.
        finish: one in so many is always finished, at least 1.
    """
    if abandoned + 1 >= finish:
        return False
    following = to_upload(local, copies)
    return following is not None and following.order > uploading.order


def to_remove(copies: Sequence[Copy], leftovers: Iterable[Name], keep: int) -> list[Name]:
    """What may go from the replica, oldest first.

    A complete checkpoint goes if `keep` complete ones follow it and one of them is known to be uploaded; a final state
    only if a later one of its fit is uploaded, too. So the last valid one never goes, nor the last that is known to
    have left this machine. What has no valid manifest goes when a complete one follows it: nobody finishes it any more.

    Args:
        copies: the complete ones.
        leftovers: the others.
        keep: so many of the newest complete ones stay, at least 1.

    Raises:
        ValueError: `keep` is less than 1.
    """
    if keep < 1:
        raise ValueError("at least one checkpoint must be kept in a replica")
    removable = [copy.item.name for copy in copies if _may_go(copy, copies, keep)]
    removable += [each for each in leftovers if any(copy.item.name.follows(each) for copy in copies)]
    return sorted(removable, key=lambda each: (each.attempt, each.seq, each.branch))


def newest_finals(items: Iterable[Item]) -> list[Item]:
    """The newest final state of every completed fit, newest first."""
    return _finals(sorted(items, key=_order, reverse=True))


def _may_go(copy: Copy, copies: Sequence[Copy], keep: int) -> bool:
    following = [other for other in copies if other.item.name.follows(copy.item.name)]
    if len(following) < keep or not any(other.uploaded for other in following):
        return False
    return copy.item.kind != "final" or any(o.uploaded and _replaces_final(o.item, copy.item) for o in following)


def _replaces_final(item: Item, final: Item) -> bool:
    return item.kind == "final" and item.fit == final.fit and item.name.follows(final.name)


def _finals(newest_first: Iterable[Item]) -> list[Item]:
    first: dict[int, Item] = {}
    for each in newest_first:
        if each.kind == "final":
            first.setdefault(each.fit, each)
    return list(first.values())


def _order(item: Item) -> tuple[int, int, str]:
    return item.order
