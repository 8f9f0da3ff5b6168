"""Note when the interpreter came to its first line, then run a script as it is. Call: started.py SCRIPT [ARGS]..."""

import time

now = time.monotonic()

import os  # noqa: E402
import runpy  # noqa: E402
import sys  # noqa: E402
from pathlib import Path  # noqa: E402

Path(f"started-{os.environ['KSUPERVISE_ATTEMPT']}").write_text(str(now))
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
