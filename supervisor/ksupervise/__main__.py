"""The program's way in: `ksupervise`, and `python -m ksupervise`."""

import sys
from typing import NoReturn

from ksupervise import __version__


def main() -> NoReturn:
    """Answer `--version` at once, hand everything else to the command line. Never returns."""
    if sys.argv[1:] == ["--version"]:
        print(f"ksupervise {__version__}")  # click alone would take longer than Python's own start
        sys.exit(0)
    from ksupervise import cli

    cli.main()


if __name__ == "__main__":
    main()
