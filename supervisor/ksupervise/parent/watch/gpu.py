"""What the graphics cards do, as nvidia-smi tells it: who holds memory there, how much is held, how busy they are.

A dead process can hold its memory for seconds: the driver takes it back when the last thread has left the kernel.
An attempt that starts meanwhile fails for want of memory. So the next start waits, for a bounded time, until it is
given back.

nvidia-smi may hang for ever (a card that fell off the bus leaves it in uninterruptible sleep), so each call of it is
bounded and left behind. Where it is not installed, or does not answer, everything here is unknown: None.

Tested with a program of that name that answers as the real one does; never run on a real card.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import NamedTuple

from ksupervise.parent.room import size_text

_MIB = 1024 * 1024  # nvidia-smi's unit
SLACK = 512 * _MIB  # bytes above the baseline that count as given back: contexts and displays of others come and go
_STILL = 16 * _MIB  # bytes; two readings that differ by less: it has stopped falling
_QUERY = 5.0  # seconds for one answer; 0.02 to 2 are usual
_FIRST, _LONGEST = 0.25, 2.0  # seconds between two looks
# The status is in the output, since anybody of this process may collect our children before we do.
_ASK = ("/bin/sh", "-c", 'nvidia-smi "$@"; echo "status $?"', "sh")


class _Card(NamedTuple):
    """One line of nvidia-smi about one card. What it does not tell is None."""

    number: str
    uuid: str
    name: str
    used: int | None  # bytes
    busy: float | None  # 0 to 1


def available() -> bool:
    """nvidia-smi is installed. That a card is there too shows when it is asked."""
    return shutil.which("nvidia-smi") is not None


def processes(timeout: float = _QUERY) -> dict[int, int] | None:
    """Bytes of GPU memory by process id, over all cards; None if unknown. Takes at most `timeout` seconds, plus one.

    A process whose use is not told ("[N/A]") is there with 0 bytes. In a container there are mostly none, or such
    with the ids that they have outside.
    """
    lines = _ask("--query-compute-apps=pid,used_memory", timeout)
    if lines is None:
        return None
    found: dict[int, int] = {}
    for pid, used in (line for line in lines if len(line) == 2):
        if pid.isdigit():
            found[int(pid)] = found.get(int(pid), 0) + _MIB * int(_number(used) or 0)
    return found


def used(timeout: float = _QUERY, environment: Mapping[str, str] | None = None) -> int | None:
    """Bytes in use on the cards that a child with this environment sees, whoever uses them; None if unknown.

    Read before the first start it is the `baseline` of `await_release`.
    """
    cards = _cards(timeout)
    known = [card.used for card in _visible(cards or [], environment or {}) if card.used is not None]
    return sum(known) if known else None


def utilization(timeout: float = _QUERY, environment: Mapping[str, str] | None = None) -> float | None:
    """How busy the busiest card is that a child with this environment sees, 0 to 1; None if unknown.

    It is the share of the last second or less in which any kernel ran, of whichever process.
    """
    cards = _cards(timeout)
    known = [card.busy for card in _visible(cards or [], environment or {}) if card.busy is not None]
    return max(known) if known else None


def await_release(
    pids: Collection[int],
    seconds: float,
    *,
    baseline: int | None = None,
    environment: Mapping[str, str] | None = None,
    say: Callable[[str], None] = lambda text: None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> float | None:
    """Wait until the dead `pids` hold no GPU memory. Returns the seconds that it took, None where there is no GPU.

    It is over when none of them is listed, and either the memory in use is back at `baseline` bytes (within `SLACK`),
    or others are listed (so ours would be too), or no baseline is known, and it has stopped falling. After `seconds`
    (and what a last answer takes) it is over anyway, and `say` gets what is still held.
    """
    if not available():
        return None
    began = clock()
    pause, before, first = _FIRST, None, True
    while True:
        timeout = max(0.1, min(_QUERY, began + seconds - clock()))
        holders = processes(timeout)
        held = {pid: size for pid, size in (holders or {}).items() if pid in pids}
        now = None if held else used(timeout, environment)
        if first and holders is None and now is None:
            return None  # no card, or no driver
        if not held and _given_back(holders, now, before, baseline):
            return clock() - began
        left = began + seconds - clock()
        if left <= 0:
            break
        before, first = now, False
        sleep(min(pause, left))
        pause = min(_LONGEST, 2 * pause)
    say(_still_held(held, now, baseline))
    return clock() - began


def _given_back(holders: dict[int, int] | None, now: int | None, before: int | None, baseline: int | None) -> bool:
    """Of what was asked while none of the dead was listed. `before` is what was in use at the look before."""
    if now is None:
        return holders is not None  # this card does not tell how much is in use
    if baseline is not None and now <= baseline + SLACK:
        return True
    if baseline is not None and not holders:
        return False  # nobody is listed, and yet it is in use: a container, in which nobody ever is
    return before is not None and now > before - _STILL


def _still_held(held: dict[int, int], now: int | None, baseline: int | None) -> str:
    if held:
        whose = ", ".join(f"process {pid} ({size_text(size)})" for pid, size in sorted(held.items()))
        return f"GPU memory is still held by {whose}, which is dead or dying; the next attempt may find too little"
    if now is None:
        return "nvidia-smi no longer answers; whether the GPU memory was given back is unknown"
    more = "" if baseline is None else f", {size_text(now - baseline)} more than at the start"
    return f"{size_text(now)} of GPU memory are in use{more}; by whom cannot be seen from here"


def _cards(timeout: float) -> list[_Card] | None:
    lines = _ask("--query-gpu=index,uuid,name,memory.used,utilization.gpu", timeout)
    return None if lines is None else [card for line in lines for card in _card(line)]


def _card(line: list[str]) -> Iterator[_Card]:
    if len(line) != 5 or not line[0].isdigit():
        return  # a warning
    number, uuid, name, memory, busy = line
    in_use, percent = _number(memory), _number(busy)
    yield _Card(
        number, uuid, name, None if in_use is None else int(in_use) * _MIB, None if percent is None else percent / 100
    )


def _visible(cards: list[_Card], environment: Mapping[str, str]) -> list[_Card]:
    """Those of CUDA_VISIBLE_DEVICES, as CUDA reads it: the first that does not exist ends the list.

    CUDA may number cards of different kinds otherwise than nvidia-smi does (the fastest is 0): then all count.
    """
    wanted = environment.get("CUDA_VISIBLE_DEVICES")
    if wanted is None:
        return cards
    same_numbers = len({card.name for card in cards}) == 1 or environment.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID"
    found: list[_Card] = []
    for name in map(str.strip, wanted.split(",")):
        if name.startswith("MIG-") or (name.isdigit() and not same_numbers):
            return cards  # slices of a card are not in its listing
        named = [card for card in cards if name and (card.number == name or card.uuid.startswith(name))]
        if len(named) != 1:
            break
        found += named
    return found


def _number(text: str) -> float | None:
    """None for `[N/A]`, `[Not Supported]`, `ERR!` and what else it says instead."""
    try:
        return float(text.split(maxsplit=1)[0])
    except (ValueError, IndexError):
        return None


def _ask(query: str, timeout: float) -> list[list[str]] | None:
    """The fields of each line that nvidia-smi answers; None if it fails, is not there, or takes too long."""
    try:
        process = subprocess.Popen(
            [*_ASK, query, "--format=csv,noheader,nounits"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # a Ctrl-C is not for it, and it is killed with its shell
        )
    except OSError:
        return None
    try:
        out = process.communicate(timeout=timeout)[0].decode(errors="replace").splitlines()
    except subprocess.TimeoutExpired:
        _leave(process)
        return None
    if not out or out.pop() != "status 0":
        return None
    return [[field.strip() for field in line.split(",")] for line in out]


def _leave(process: subprocess.Popen[bytes]) -> None:
    """Kill it. One that does not die is left behind: it is collected when it does, or with our own end."""
    with contextlib.suppress(OSError):
        os.killpg(process.pid, signal.SIGKILL)
    if process.stdout is not None:
        process.stdout.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(1.0)
