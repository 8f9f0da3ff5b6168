"""A pytest plugin, loaded into a pytest that runs Keras' own tests: what became of each, one JSON object a line.

    OUTCOMES=file [ONLY=file of test ids] python -m pytest -p outcomes ...

The file is written as it goes: where a run hangs, its last line tells. The exit code says nothing of failures: to
ksupervise they would be reason to try again.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import types
from collections.abc import Generator
from typing import Any

import pytest

# What test modules import at their top for tests that this machine, or this backend, does not run.
_FOREIGN = ("jax", "jax.numpy", "jax.experimental", "jax.experimental.sparse", "torch", "grain")
_KEPT: dict[str, types.ModuleType] = {}


class _AnyThing(type):
    """A class with every attribute: each is such a class itself."""

    def __getattr__(cls, name: str) -> Any:
        return _attribute(cls, name)


class _AnyModule(types.ModuleType):
    def __getattr__(self, name: str) -> Any:
        return _KEPT.get(f"{self.__name__}.{name}") or _attribute(self, name)


def _attribute(owner: object, name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    setattr(owner, name, _AnyThing(name, (), {}))
    return vars(owner)[name]


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Generator[None, Any, Any]:
    """While a test module is imported, and only then, there is something by the names that it imports."""
    if not isinstance(collector, pytest.Module):
        return (yield)
    absent = [name for name in _FOREIGN if importlib.util.find_spec(name.split(".", maxsplit=1)[0]) is None]
    _KEPT.update({name: _AnyModule(name) for name in absent if name not in _KEPT})
    stands = {**{name: _KEPT[name] for name in absent}, "conftest": _conftest()}
    sys.modules.update(stands)
    try:
        return (yield)
    finally:
        for name in stands:
            sys.modules.pop(name, None)


def _conftest() -> types.ModuleType:
    """Keras' tests import one name from a conftest.py that is not in its wheel."""
    from keras.src import backend

    module = types.ModuleType("conftest")
    vars(module)["skip_if_backend"] = lambda name, reason: pytest.mark.skipif(backend.backend() == name, reason=reason)
    return module


def pytest_configure(config: pytest.Config) -> None:
    for marker in ("requires_trainable_backend", "multi_device"):
        config.addinivalue_line("markers", marker)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if wanted := os.environ.get("ONLY"):
        with open(wanted, encoding="utf-8") as file:
            ids = set(json.load(file))
        items[:] = [item for item in items if item.nodeid in ids]


def pytest_runtest_logstart(nodeid: str) -> None:
    _tell(id=nodeid, when="start", outcome="started")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    _tell(id=report.nodeid, when=report.when, outcome=report.outcome, why=report.longreprtext)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if report.failed:
        _tell(id=report.nodeid, when="collect", outcome=report.outcome, why=report.longreprtext)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    session.exitstatus = 0


def _tell(**fact: object) -> None:
    with open(os.environ["OUTCOMES"], "a", encoding="utf-8") as file:
        file.write(json.dumps(fact) + "\n")
