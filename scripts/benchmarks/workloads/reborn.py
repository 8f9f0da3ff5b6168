"""Say when the first line ran and who we are, then wait to be killed; whoever supervises does not matter."""

import time

now = time.monotonic()

import os  # noqa: E402
import sys  # noqa: E402

with open(sys.argv[1], "a") as file:
    file.write(f"{os.getpid()} {now}\n")
time.sleep(600)
