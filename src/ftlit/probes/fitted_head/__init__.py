"""A head that is fitted as a linear probe, its calibration, and the examples that it contradicts."""
