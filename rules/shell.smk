# The environment of every command. Shared by the pipeline and by workflow/report.smk.
import os
import shlex
import sys

from fgod.system.stop import VARIABLE

SNAKEMAKE = os.getpid()

# `fgod` is that of the Python that runs snakemake, whether or not its environment is activated and wherever the package
# was installed (-P: no file of the current folder stands for a module of it), and ends with snakemake.
shell.prefix('export {VARIABLE}={SNAKEMAKE}; fgod() {{ {sys.executable:q} -P -m fgod "$@"; }}; ')
