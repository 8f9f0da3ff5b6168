"""Methods of ours in the place of somebody else's, so that neither a traceback nor `inspect` shows the difference."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FunctionType
from typing import Any


def disguise(function: Callable[..., Any], original: Callable[..., Any], file: str) -> FunctionType:
    """Let `function` look like the method it wraps, also to Keras' and TensorFlow's traceback filters.

    A frame that claims their own file is dropped from the tracebacks that users see, as theirs are.
    """
    assert isinstance(function, FunctionType)
    theirs = getattr(original, "__code__", function.__code__)
    function.__code__ = function.__code__.replace(co_filename=file, co_firstlineno=theirs.co_firstlineno)
    if sys.version_info >= (3, 11):
        function.__code__ = function.__code__.replace(co_qualname=theirs.co_qualname)
    function.__annotations__ = dict(getattr(original, "__annotations__", {}))
    function.__name__ = original.__name__
    function.__qualname__ = original.__qualname__
    function.__module__ = original.__module__
    function.__doc__ = original.__doc__
    return function
