"""Measurements, side by side in one run. Each module prints a table: `python -m tests.benchmarks.NAME`."""
