"""Callbacks: exact resume, fitting a linear probe, recording for the report, progress bar and learning rates."""
