"""What the benchmark tells each server: which work, on which port."""

import os

#: echo or mlp.
WORK = os.environ["BENCH_WORK"]
PORT = int(os.environ["BENCH_PORT"])
