"""`python -m benchmarks`: the performance benchmark."""

import sys

from benchmarks.perf.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
