"""argv → Settings → the command; the one place where an error becomes an exit code."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any, NoReturn

import click

from ksupervise import __version__
from ksupervise.errors import EXIT_INTERRUPTED, KsuperviseError, RunNotFound, UsageError

_KEEP = ("keep", "keep_best", "keep_every", "keep_bytes")
_LATER = ("watch", "export", "report", "unit")

_RUN_OPTIONS = [
    click.option("--name", metavar="NAME", help="The run's name (default: from the script and its arguments)."),
    click.option("--store", metavar="DIR", help="Where runs live (default ./.ksupervise)."),
    click.option(
        "--replica",
        metavar="DIR|URL",
        multiple=True,
        help="Copy checkpoints there, too (a folder, s3://, gs://, az://); repeatable.",
    ),
    click.option("--replica-keep", metavar="N", help="Newest checkpoints kept in each replica (default 2)."),
    click.option("--replica-rate", metavar="SIZE", help="Bytes a second a replica may be sent (20MB; default all)."),
    click.option("--every", metavar="DUR", help="A checkpoint at least this often (default 5m)."),
    click.option("--overhead", metavar="PCT", help="Share of time checkpoints may cost (default 1)."),
    click.option("--keep", metavar="N", help="Newest checkpoints kept (default 3)."),
    click.option("--keep-best", metavar="NAME", help="Also the one with the best NAME (val_loss, my_metric:max)."),
    click.option("--keep-every", metavar="K", help="Also the end of every K-th epoch."),
    click.option("--keep-bytes", metavar="SIZE", help="Beyond SIZE (20GB, 500MiB) optional ones go."),
    click.option("--max-failures", metavar="N", help="Stop after N failures without a newer checkpoint (default 3)."),
    click.option("--never-retry-exit", metavar="CODES", help="Exit codes that are final at once (3,64-78,SIGSEGV)."),
    click.option("--always-retry-exit", metavar="CODES", help="Exit codes that cost none of the failures allowed."),
    click.option("--grace", metavar="DUR", help="From being asked to stop to being killed (default 30s)."),
    click.option("--stall", metavar="auto|DUR|off", help="Kill and relaunch what hangs; auto learns when (default)."),
    click.option("--deadline", metavar="DUR|TIME", help="Save and leave, exit 75, before then (12h, 07:30)."),
    click.option(
        "--notice",
        metavar="auto|aws|gcp|azure|file:PATH|off",
        help="Save and leave when the cloud says that the machine goes, or PATH appears (default auto).",
    ),
    click.option("--fresh", is_flag=True, default=None, help="Archive what the run has and begin anew."),
    click.option("--retry", is_flag=True, default=None, help="Go on with a run that failed or was stopped."),
    click.option("--seed", metavar="N", help="Also call keras.utils.set_random_seed(N) in the script."),
    click.option("--standby", is_flag=True, default=None, help="Keep a warm interpreter for the next attempt."),
    click.option("--quiet", is_flag=True, default=None, help="Say only what needs attention."),
    click.option("--json-log", is_flag=True, default=None, help="Say it as JSON lines."),
]


def _run_options(function: Any) -> Any:
    for option in reversed(_RUN_OPTIONS):
        function = option(function)
    return function


class _Front(click.Group):
    """A group whose first word is a sub-command if it is known as one, else the command to supervise."""

    forced = False

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse our options; remember whether `--` ended them."""
        given = list(args)
        rest = super().parse_args(ctx, args)
        name = "_protected_args" if hasattr(ctx, "_protected_args") else "protected_args"  # click 8.1's; 9 has none
        words = [*getattr(ctx, name, ()), *ctx.args]
        position = len(given) - len(words) - 1
        self.forced = position >= 0 and given[position] == "--"
        return rest

    def invoke(self, ctx: click.Context) -> Any:
        """Run the sub-command; a reader of our output that has seen enough ends us as it ends any Unix tool."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            _die_of_sigpipe()

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """`status` is ours, `./train.py` and `-- status` are the user's."""
        if not self.forced and args[0] in self.commands:
            return args[0], self.commands[args[0]], args[1:]
        if not self.forced and args[0] in _LATER:
            raise UsageError(
                f"`ksupervise {args[0]}` is not in this version; to supervise a program of that name: "
                f"ksupervise -- {' '.join(args)}"
            )
        return "run", self.commands["run"], ["--", *args]


@click.group(
    cls=_Front,
    invoke_without_command=True,
    context_settings={"allow_interspersed_args": False, "help_option_names": ["-h", "--help"]},
    options_metavar="[RUN OPTIONS]",
    subcommand_metavar="[--] COMMAND [ARGS]...",
)
@click.version_option(__version__, prog_name="ksupervise", message="%(prog)s %(version)s")
@_run_options
@click.pass_context
def front(ctx: click.Context, /, **flags: Any) -> None:
    """Supervise COMMAND, an unmodified Keras training script, so that it survives being killed.

    \b
        ksupervise python train.py --epochs 100

    Run it again and it goes on where it was. A known sub-command as first word is that sub-command; `--`
    forces a command.

    \b
    Exit codes:
      0        done, or already done
      75       state saved: run me again
      125      retried and gave up: do not requeue
      126 127  cannot be run, not found
      130      stopped by the user
      otherwise the script's own
    """
    ctx.obj = flags
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help(), err=True)
        raise UsageError("no command to supervise was given")


@front.command(
    "run",
    context_settings={"allow_interspersed_args": False, "ignore_unknown_options": False},
    options_metavar="[RUN OPTIONS]",
)
@_run_options
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def run_command(ctx: click.Context, /, command: tuple[str, ...], **flags: Any) -> None:
    """Supervise COMMAND (the word may be left out)."""
    if not command:
        raise UsageError("no command to supervise was given")
    replicas = (*ctx.obj["replica"], *flags["replica"])  # repeatable on either side of `run`
    given = {**ctx.obj, **{name: value for name, value in flags.items() if value is not None}}
    given["replica"] = replicas or None  # click's empty tuple: it was not given
    from ksupervise.parent.supervise import supervise

    raise SystemExit(supervise(given, list(command)))


def _store_option(function: Any) -> Any:
    return click.option("--store", metavar="DIR", help="Where runs live (default ./.ksupervise).")(function)


def _directory(ctx: click.Context, name: str | None, store: str | None) -> Path:
    from ksupervise import settings
    from ksupervise.report.status import find

    chosen = settings.load({"store": store or ctx.obj.get("store")})
    try:
        return find(chosen.store.absolute(), name or ctx.obj.get("name") or chosen.name)
    except OSError as error:
        reason = error.strerror or str(error)
        raise RunNotFound(f"{chosen.store} cannot be read: {reason}. Is its disk mounted, and is it yours?") from None


@front.command()
@click.argument("run", required=False)
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@_store_option
@click.pass_context
def status(ctx: click.Context, run: str | None, store: str | None, as_json: bool) -> None:
    """Where a run stands (default: the latest one)."""
    from ksupervise.report import status as report

    standing = report.read(_directory(ctx, run, store))
    click.echo(json.dumps(report.as_json(standing)) if as_json else report.as_text(standing))


@front.command()
@click.argument("run", required=False)
@click.option("--attempt", type=click.IntRange(1), metavar="N", help="Of attempt N (default: the latest).")
@click.option("--events", is_flag=True, help="The journal of events instead.")
@_store_option
@click.pass_context
def logs(ctx: click.Context, run: str | None, store: str | None, attempt: int | None, events: bool) -> None:
    """What the script printed."""
    from ksupervise.report.logs import write_log

    write_log(_directory(ctx, run, store), attempt, events=events)


@front.command()
@click.argument("run", required=False)
@_store_option
@click.pass_context
def stop(ctx: click.Context, run: str | None, store: str | None) -> None:
    """Save, then stop a run for good.

    Its parent exits with 130; the same command goes on from a terminal, or with --retry.
    """
    from ksupervise.parent.stop import stop as stop_run

    click.echo(stop_run(_directory(ctx, run, store)))


@front.command()
@click.argument("run", required=False)
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@_store_option
@click.pass_context
def checkpoints(ctx: click.Context, run: str | None, store: str | None, as_json: bool) -> None:
    """List the checkpoints of a run, newest first, and why each is kept."""
    from ksupervise import settings
    from ksupervise.parent.room import retention_of
    from ksupervise.report import checkpoints as report

    usual = retention_of(settings.load({name: ctx.obj.get(name) for name in _KEEP}))
    entries = report.as_json(report.open_store(_directory(ctx, run, store)), usual)
    click.echo(json.dumps(entries) if as_json else report.as_text(entries))


@front.command()
@click.argument("run", required=False)
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@_store_option
@click.pass_context
def verify(ctx: click.Context, run: str | None, store: str | None, as_json: bool) -> None:
    """Check every byte of every checkpoint.

    Exit 1 if one is damaged. If nobody supervises the run, what is damaged is set aside.
    """
    from ksupervise.report import checkpoints as report

    opened = report.open_store(_directory(ctx, run, store))
    findings, note = report.set_aside_damaged(opened, report.verify(opened))
    shown = json.dumps(report.findings_as_json(findings)) if as_json else report.findings_as_text(findings)
    click.echo(shown)
    if note:
        _complain(note)
    if code := report.exit_code(findings):
        raise SystemExit(code)


@front.command(
    context_settings={"allow_interspersed_args": False, "ignore_unknown_options": False},
    options_metavar="[--store DIR] [--json]",
)
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@_store_option
@click.pass_context
def doctor(ctx: click.Context, command: tuple[str, ...], store: str | None, as_json: bool) -> None:
    """What this machine, interpreter, Keras and store allow.

    Tries it out, and runs nothing of COMMAND but its interpreter (default: the `python` on PATH). Exit 1 if something
    is in the way of a resumable run.
    """
    import shutil

    from ksupervise import settings
    from ksupervise.parent.doctor.examine import examine
    from ksupervise.report import doctor as report

    chosen = settings.load({**ctx.obj, "replica": None, "store": store or ctx.obj.get("store")})
    say = _complain if sys.stderr.isatty() else lambda text: None
    found = report.rows(examine(command or ("python",), chosen, say=say))
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 80
    click.echo(json.dumps(report.as_json(found)) if as_json else report.as_text(found, width))
    if code := report.exit_code(found):
        raise SystemExit(code)


class _Rehearse(click.Command):
    """What stands behind `--` is the user's command, whatever it looks like."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Take it away before the options are parsed."""
        if "--" in args:
            cut = args.index("--")
            ctx.meta["command"], args = args[cut + 1 :], args[:cut]
        return super().parse_args(ctx, args)


@front.command(cls=_Rehearse, options_metavar="[OPTIONS]", epilog="Exit codes: 0 survived, 1 not, 2 nothing was done.")
@click.argument("what", type=click.Choice(["preempt", "crash", "hang", "oom", "lost", "disk-full"]))
@click.argument("run", required=False, metavar="[RUN | -- COMMAND [ARGS]...]")
@click.option("--wait", metavar="DUR", default="5m", help="For each next thing at most (default 5m).")
@click.option("--yes", is_flag=True, help="preempt, lost: somebody calls the run again when its parent is gone.")
@click.option("--keep", is_flag=True, help="Leave the run that was made for it.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@_store_option
@click.pass_context
def rehearse(
    ctx: click.Context, what: str, run: str | None, wait: str, yes: bool, keep: bool, as_json: bool, store: str | None
) -> None:
    """Practise a disaster on your own script, and say what survived.

    On a run that is going on, or on a new one of COMMAND, which lives in a temporary store and is stopped and removed
    afterwards. The script runs for real: what it writes elsewhere is written.
    """
    from ksupervise import settings
    from ksupervise.parent import rehearse as practice
    from ksupervise.report import rehearsal as report

    seconds = settings.duration("--wait", wait)
    command = ctx.meta.get("command")
    if command is None:
        if keep:
            raise UsageError("--keep is for a run that is made for the rehearsal: ksupervise rehearse WHAT -- COMMAND")
        found = practice.on_running(_directory(ctx, run, store), what, wait=seconds, yes=yes, say=_complain)
    else:
        if run is not None or not command:
            raise UsageError("give either RUN, or -- and the command of a new run")
        place = store or ctx.obj.get("store")
        where = Path(place).expanduser() if place else None
        found = practice.on_new(what, command, store=where, wait=seconds, keep=keep, say=_complain)
    click.echo(json.dumps(report.as_json(found)) if as_json else report.as_text(found))
    if code := report.exit_code(found):
        raise SystemExit(code)


def main(argv: list[str] | None = None) -> NoReturn:
    """The program. Never returns: every way out is an exit code."""
    _open_standard_descriptors()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a path that this terminal cannot show
    try:
        front.main(args=argv, prog_name="ksupervise", standalone_mode=False)
    except KsuperviseError as error:
        _complain(str(error))
        sys.exit(error.exit_code)
    except click.UsageError as error:
        _complain(f"{error.format_message()} (see ksupervise --help)")
        sys.exit(2)
    except click.Abort:
        sys.exit(EXIT_INTERRUPTED)
    sys.exit(0)


def _open_standard_descriptors() -> None:
    """A caller may have closed 0, 1 or 2: no file of ours may get the number and the script's output with it."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(fd, True)
    os.close(fd)


def _complain(text: str) -> None:
    click.echo(f"ksupervise: {text}", err=True)


def _die_of_sigpipe() -> NoReturn:
    """As any Unix tool whose reader went away: quietly, by the signal."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is still buffered must not complain at exit
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGPIPE)
    sys.exit(128 + signal.SIGPIPE)
