"""Who may import whom (DESIGN, section 4), what the parent never imports, and the exit codes (section 9)."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import ksupervise
from ksupervise import errors
from ksupervise.core import admission, policy

PACKAGE = Path(ksupervise.__file__).resolve().parent

# What the modules of each room may import of ours. "__init__" is the package's own: its version.
MAY_IMPORT = {
    "core": {"core"},
    "errors": set[str](),
    "wire": set[str](),
    "store": {"store", "errors"},
    "settings": {"errors"},
    "notices": {"notices"},
    "replicas": {"replicas", "store", "errors"},
    "child": {"child", "wire", "store", "errors", "__init__"},
    "parent": {"parent", "core", "store", "wire", "settings", "errors", "notices", "replicas", "__init__"},
    "report": {"report", "parent", "core", "store", "wire", "errors"},
    "cli": {"settings", "errors", "parent", "report", "__init__"},
    "__main__": {"cli", "__init__"},
    "__init__": set[str](),
}
# Who may import what is not in the standard library.
THIRD_PARTIES = {
    "click": {"cli"},
    "psutil": {"parent"},
    "tenacity": {"parent", "notices", "replicas"},
    "obstore": {"replicas"},
    "tomli": {"settings"},
}
# What the user's own Keras brings; the child imports it when it is there, never before.
USERS_OWN = {"numpy", "keras", "tensorflow", "tf_keras", "ml_dtypes"}
# What would make core's answers depend on anything but its arguments.
IMPURE = {"os", "time", "threading", "random", "socket", "subprocess", "pathlib", "logging", "datetime", "io", "sys"}


@dataclass(frozen=True)
class Import:
    """One import: where it stands, what it names."""

    file: Path
    line: int
    name: str
    inside_function: bool
    for_types: bool

    @property
    def importer(self) -> str:
        """The room (or module) in which it stands."""
        return room(self.file.relative_to(PACKAGE).with_suffix("").parts)

    @property
    def imported(self) -> str:
        """The room of ours that it names, or else the top-level module."""
        first, *rest = self.name.split(".")
        return room(tuple(rest)) if first == "ksupervise" else first

    @property
    def ours(self) -> bool:
        """It names a module of ours."""
        return self.name.split(".")[0] == "ksupervise"

    def __str__(self) -> str:
        return f"{self.file.relative_to(PACKAGE.parent)}:{self.line} imports {self.name}"


def room(parts: tuple[str, ...]) -> str:
    """The room of the module with this path below the package."""
    return parts[0] if parts else "__init__"


def imports_of(file: Path) -> Iterator[Import]:
    """Every import in `file`, wherever it stands."""
    tree = ast.parse(file.read_text(), str(file))
    inside = {id(node) for function in of_kind(tree, ast.FunctionDef) for node in ast.walk(function)}
    types = {id(node) for branch in of_kind(tree, ast.If) if is_type_checking(branch) for node in ast.walk(branch)}
    for node in ast.walk(tree):
        for name in names_in(node):
            yield Import(file, getattr(node, "lineno", 0), name, id(node) in inside, id(node) in types)


def of_kind(tree: ast.AST, kind: type[ast.AST]) -> list[ast.AST]:
    """All nodes of that kind."""
    return [node for node in ast.walk(tree) if isinstance(node, kind)]


def is_type_checking(branch: ast.AST) -> bool:
    """`if TYPE_CHECKING:`"""
    return isinstance(branch, ast.If) and isinstance(branch.test, ast.Name) and branch.test.id == "TYPE_CHECKING"


def names_in(node: ast.AST) -> list[str]:
    """The modules that an import statement names; `from ksupervise import wire` names ksupervise.wire."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert not node.level, "imports are absolute"
        if node.module == "ksupervise":
            return [f"ksupervise.{alias.name}" if is_module(alias.name) else "ksupervise" for alias in node.names]
        return [node.module or ""]
    return []


def is_module(name: str) -> bool:
    """The package has a module or a room of that name."""
    return (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").is_file()


ALL = [found for file in sorted(PACKAGE.rglob("*.py")) for found in imports_of(file)]


def told(imports: list[Import]) -> str:
    """`imports`, one a line, to fail with."""
    return "\n".join(map(str, imports))


def test_the_imports_were_found() -> None:
    assert len(ALL) > 100
    assert {found.importer for found in ALL} <= set(MAY_IMPORT), "a new room: say above what it may import"


def test_every_room_imports_only_what_it_may() -> None:
    wrong = [found for found in ALL if found.ours and found.imported not in MAY_IMPORT[found.importer]]
    assert not wrong, told(wrong)


def test_nobody_imports_the_child() -> None:
    wrong = [found for found in ALL if found.ours and found.imported == "child" and found.importer != "child"]
    assert not wrong, told(wrong)


def test_core_is_pure() -> None:
    wrong = [found for found in ALL if found.importer == "core" and found.imported in IMPURE]
    assert not wrong, told(wrong)
    signals = [found.file.name for found in ALL if found.importer == "core" and found.imported == "signal"]
    assert signals == ["causes.py"], "for the signals' numbers and names"


@pytest.mark.parametrize("module", THIRD_PARTIES)
def test_what_is_not_in_the_standard_library_has_its_place(module: str) -> None:
    where = {found.importer for found in ALL if found.imported == module}
    assert where == THIRD_PARTIES[module]


def test_nothing_else_is_imported_that_is_not_in_the_standard_library() -> None:
    known = sys.stdlib_module_names | set(THIRD_PARTIES) | {"tomllib"}
    foreign = [found for found in ALL if not found.ours and found.imported not in known]
    assert {found.importer for found in foreign} == {"child"}, told(foreign)
    assert {found.imported for found in foreign} <= USERS_OWN


def test_what_the_users_keras_brings_is_imported_inside_functions_only() -> None:
    wrong = [found for found in ALL if found.imported in USERS_OWN and not (found.inside_function or found.for_types)]
    assert not wrong, told(wrong)


@pytest.mark.parametrize("module", ["psutil", "tenacity"])
def test_what_is_slow_to_import_is_imported_when_first_used(module: str) -> None:
    wrong = [found for found in ALL if found.imported == module and not (found.inside_function or found.for_types)]
    assert not wrong, told(wrong)


# What is really imported --------------------------------------------------------------------------

HEAVY = sorted(USERS_OWN)


def modules_after(program: str, folder: Path) -> set[str]:
    """The top-level modules that an interpreter holds once it has run `program`."""
    program += "\nimport json, sys\nprint(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    command = [sys.executable, "-c", program]
    result = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 0, result.stderr
    return set(json.loads(result.stdout.splitlines()[-1]))


def test_importing_the_parent_imports_nothing_heavy(tmp_path: Path) -> None:
    modules = modules_after("import ksupervise.cli, ksupervise.parent.supervise", tmp_path)
    assert "ksupervise" in modules
    assert not modules & {*HEAVY, "psutil", "tenacity", "tomllib", "tomli"}


def test_importing_the_package_imports_nothing_else_of_ours(tmp_path: Path) -> None:
    program = "import ksupervise, sys; assert not [name for name in sys.modules if name.startswith('ksupervise.')]"
    assert "click" not in modules_after(program, tmp_path)


def test_a_parent_that_supervised_a_whole_run_imported_neither_keras_nor_numpy(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from ksupervise.parent.supervise import supervise\n"
        "assert supervise({'quiet': True}, [sys.executable, '-c', 'pass']) == 0"
    )
    assert not modules_after(program, tmp_path) & set(HEAVY)
    assert list(tmp_path.glob(".ksupervise/*/attempts/001")), "it did run"


# Exit codes ---------------------------------------------------------------------------------------


def test_the_exit_codes_are_those_of_the_interface() -> None:
    assert errors.EXIT_DONE == 0
    assert errors.EXIT_USAGE == policy.EXIT_REFUSED == 2
    assert errors.EXIT_DRAINED == policy.EXIT_PREEMPTED == 75
    assert errors.EXIT_GAVE_UP == policy.EXIT_GAVE_UP == 125
    assert errors.EXIT_NOT_EXECUTABLE == 126
    assert errors.EXIT_NOT_FOUND == 127
    assert errors.EXIT_INTERRUPTED == policy.EXIT_INTERRUPTED == admission._EXIT_INTERRUPTED == 130


def test_the_child_leaves_with_the_same_codes() -> None:
    """It does not import errors to boot lightly; read, because importing it here would import the child."""
    tree = ast.parse((PACKAGE / "child" / "session.py").read_text())
    codes = {
        target.id: node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        for target in node.targets
        if isinstance(target, ast.Name) and target.id.startswith("EXIT_")
    }
    assert codes
    assert all(getattr(errors, name, getattr(policy, name, None)) == code for name, code in codes.items())


def every_error(kind: type[errors.KsuperviseError] = errors.KsuperviseError) -> Iterator[type[errors.KsuperviseError]]:
    """`kind` and all errors below it that have been imported."""
    yield kind
    for below in kind.__subclasses__():
        yield from every_error(below)


def test_every_error_has_a_slug_of_its_own_and_a_code_of_the_interface() -> None:
    import ksupervise.parent.stop
    import ksupervise.store  # noqa: F401 - its errors are to be there

    kinds = list(every_error())
    assert len({kind.slug for kind in kinds}) == len(kinds) > 8
    assert {kind.exit_code for kind in kinds} <= {1, 2, 75, 125, 126, 127}
    assert all(kind.__doc__ for kind in kinds)
