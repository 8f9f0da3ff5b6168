"""`scripts/bench`: measure one thing, print it as a table or as JSON."""

from __future__ import annotations

import argparse
import importlib
import random
import signal
import sys
import tempfile
from pathlib import Path

from measure import Report, tell

BENCHES = ("training", "checkpoint", "relaunch", "parent")


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("bench", choices=BENCHES)
    parser.add_argument("--quick", action="store_true", help="fewer repetitions: to see that it works, not to quote")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout, the table on stderr")
    parser.add_argument("--seed", type=int, default=None, help="of the random order (default: a new one)")
    sizes = "what checkpoint measures, with commas between: MB of state (Adam's moments included), or resnet50"
    parser.add_argument("--sizes", type=lambda text: text.split(","), metavar="MB,…", help=sizes)
    args = parser.parse_args()
    if args.sizes and args.bench != "checkpoint":
        parser.error("--sizes is for checkpoint")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is ended

    seed = random.randrange(2**32) if args.seed is None else args.seed
    report = Report(args.bench, quick=args.quick, seed=seed)
    module = importlib.import_module(f"bench_{args.bench}")
    with tempfile.TemporaryDirectory(prefix="ksupervise-bench-") as folder:
        options = {"sizes": args.sizes} if args.sizes else {}
        module.run(report, Path(folder), quick=args.quick, random=random.Random(seed), **options)
    report.finish()
    if args.json:
        tell(report.as_text())
    print(report.as_json() if args.json else report.as_text())


if __name__ == "__main__":
    main()
