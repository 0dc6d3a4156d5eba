"""Measurements, run by hand from the root: `python -m benchmarks.NAME`."""
