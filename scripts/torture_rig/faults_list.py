"""The faults of `scripts/torture faults`: how each is done, what caused it in truth, and what is right to do about it.

Causes are those of the journal, one for each attempt; where issue and design leave two names open they stand beside
each other ("signal|interrupted"), the true one first. What is right here follows from what was asked for, never from
what the code does.
"""

from __future__ import annotations

from dataclasses import dataclass

# Numbers are drawn from the ranges: steps of 240, epochs of 6, batches of 15, items of 40 an epoch.
STEP, TEST, EPOCH_END, BEFORE, DATA = "step:20-200", "test:1-4:5-12", "epoch_end:1-4", "before", "data:45-200"
INSIDE = (STEP, STEP, TEST, EPOCH_END)
ANYWHERE = (*INSIDE, BEFORE)
AUTO, FIXED = ("--stall", "auto:4s"), ("--stall", "4s")
LIMIT = 4.0  # seconds: of both
DRAINED, GAVE_UP, INTERRUPTED = 75, 125, 130


@dataclass(frozen=True)
class Fault:
    """One way to go wrong.

    Attributes:
        causes: of all attempts, in order.
        act: what the script does, see faults_acts.py.
        places: where, one of them chosen for each run, with numbers or ranges of them.
        times: how often the script does it, 0: whenever it comes there.
        outside: function in faults_outside.py that does the rest, once the script has come to the place.
        before: one that prepares the run's folder.
        lives: exit code of each ksupervise, one after another; None for one that is killed.
        state: of the run in the end. A completed one must have the weights of the undisturbed script.
        again: what the second call has more on its command line.
        words: regular expression for the detail of every attempt but those that completed.
        last_words: the same for the last one that did not complete.
        stacks: what the stacks file that the detail names must hold; "" if there need be none.
        console: regular expression for what was said.
        last_line: regular expression for the very last line of it.
        lost: "stage" (what was trained since the last one), "commit" (the memory went too), "none" (there was time to
            save; who leaves in a validation leaves with the last stage), "any".
        data: see faults_job.py. `script`: text of another script.
        options: more of ksupervise's, one choice of them for each run.
        seconds: that what is slow takes, and that is no stall.
        pace: seconds that a step takes.
        same: its weights are those of the undisturbed script.
        warm: the script may run in the fork of a warm interpreter.
        detects: the time from the fault to the attempt's end says something.
        nvrx: its name in NVIDIA's list.
        needs: "root", "cgroup", "fuse".
        only: it runs when it is named, and why not else.
    """

    name: str
    causes: tuple[str, ...]
    act: str = "mark"
    places: tuple[str, ...] = INSIDE
    times: int = 1
    outside: str = ""
    before: str = ""
    lives: tuple[int | None, ...] = (0,)
    state: str = "completed"
    again: tuple[str, ...] = ()
    words: str = ""
    last_words: str = ""
    stacks: str = ""
    console: str = ""
    last_line: str = ""
    lost: str = "stage"
    data: str = "numpy"
    script: str = ""
    arguments: tuple[str, ...] = ()
    options: tuple[tuple[str, ...], ...] = ((),)
    seconds: float = 0.0
    pace: float = 0.01
    same: bool = True
    warm: bool = True
    detects: bool = True
    nvrx: str = ""
    needs: str = ""
    only: str = ""

    @property
    def true(self) -> tuple[str, ...]:
        """The true cause of each attempt."""
        return tuple(cause.partition("|")[0] for cause in self.causes)


def _user_error(name: str, last_line: str, **rest: object) -> Fault:
    code = rest.pop("code", 1)
    return Fault(name, ("user_error",), lives=(code,), state="failed", last_line=last_line, act="", **rest)  # type: ignore[arg-type]


def _twice(name: str, cause: str, act: str, **rest: object) -> Fault:
    """It happens each time: stopped after the second."""
    stopped = {"times": 0, "lives": (GAVE_UP,), "state": "gave_up"}
    return Fault(name, (cause, cause), act, **{**stopped, **rest})  # type: ignore[arg-type]


def _once(name: str, cause: str, act: str = "mark", **rest: object) -> Fault:
    """It happens once: relaunched, and completed."""
    return Fault(name, (cause, "completed"), act, **rest)  # type: ignore[arg-type]


def _stall(name: str, act: str = "mark", **rest: object) -> Fault:
    usual = {"options": (AUTO, FIXED), "places": (STEP, TEST), "warm": False, "words": "no sign of life"}
    return Fault(name, ("stalled", "completed"), act, **{**usual, **rest})  # type: ignore[arg-type]


def _no_stall(name: str, act: str = "mark", **rest: object) -> Fault:
    usual = {"options": (AUTO, FIXED), "seconds": 3 * LIMIT, "warm": False, "detects": False}
    return Fault(name, ("completed",), act, **{**usual, **rest})  # type: ignore[arg-type]


def _leave(name: str, cause: str, outside: str, **rest: object) -> Fault:
    """The parent is asked to go: saved, exit 75, and the same command goes on."""
    usual = {"lives": (DRAINED, 0), "lost": "none", "places": ANYWHERE}
    return Fault(name, (cause, "completed"), outside=outside, **{**usual, **rest})  # type: ignore[arg-type]


def _by_user(name: str, outside: str) -> Fault:
    return _leave(name, "interrupted", outside, lives=(INTERRUPTED, 0), again=("--retry",))


CRASHES = {
    "os_abort": ("abort", "OS_ABORT"),
    "segfault": ("segfault", "SEGFAULT"),
    "sigbus": ("sigbus", ""),
    "sigfpe": ("sigfpe", ""),
    "sigill": ("sigill", ""),
}

FAULTS: tuple[Fault, ...] = (
    Fault("control", ("completed",), places=(STEP,), lost="none", detects=False),
    # Errors before the first step: nothing is tried again, and the script has the last word.
    _user_error("import_error", "^ModuleNotFoundError: .*no_such_module", script="import no_such_module\n", warm=False),
    _user_error("syntax_error", "^SyntaxError", script="import os\ndef f(:\n    pass\n", warm=False),
    _user_error("argparse_error", "error: unrecognized", code=2, arguments=("--nonsense",), warm=False),
    _user_error("compile_error", "^ValueError: .*no_such_loss", data="bad_compile"),
    _user_error("shape_error", r"^\w*Error|^\s", data="bad_shape"),
    _once("connection_error", "exception", "connection", places=(BEFORE,), words="ConnectionError: torture"),
    Fault(
        "not_rerunnable",
        ("signal", "not_rerunnable"),
        "mkdir",
        outside="kill_child",
        lives=(GAVE_UP,),
        state="gave_up",
        last_words=r"FileExistsError.*logs.*faults_acts\.py:\d+",
        console=r"FileExistsError",
    ),
    # Exceptions in training
    _once("exception_once", "exception", "raise", words="Torture: raised", nvrx="WORKLOAD_EXC"),
    _twice("exception_twice", "exception", "raise", words="Torture: raised.*faults_acts", console="Torture: raised"),
    _once(
        "exception_in_map", "exception", "remove_word", data="map", places=(STEP,), words="NotFoundError|No such file"
    ),
    _once(
        "exception_in_py_function",
        "exception",
        "raise",
        data="py_function",
        places=(DATA,),
        words="Torture|UnknownError",  # TensorFlow wraps it
        console="raised on purpose",
    ),
    _once("exception_in_worker", "exception", "raise", data="pydataset", places=(DATA,), words="Torture: raised"),
    _once("async_exception", "exception", "async_exc", words="Torture", nvrx="ASYNC_EXC"),
    _once("signal_exception", "exception", "signal_exc", words="Torture: raised by", nvrx="SIGNAL_EXC"),
    _once("exit_3", "exited", "exit_3", words="exit code 3"),
    _once("os_exit_5", "exited", "os_exit", words="exit code 5"),
    Fault("exit_0_in_fit", ("interrupted",), "exit_0", state="interrupted", words="inside a fit", lost="any"),
    # Native crashes: the stacks name the function
    *(
        _once(name, "native_crash", act, places=ANYWHERE, words="stacks: /.*stacks", stacks="crash_here", nvrx=nvrx)
        for name, (act, nvrx) in CRASHES.items()
    ),
    # Signals to the child
    _once("sigkill", "signal", outside="kill_child", places=ANYWHERE, words="SIGKILL", nvrx="SIGKILL"),
    _once("sigterm", "preempted", outside="term_child", places=ANYWHERE, words="SIGTERM", lost="none", nvrx="SIGTERM"),
    _once("sigint", "signal|interrupted", outside="interrupt_child", places=ANYWHERE, words="SIGINT", nvrx="SIGINT"),
    # Memory
    _once("memory_error", "out_of_memory", "memory_error", words="MemoryError"),
    _twice("memory_error_twice", "out_of_memory", "memory_error", last_words="What helps"),
    _once("address_space", "out_of_memory", "rlimit", words="Unable to allocate|MemoryError"),
    _once("device_memory", "out_of_memory", "resource_exhausted", words="on the device"),
    _once("bad_alloc", "out_of_memory", "bad_alloc", words="allocation failed"),
    _twice(
        "oom_kill",
        "out_of_memory",
        "devour",
        outside="let_go",
        before="cgroup",
        needs="cgroup",
        warm=False,
        words="cgroup .*torture",
        last_words="What helps",
    ),
    _once(
        "oom_of_all",
        "out_of_memory",
        "devour",
        outside="oom_of_all",
        before="cgroup",
        needs="cgroup",
        lives=(None, 0),
        warm=False,
        words="out of memory",
        lost="commit",
        detects=False,
    ),
    # Numbers, disks
    Fault("nan_terminate", ("nan_stop",), "nan", data="terminate", words="TerminateOnNaN", same=False, lost="any"),
    _twice("nan_numerics", "nan", "nan", data="numerics", places=(STEP,), last_words="What helps"),
    _once("disk_full", "disk_full", "enospc", before="small_disk", needs="root", words="No space left"),
    # Stalls
    _stall("stopped", outside="stop_child", words="stopped by a signal", nvrx="SIGSTOP"),
    _stall("deadlock", "deadlock", stacks="hang_here"),
    _stall("lock_gil", "lock_gil", stacks="hang_here", nvrx="LOCK_GIL"),
    _stall("stuck_loader", "wait", data="pydataset", places=(DATA,), stacks="hang_here"),
    _stall("stuck_callback", "wait", stacks="hang_here"),
    _stall("stuck_epoch_end", "wait", places=(EPOCH_END,), options=(AUTO,), stacks="hang_here"),
    _stall("dead_nfs", "nfs", outside="nfs_dies", before="nfs", needs="fuse"),
    Fault(
        "d_state",
        ("unkillable",),
        "nfs",
        outside="nfs_keeps",
        before="nfs",
        needs="fuse",
        lives=(GAVE_UP,),
        state="gave_up",
        places=(STEP,),
        options=(AUTO, FIXED),
        warm=False,
        words="survives SIGKILL",
        last_words="D state",
    ),
    _stall(
        "endless_validation",
        act="slow_validation",
        data="endless",
        options=(AUTO,),
        words="a validation has gone on",
        only="no limit for a whole validation is shorter than ten minutes (patience.py)",
    ),
    # No stalls
    _no_stall("slow_compile", "sleep", places=("trace:0",)),
    _no_stall("slow_first_batch", "sleep", data="pydataset", places=("data:1",)),
    _no_stall("long_validation", "slow_validation", places=(TEST,)),
    _no_stall("debugger", outside="trace", places=(STEP,), console="debugger is attached"),
    _no_stall("pdb", "debug", outside="answer", places=(STEP,), console="a debugger holds it"),
    _no_stall("suspended", outside="suspend", places=(STEP, TEST)),
    # `--stall 4s` means what it says from the first step on: there it would be a stall.
    _no_stall("slow_callback", "compute", data="untuned", places=(EPOCH_END,), options=(AUTO,)),
    # Who is above
    _once("parent_killed", "parent_lost", outside="kill_parent", lives=(None, 0), warm=False, detects=False),
    _once("both_killed", "parent_lost", outside="kill_both", lives=(None, 0), lost="commit", detects=False),
    _once(
        "machine_rebooted",
        "lost",
        outside="reboot",
        lives=(None, 0),
        words="started again",
        lost="commit",
        detects=False,
    ),
    _once(
        "machine_lost",
        "lost",
        outside="move_away",
        lives=(None, 0),
        words="machine .* was lost",
        lost="commit",
        detects=False,
    ),
    _leave("parent_sigterm", "preempted", "term_parent", words="SIGTERM"),
    _leave("parent_sigusr1", "preempted", "usr1_parent", words="SIGUSR1"),
    _leave("parent_sigusr2", "preempted", "usr2_parent", words="SIGUSR"),
    _leave("notice_file", "preempted", "notice", options=(("--notice", "file:notice"),), words="notice"),
    _leave("deadline", "deadline", "", before="deadline", pace=0.03, words="deadline", detects=False),
    _by_user("ctrl_c", "ctrl_c"),
    _by_user("stop_command", "stop_command"),
    # Others
    _once("double_fork", "signal", "daemon", outside="kill_child", words="SIGKILL", warm=False),
    Fault("double_fork_completed", ("completed",), "daemon", lost="none", warm=False, detects=False),
    Fault(
        "poisoned_checkpoint",
        ("signal", "signal", "signal", "completed"),
        "poison",
        places=("step:90-150",),
        outside="kill_once_staged",
        pace=0.03,
        lost="any",
    ),
)

# What cannot be produced here.
UNTESTED = {
    "gpu_error (GPU_ERROR)": "needs a GPU",
    "gpu_sleep (GPU_SLEEP)": "needs a GPU",
    "suspended laptop": "a machine of its own; parent and child stopped together stand for it",
    "oom_kill with cgroup v2": "the memory controller is version 1 here",
    "nfs": "a FUSE file system that does not answer stands for it",
}
