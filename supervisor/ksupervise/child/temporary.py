"""Files that TensorFlow makes for itself, and removes at the interpreter's end: a killed one never comes to that."""

from __future__ import annotations

import os
import sys

from ksupervise.wire import AUTOGRAPH


def files() -> list[str]:
    """Paths of those of this process."""
    loaded = [module for name, module in list(sys.modules.items()) if name.startswith(AUTOGRAPH)]
    return sorted(path for path in (getattr(module, "__file__", None) for module in loaded) if path)


def remove() -> None:
    """Remove them, as the interpreter's end would."""
    for path in files():
        try:
            os.unlink(path)
        except OSError:
            pass
