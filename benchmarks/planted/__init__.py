"""Faults that cost accuracy and no error, planted in small runs of ftlit and of its peers."""

from . import parallel, resuming, frozen, groups, rates, stages, data, sweeps  # noqa: F401, I001  the order of the table
from .fault import FAULTS as FAULTS
from .peers import PEERS as PEERS
