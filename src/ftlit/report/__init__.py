"""From the folder of a run, or of a sweep, to its report: one HTML page and its figures."""
