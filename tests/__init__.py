"""The tests. Where several processes run them, each computes with one thread, and so does what it starts."""

import os

os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"  # it asks its hub how to name this program
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # read by torch when it is imported
