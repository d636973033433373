"""Inference engines that releases are judged by: one file registers an `Engine` (`engine.py`) for each.

Imports neither torch nor any engine's package: those are imported where they run (torch by `asking`).
"""
