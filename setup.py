"""The build: workflow, configs and written sources go into the wheel from where they lie in the repository.

All else about the package stands in pyproject.toml. In an editable install nothing is copied: `fgod.project` finds the
files in the repository.
"""

from __future__ import annotations

from pathlib import Path

from setuptools import Command, setup
from setuptools.command.build import build

PATTERNS = (
    "Snakefile",
    "rules/*.smk",
    "workflow/*.smk",
    "profiles/*/config.yaml",
    "config.yaml",
    "config/*.yaml",
    "traindata/**/*.yaml",
    "traindata/**/*.tsv",
)


class BuildShipped(Command):
    """Copy the files of `PATTERNS` to fgod/shipped/ of the wheel."""

    def initialize_options(self) -> None:
        self.build_lib: str | None = None
        self.editable_mode = False

    def finalize_options(self) -> None:
        self.set_undefined_options("build", ("build_lib", "build_lib"))

    def get_source_files(self) -> list[str]:
        """For source distributions."""
        return sorted(str(file) for pattern in PATTERNS for file in Path().glob(pattern))

    def get_output_mapping(self) -> dict[str, str]:
        """Files of the wheel, and what they are copied from."""
        shipped = Path(str(self.build_lib), "fgod", "shipped")
        return {} if self.editable_mode else {str(shipped / file): file for file in self.get_source_files()}

    def get_outputs(self) -> list[str]:
        return list(self.get_output_mapping())

    def run(self) -> None:
        for target, source in self.get_output_mapping().items():
            self.mkpath(str(Path(target).parent))
            self.copy_file(source, target)


class Build(build):
    sub_commands = [*build.sub_commands, ("build_shipped", None)]  # noqa: RUF012


setup(cmdclass={"build": Build, "build_shipped": BuildShipped})
