"""The command lines."""

import os
import sys

# Before torch starts its threads: one that waits for another then leaves its core to other programs. By default it keeps the core busy, and
# beside one other program on two cores everything takes ten to fifty times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def search_current_folder() -> None:
    """Let the classes that a user names (`head._target_=mine.Head`) come from modules of the current folder; installed ones go first."""
    if (folder := os.getcwd()) not in sys.path:
        sys.path.append(folder)
