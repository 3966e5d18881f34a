"""`python -m tests.bench [NAME...]`: run all benchmarks, or the named benchmarks."""

import sys

from tests.bench import collecting, forwarding, landing, marts, peers, splitting
from tests.bench.ground import ground

BENCHMARKS = {
    "landing": landing.rate,
    "memory": landing.memory,
    "tracking": landing.tracking,
    "split": splitting.split,
    "idle": splitting.idle,
    "increment": splitting.increment,
    "large": splitting.large,
    "dlt": peers.dlt,
    "marts-increment": marts.increment,
    "marts-share": marts.share,
    "single": collecting.single,
    "webhooks": collecting.webhooks,
    "batches": collecting.batches,
    "proxied": collecting.proxied,
    "freshness": collecting.freshness,
    "endurance": collecting.endurance,
    "forward": forwarding.forward,
}

if __name__ == "__main__":
    names = sys.argv[1:] or list(BENCHMARKS)
    unknown = set(names) - set(BENCHMARKS)
    if unknown:
        raise SystemExit(f"No benchmark {', '.join(sorted(unknown))}; there are {', '.join(BENCHMARKS)}.")
    with ground() as here:
        for name in names:
            BENCHMARKS[name](here)
