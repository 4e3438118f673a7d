"""The command lines."""

import os

# Before torch starts its threads: one that waits for another then leaves its core to other programs. By default it keeps the core busy, and
# beside one other program on two cores everything takes ten to fifty times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
