"""Probes: prompts that no training row shares, the exact scoring of replies, and the metrics made of them.

`scoring` and `metrics` are pure, `harness` checks that probes can judge, `record` reads and writes their files;
`run` loads models (torch).
"""

from fgod.probe.harness import check_reference
from fgod.probe.record import read_probes, write_skipped

__all__ = ["check_reference", "read_probes", "write_skipped"]
