"""Formats that trained weights are exported to: one file registers an `Exporter` (`exporter.py`) for each.

Imports no torch: what reads and writes tensors (`write`, `read`) is imported where it runs.
"""
