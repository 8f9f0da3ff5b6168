"""What survived a rehearsal: in words, as JSON, as an exit code."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

from ksupervise.parent.rehearse import Rehearsal
from ksupervise.report.units import brief

EXIT_NOT_SURVIVED = 1

_FULL = "disk-full"


def exit_code(found: Rehearsal) -> int:
    """0: it survived, 1: it did not."""
    return EXIT_NOT_SURVIVED if found.failure else 0


def as_json(found: Rehearsal) -> dict[str, Any]:
    """All fields of `Rehearsal`; the times under `after`, in seconds from the deed; and what it comes to."""
    facts = asdict(found)
    names = ("noticed", "relaunched", "training", "back")
    after = {name: facts.pop(name) for name in names}
    return {**facts, "after": after, "survived": not found.failure, "summary": summary(found)}


def as_text(found: Rehearsal) -> str:
    """The same for people: a few aligned lines, the closing one what it comes to."""
    lines = [
        f"rehearsed  {found.what} on run {found.run}{' (made for it)' if found.new else ''}",
        *_what_was_done(found),
    ]
    lines += _under_full_disk(found) if found.what == _FULL else _recovery(found)
    lines.append(f"held       {_held(found)}")
    lines += [f"note       {note}" for note in found.notes]
    if found.kept:
        lines.append(f"kept       {found.kept}")
    if found.output:
        lines += ["the script's last output:", *(f"    {line}" for line in found.output.splitlines())]
    return "\n".join([*lines, summary(found)])


def summary(found: Rehearsal) -> str:
    """The closing line."""
    if found.failure:
        return f"NOT survived: {found.failure}. What to do: {found.advice}"
    if found.what == _FULL:
        return (
            f"survived: training went on for {_steps(found.steps_meanwhile)} meanwhile, nothing was lost; a checkpoint "
            f"was made again after {_span(found.back)}"
        )
    if not found.lost_steps:
        return f"survived: no work was lost; back after {_span(found.back)}"
    was = "was" if found.lost_steps == 1 else "were"
    return f"survived: {_work(found)} {was} trained again; back after {_span(found.back)}"


def _what_was_done(found: Rehearsal) -> list[str]:
    clock = time.strftime("%H:%M:%S", time.localtime(found.at))
    return [f"done       {found.deed}; at {clock}, in attempt {found.attempt}, at step {found.step}"]


def _recovery(found: Rehearsal) -> list[str]:
    lines = []
    if found.cause:
        noticed = "" if found.noticed is None else f"after {_span(found.noticed)}; "
        lines.append(f"noticed    {noticed}named {found.cause}: {found.detail}")
    moments = [("relaunched", found.relaunched), ("trained again", found.training), ("past where it was", found.back)]
    known = [f"{what} after {_span(seconds)}" for what, seconds in moments if seconds is not None]
    if known:
        lines.append(f"then       {', '.join(known)}")
    if found.training is not None:
        lines.append(f"went on    {_went_on(found)}")
    return lines


def _went_on(found: Rehearsal) -> str:
    if found.resumed_from is None:
        return f"from nothing, having been at step {found.step}"
    return f"from step {found.resumed_from} of {found.step}; lost: {_work(found)}; guarantee: {found.guarantee}"


def _under_full_disk(found: Rehearsal) -> list[str]:
    lines = []
    if found.cause:
        lines.append(f"noticed    after {_span(found.noticed)} ({found.cause}): {found.detail}")
    refused = f"{found.refused} save{'' if found.refused == 1 else 's'} refused"
    return [*lines, f"then       {refused}, {_steps(found.steps_meanwhile)} trained under it"]


def _held(found: Rehearsal) -> str:
    """What there was to go back to, and how much later it may be at worst."""
    memory = f"step {found.memory_step} in memory" if found.memory_step else "nothing in memory"
    memory += " (lost with the parent)" if found.what == "lost" else ""
    disk = f"step {found.disk_step} on disk" if found.disk_step else "nothing on disk"
    text = f"{memory}, {disk}"
    if found.stage_every and found.commit_every:
        text += (
            f"; at these intervals a death of the script costs {brief(found.stage_every)} of work at most, the loss of "
            f"the machine {brief(max(found.stage_every, found.commit_every))}"
        )
    return text


def _work(found: Rehearsal) -> str:
    seconds = "" if found.lost_seconds is None or not found.lost_steps else f" ({brief(found.lost_seconds)} of work)"
    return f"{_steps(found.lost_steps)}{seconds}"


def _steps(number: int) -> str:
    return f"{number} step{'' if number == 1 else 's'}"


def _span(seconds: float | None) -> str:
    return "?" if seconds is None else brief(seconds)
