# The environment of every command. Shared by the pipeline and by workflow/report.smk.
import os
import shlex
import sys
from pathlib import Path

from fgod.system.stop import VARIABLE

# Commands are those of the Python that runs snakemake, whether or not its environment is activated, and end with it.
shell.prefix(f"export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH {VARIABLE}={os.getpid()}; ")
