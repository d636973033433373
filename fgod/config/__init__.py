"""The config: read, filled with defaults, and checked before anything runs.

`models` states every key once; `load` reads, `check` refuses what models cannot; `schema` makes of the models the JSON
Schema that editors read. Commands know the config as the plain mapping that `resolve` gives.
"""

from fgod.config.check import engine_pairs, further_formats, missing_weights, refit
from fgod.config.experiments import experiment_configs
from fgod.config.load import base_words, config_digest, load, read_yaml, resolve, with_files

__all__ = [
    "base_words",
    "config_digest",
    "engine_pairs",
    "experiment_configs",
    "further_formats",
    "load",
    "missing_weights",
    "read_yaml",
    "refit",
    "resolve",
    "with_files",
]
