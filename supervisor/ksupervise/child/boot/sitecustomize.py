"""Where ksupervise enters an interpreter: `boot.zip` is the first entry of PYTHONPATH.

The site's own sitecustomize, which this one hides, runs first, as if we were not here. Nothing is
printed, nothing is raised, and sys.path is left as it would be without us.
"""

import os
import sys


def _run_hidden() -> bool:
    """Load the sitecustomize that comes after ours on the path. True if there is one."""
    # importlib.util would bring five milliseconds of imports into every interpreter of the group.
    from importlib._bootstrap import module_from_spec
    from importlib.machinery import PathFinder

    spec = PathFinder.find_spec("sitecustomize", sys.path)
    if spec is None or spec.loader is None:
        return False
    module = module_from_spec(spec)
    sys.modules["sitecustomize"] = module
    spec.loader.exec_module(module)
    return True


def _attach() -> None:
    try:
        if sys.version_info >= (3, 9):
            import ksupervise.child.attach

            ksupervise.child.attach.attach()
    except Exception:
        pass  # the parent misses what we would have said, and says so


_boot = os.environ.get("KSUPERVISE_BOOT")
if _boot in sys.path:
    try:
        import ksupervise  # noqa: F401 - found in the zip, and its submodules through its own path
    except Exception:
        pass
    sys.path[:] = [entry for entry in sys.path if entry != _boot]
    try:
        # An installed one lends what the zip has not: the script may call `ksupervise status`.
        _places = [os.path.join(entry, "ksupervise") for entry in sys.path]
        sys.modules["ksupervise"].__path__ += [place for place in _places if os.path.isdir(place)]
    except Exception:
        pass
    try:
        _found = _run_hidden()
    finally:
        _attach()
    if not _found:
        # What `site` expects where there is none: it passes over exactly this, and forgets our module.
        raise ImportError("No module named 'sitecustomize'", name="sitecustomize")
