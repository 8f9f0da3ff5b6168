"""One attempt from the parent's side: environment, child, output, control page, dialogue."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ksupervise import wire
from ksupervise.core.events import Evidence
from ksupervise.parent.console import LogFile
from ksupervise.parent.process import Child
from ksupervise.parent.stage import live_page
from ksupervise.parent.trainer import Dialogue, Facts
from ksupervise.store import RunLayout

LIVE = "live"  # the control page's name in the attempt's directory
_HIGH_FD = 200  # inherited descriptors go where no script's own numbers are


@dataclass
class Attempt:
    """Everything that belongs to one life of the child."""

    number: int
    child: Child
    control: wire.Control
    live_fd: int
    dialogue: Dialogue
    log: LogFile
    log_path: str
    began: float
    open_outputs: set[int] = field(default_factory=set)
    survivors: tuple[int, ...] = ()
    ended: bool = False  # noticed by SIGCHLD, where there is no pidfd

    @property
    def facts(self) -> Facts:
        """What the child told."""
        return self.dialogue.facts

    def evidence(self, checkpoint: tuple[int, int] | None) -> Evidence:
        """What is known of its end. `checkpoint`: (seq, step) of the newest valid one."""
        exception, orderly = self._last_words()
        return Evidence(
            exit_code=self.child.exit_code if self.child.signal is None else None,
            signal=self.child.signal,
            orderly=orderly,
            exception=exception,
            hooked=self.facts.hooked,
            keras=bool(self.facts.keras),
            fit_open=self.facts.fit_open,
            stepped=self.control.integer("executed") > 0,
            step=self.control.integer("step"),
            checkpoint_step=checkpoint[1] if checkpoint else None,
            checkpoint_seq=checkpoint[0] if checkpoint else 0,
            survivors=self.survivors,
        )

    def _last_words(self) -> tuple[str, bool]:
        """The exception that ended the script, and whether its interpreter ended in good order.

        The trainer's word counts; without one the child's own; behind a wrapper any interpreter's that failed.
        """
        exits = self.facts.exits
        for exception, was_trainer in exits.values():
            if was_trainer:
                return exception, True
        if self.child.pid in exits:
            return exits[self.child.pid][0], True
        return next((exception for exception, _ in exits.values() if exception), ""), False

    def close(self) -> None:
        """Give back every descriptor."""
        self.child.close()
        self.log.close()
        self.control.close()
        os.close(self.live_fd)


def launch(
    number: int,
    command: Sequence[str],
    environment: Mapping[str, str],
    layout: RunLayout,
    lock_fd: int,
    open_dialogue: Callable[[int, int, Sequence[int]], Dialogue],
    began: float,
    parameters: Mapping[str, float],
) -> Attempt:
    """Start attempt `number`. Raises OSError when the command cannot be executed."""
    folder = Path(layout.make_attempt(number))
    control = live_page(folder / LIVE, create=True)
    for name, value in parameters.items():
        control[name] = value
    live_fd = os.open(folder / LIVE, os.O_RDWR | os.O_CLOEXEC)
    inherited = fcntl.fcntl(lock_fd, fcntl.F_DUPFD_CLOEXEC, _HIGH_FD)
    log_path = layout.output_log(number)
    try:
        child = Child(
            command,
            {**environment, wire.ENV_ATTEMPT: str(number), wire.ENV_LOCK_FD: str(inherited)},
            inherit=[inherited],
        )
    except OSError:
        control.close()
        os.close(live_fd)
        raise
    finally:
        os.close(inherited)
    dialogue = open_dialogue(number, live_fd, child.outputs)
    return Attempt(
        number,
        child,
        control,
        live_fd,
        dialogue,
        LogFile(Path(log_path)),
        log_path,
        began,
        set(child.outputs),
    )


def child_environment(
    environ: Mapping[str, str], *, name: str, run_dir: str, boot: str, address: str, seed: int | None
) -> dict[str, str]:
    """The script's environment with what our hook needs to find its way."""
    outer = environ.get(wire.ENV_BOOT)
    given = environ.get("PYTHONPATH", "")
    # An empty part of a path that is not empty means the working directory.
    path = [part for part in given.split(os.pathsep) if part != outer] if given else []
    ours = {
        wire.ENV_RUN: name,
        wire.ENV_RUN_DIR: run_dir,
        wire.ENV_BOOT: boot,
        wire.ENV_ADDRESS: address,
        "PYTHONPATH": os.pathsep.join([boot, *path]),
    }
    if seed is not None:
        ours[wire.ENV_SEED] = str(seed)
    # Unbuffered: what the script printed before it was killed is seen. The user's own choice stands.
    return {"PYTHONUNBUFFERED": "1", **environ, **ours}
