"""Note when the first line ran, then wait to be killed; after DEATHS deaths end. Call: tiny.py DEATHS"""

import time

now = time.monotonic()

import os  # noqa: E402
import sys  # noqa: E402

attempt = int(os.environ["KSUPERVISE_ATTEMPT"])
with open(f"started-{attempt}.new", "w") as file:
    file.write(str(now))
os.rename(f"started-{attempt}.new", f"started-{attempt}")
if attempt <= int(sys.argv[1]):
    time.sleep(600)
