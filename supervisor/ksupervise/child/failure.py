"""The uncaught exception that ends an interpreter, for the parent to judge by."""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType

_MESSAGE = 2000  # characters: TensorFlow puts the way there first, and what happened last
_NOT_THE_USERS = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")
_STANDARD = os.path.dirname(os.__file__) + os.sep


def fields() -> str:
    """JSON members that tell of it, each with a comma before it; "" if no exception ended the interpreter.

    No import of json: the script may have a json.py of its own, which nobody asked to run.
    """
    kind: type[BaseException] | None = getattr(sys, "last_type", None)
    if kind is None:
        return ""
    value = getattr(sys, "last_value", None)
    bases = ",".join(_quoted(each.__name__) for each in kind.__mro__[1:-1])
    number = getattr(value, "errno", None)
    number = number if type(number) is int else 0
    where = _where(getattr(sys, "last_traceback", None))
    told = f',"exception":{_quoted(kind.__name__)},"bases":[{bases}],"errno":{number}'
    return f'{told},"message":{_quoted(_text_of(value))},"where":{_quoted(where)}'


def _text_of(value: object) -> str:
    try:
        text = str(value)
    except Exception:  # an exception that cannot say what it is
        return ""
    return text if len(text) <= _MESSAGE else f"{text[: _MESSAGE // 2]}\n…\n{text[-_MESSAGE // 2 :]}"


def _where(traceback: TracebackType | None) -> str:
    """The innermost line that is the user's own: `train.py:12 in load`."""
    found = ""
    while traceback is not None:
        code = traceback.tb_frame.f_code
        if is_users(code.co_filename):
            found = f"{os.path.basename(code.co_filename)}:{traceback.tb_lineno} in {code.co_name}"
        traceback = traceback.tb_next
    return found.removesuffix(" in <module>")


def is_users(filename: str) -> bool:
    """A file that is neither the standard library's, nor an installed package's, nor ours."""
    if filename.startswith(("<", _STANDARD)) or "__autograph_generated_file" in filename:
        return False
    return not any(part in filename for part in _NOT_THE_USERS) and "boot.zip" not in filename


def _quoted(text: str) -> str:
    """A JSON string."""
    return '"' + "".join(map(_escaped, text)) + '"'


def _escaped(character: str) -> str:
    code = ord(character)
    if 32 <= code < 127:
        return "\\" + character if character in '"\\' else character
    if code > 0xFFFF:
        code -= 0x10000
        return f"\\u{0xD800 + (code >> 10):04x}\\u{0xDC00 + (code & 0x3FF):04x}"
    return f"\\u{code:04x}"
