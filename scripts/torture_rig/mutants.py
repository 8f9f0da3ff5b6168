"""`scripts/torture decide`: every rule of the judgement, broken one at a time. Some test of tests/core must notice.

A mutant is a copy of the package with one change in core/: a row of the table or one kind of news less, a condition
that always or never holds, a part of a condition less, a limit moved by one, a member of a set less. Those that change
nothing that could be seen are listed below by name with the reason. With one mutant that no test notices it exits 1.
"""

from __future__ import annotations

import argparse
import ast
import json
import multiprocessing
import os
import re
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import hypothesis.strategies  # noqa: F401 - here, once, and not in each of the forks
import pytest

ROOT = Path(__file__).resolve().parents[2]
SUPERVISOR = ROOT / "supervisor"
TESTS = ROOT / "tests" / "core"
TIMEOUT = 300.0  # seconds; a mutant that hangs a test is noticed, too
# Which tests are likely to notice, the quickest first; all others come after them.
LIKELY = {
    "decide": ("test_decide_histories.py", "test_decide_exploration.py"),
    "policy": ("test_policy.py", "test_decide_histories.py"),
    "causes": ("test_causes.py", "test_policy.py"),
    "patience": ("test_patience.py",),
}
LAST = "test_decide_exploration.py"  # it takes longer than all others together

EQUIVALENT = {
    "policy: History.after: mark or 0: without 0": "with progress the mark is a number; the 0 is for the types",
}


@dataclass(frozen=True)
class Mutant:
    """One change of one file: its name says which, `source` is the file's new text."""

    name: str
    module: str
    source: str


@dataclass(frozen=True)
class Fate:
    """What became of a mutant: the test that noticed it, "" if none did."""

    mutant: Mutant
    noticed: str
    seconds: float


# What is changed ----------------------------------------------------------------------------------


def mutants() -> Iterator[Mutant]:
    """All of them, each name once."""
    for module in LIKELY:
        seen: dict[str, int] = {}
        for what, source in _changes(module):
            seen[what] = seen.get(what, 0) + 1
            again = f" ({seen[what]})" if seen[what] > 1 else ""
            yield Mutant(f"{module}: {what}{again}", module, source)


def _changes(module: str) -> Iterator[tuple[str, str]]:
    text = (SUPERVISOR / "ksupervise" / "core" / f"{module}.py").read_text()
    if module == "decide":
        yield from _rows(text)
    tree = ast.parse(text)
    for place, node in _nodes(tree, ""):
        for what, undo in _mutations(node):
            yield f"{place or 'module'}: {what}", ast.unparse(tree)
            undo()


def _rows(text: str) -> Iterator[tuple[str, str]]:
    """The table without each of its rows."""
    sys.path.insert(0, str(SUPERVISOR))
    from ksupervise.core.decide import TABLE

    for phase, key in TABLE:
        name = f"Timer.{key.name}" if hasattr(key, "name") else key.__name__
        known = name.startswith("Timer.") or re.search(rf"\b{name}\b", text)
        assert known, f"{name} is not imported in decide.py"
        yield f"without the row {phase.name}, {name}", f"{text}\ndel TABLE[Phase.{phase.name}, {name}]\n"


def _nodes(node: ast.AST, place: str) -> Iterator[tuple[str, ast.AST]]:
    """Every node with the name of the function or the value that it belongs to."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.ClassDef):
            inner = f"{place}.{child.name}".lstrip(".")
        elif isinstance(child, ast.Assign | ast.AnnAssign) and not place:
            inner = ast.unparse(child.targets[0] if isinstance(child, ast.Assign) else child.target)
        else:
            inner = place
        yield inner, child
        yield from _nodes(child, inner)


Undo = Callable[[], None]


def _mutations(node: ast.AST) -> Iterator[tuple[str, Undo]]:
    """Change the node in place, once for each way; the caller calls what undoes it."""
    if isinstance(node, ast.If | ast.IfExp):
        yield from _conditions(node)
    elif isinstance(node, ast.BoolOp):
        word = " and " if isinstance(node.op, ast.And) else " or "
        shown = word.join(map(ast.unparse, node.values))
        for what, undo in _without(node.values):
            yield f"{shown}: without {what}", undo
    elif isinstance(node, ast.comprehension):
        for what, undo in _without(node.ifs):
            yield f"without if {what}", undo
    elif isinstance(node, ast.Compare) and len(node.ops) == 1:
        yield from _limits(node)
    elif isinstance(node, ast.Set):
        for what, undo in _without(node.elts):
            yield f"without {what}", undo
    elif isinstance(node, ast.Dict):
        yield from _entries(node)


def _conditions(node: ast.If | ast.IfExp) -> Iterator[tuple[str, Undo]]:
    test, shown = node.test, ast.unparse(node.test)

    def undo() -> None:
        node.test = test

    for value in (False, True):
        node.test = ast.Constant(value)
        yield f"if {shown}: always {value}", undo


def _without(parts: list[ast.expr]) -> Iterator[tuple[str, Undo]]:
    for index, part in enumerate(list(parts)):
        del parts[index]
        yield ast.unparse(part), lambda index=index, part=part: parts.insert(index, part)  # type: ignore[misc]


def _limits(node: ast.Compare) -> Iterator[tuple[str, Undo]]:
    """One more or one less."""
    moved: dict[type[ast.cmpop], type[ast.cmpop]] = {
        ast.Lt: ast.LtE,
        ast.LtE: ast.Lt,
        ast.Gt: ast.GtE,
        ast.GtE: ast.Gt,
    }
    (before,), shown = node.ops, ast.unparse(node)
    if type(before) in moved:
        node.ops = [moved[type(before)]()]
        yield f"{shown}: {ast.unparse(node)}", lambda: node.ops.__setitem__(0, before)


def _entries(node: ast.Dict) -> Iterator[tuple[str, Undo]]:
    """Of a dictionary with names as keys; TABLE's are `_rows`."""
    for index, (key, value) in enumerate(list(zip(node.keys, node.values, strict=True))):
        if isinstance(key, ast.Name | ast.Attribute):
            del node.keys[index], node.values[index]

            def undo(index: int = index, key: ast.expr = key, value: ast.expr = value) -> None:
                node.keys.insert(index, key)
                node.values.insert(index, value)

            yield f"without {ast.unparse(key)}", undo


# Who notices --------------------------------------------------------------------------------------


def try_out(mutant: Mutant) -> Fate:
    """Run the tests against a copy with this change. Runs in a process of its own, forked from one that knows pytest.

    To import pytest and hypothesis takes as long as most mutants live.
    """
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="torture-decide-", ignore_cleanup_errors=True) as folder:
        noticed = _run(mutant, Path(folder))
    return Fate(mutant, noticed, time.monotonic() - began)


def _run(mutant: Mutant, folder: Path) -> str:
    """The test that noticed, "" if none did."""
    copy = folder / "supervisor"
    shutil.copytree(SUPERVISOR, copy, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "ksupervise" / "core" / f"{mutant.module}.py").write_text(mutant.source)
    _forget("ksupervise", "tests")
    sys.path[:] = [str(copy), str(ROOT), *(path for path in sys.path if path not in (str(SUPERVISOR), str(ROOT)))]
    sys.dont_write_bytecode = True
    os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = str(folder / "hypothesis")
    os.chdir(ROOT)
    signal.signal(signal.SIGALRM, _too_long)
    signal.setitimer(signal.ITIMER_REAL, TIMEOUT)
    witness = Witness()
    early = "ignore:Module already imported:pytest.PytestAssertRewriteWarning"  # hypothesis was, for the forks
    options = ["-x", "-q", "-p", "no:cacheprovider", "--tb=no", "--hypothesis-seed=0", "-W", early]
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        code = pytest.main([*options, *_tests(mutant.module)], plugins=[witness])
    signal.setitimer(signal.ITIMER_REAL, 0)
    taken = sys.modules["ksupervise.core.decide"].__file__ or ""
    assert taken.startswith(str(copy)), f"another ksupervise was tested: {taken}"
    return "" if code == pytest.ExitCode.OK else witness.first or f"pytest ended with {code!r}"


class Witness:
    """A plugin of pytest's that remembers what failed.

    Attributes:
        first: name of the first test that failed, or of the file that could not be read; "" for none.
    """

    def __init__(self) -> None:
        self.first = ""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A test is over."""
        if report.failed:
            self.first = self.first or report.nodeid

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """A file was read."""
        if report.failed:
            self.first = self.first or report.nodeid


def _forget(*packages: str) -> None:
    """The next import is another one's."""
    for name in list(sys.modules):
        if name.partition(".")[0] in packages:
            del sys.modules[name]


def _too_long(number: int, frame: object) -> None:
    raise TimeoutError(f"nothing came of it within {TIMEOUT:.0f} s")


def _tests(module: str) -> list[str]:
    """The files of tests/core, those that are likely to notice first."""
    there = {path.name: path for path in sorted(TESTS.glob("test_*.py"))}
    first = [name for name in LIKELY.get(module, ()) if name in there]
    rest = [name for name in there if name not in first and name != LAST]
    last = [LAST] if LAST in there and LAST not in first else []
    return [str(there[name]) for name in (*first, *rest, *last)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print, and return 1 if a mutant was not noticed, 2 if nothing could be tried."""
    parser = argparse.ArgumentParser(prog="scripts/torture decide", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--only", default="", metavar="REGEX", help="mutants whose name matches")
    parser.add_argument("--jobs", type=int, default=2, help="mutants at a time")
    parser.add_argument("--list", action="store_true", help="only name them")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(arguments)
    everyone = list(mutants())
    stale = EQUIVALENT.keys() - {mutant.name for mutant in everyone}
    if stale:
        print(
            f"listed as equivalent, but there is no such mutant any more: {', '.join(sorted(stale))}", file=sys.stderr
        )
        return 2
    chosen = [each for each in everyone if re.search(args.only, each.name)]
    if args.list:
        for mutant in chosen:
            print(mutant.name + (" (equivalent)" if mutant.name in EQUIVALENT else ""))
        return 0
    tried = [mutant for mutant in chosen if mutant.name not in EQUIVALENT]
    if not tried:
        print(f"there is no mutant {args.only!r}", file=sys.stderr)
        return 2
    return torture(tried, len(chosen) - len(tried), args)


def torture(tried: Sequence[Mutant], equivalent: int, args: argparse.Namespace) -> int:
    """Try them all; the exit code."""
    stream = sys.stderr if args.json else sys.stdout
    began = time.monotonic()
    fates: list[Fate] = []
    with multiprocessing.get_context("fork").Pool(args.jobs, maxtasksperchild=1) as pool:
        healthy = SUPERVISOR / "ksupervise" / "core" / f"{tried[0].module}.py"
        broken = pool.apply(try_out, [Mutant("none", tried[0].module, healthy.read_text())]).noticed
        if broken:
            print(f"the tests fail without any mutation: {broken}", file=sys.stderr)
            return 2
        for fate in pool.imap_unordered(try_out, tried):
            fates.append(fate)
            if not fate.noticed:
                print(f"NOT NOTICED: {fate.mutant.name}", file=stream, flush=True)
    return summary(fates, equivalent, time.monotonic() - began, as_json=args.json)


def summary(fates: Sequence[Fate], equivalent: int, seconds: float, *, as_json: bool) -> int:
    """Print what was noticed, and how to repeat the rest; 1 if something was not."""
    survived = [fate.mutant.name for fate in fates if not fate.noticed]
    if as_json:
        told = [{"name": f.mutant.name, "noticed": f.noticed, "seconds": round(f.seconds, 1)} for f in fates]
        facts = {"mutants": len(fates), "equivalent": equivalent, "seconds": round(seconds, 1), "survived": survived}
        print(json.dumps({**facts, "fates": told}))
        return 1 if survived else 0
    for name in survived:
        print(f"    scripts/torture decide --only {shlex.quote(re.escape(name))}")
    print(
        f"decide torture: {len(fates) - len(survived)} of {len(fates)} mutants noticed, "
        f"{equivalent} equivalent ones left out, {seconds:.0f} s"
    )
    return 1 if survived else 0


if __name__ == "__main__":
    raise SystemExit(main())
