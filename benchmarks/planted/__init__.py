"""Faults that reduce accuracy without an error, planted in small runs of ftlit and of other libraries."""

from . import parallel, resuming, frozen, groups, rates, stages, data, sweeps  # noqa: F401, I001  in the order of the table
from .fault import FAULTS as FAULTS
from .peers import PEERS as PEERS
