"""The job of `job.py`, slowed: it waits after each step for the seconds that the file `$TORTURE_PACE` says.

So it can be made to last for as long as a partition, and to hurry afterwards; what it computes stays the same.
"""

import os
import time
from pathlib import Path

import job


class PacedSteps(job.CountSteps):
    def on_train_batch_end(self, batch: int, logs: object = None) -> None:
        super().on_train_batch_end(batch, logs)
        time.sleep(float(Path(os.environ["TORTURE_PACE"]).read_text()))


if __name__ == "__main__":
    job.CountSteps = PacedSteps  # type: ignore[misc]
    job.main()
