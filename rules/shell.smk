# The environment of every command, and what of a run is said on the screen. Shared by the pipeline and by workflow/report.smk.
import gc
import os
import shlex
import sys

from fgod.system.stop import VARIABLE
from fgod.workflow_log import shorten

gc.freeze()  # what snakemake has imported stays: to look through it again and again is an eighth of a dry-run's time

SNAKEMAKE = os.getpid()
shorten(workflow.output_settings, workflow.logger_manager.get_logfile)

# `fgod` is that of the Python that runs snakemake, whether or not its environment is activated and wherever the package
# was installed (-P: no file of the current folder stands for a module of it), and ends with snakemake.
shell.prefix('export {VARIABLE}={SNAKEMAKE}; fgod() {{ {sys.executable:q} -P -m fgod "$@"; }}; ')
