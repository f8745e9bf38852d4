"""The tests. Where several processes run them, each computes with one thread, and so does what it starts."""

import os

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # read by torch when it is imported
