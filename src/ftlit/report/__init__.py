"""From the folder of a run to its report: one HTML page and its figures."""
