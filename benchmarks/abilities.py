"""What a tuned model can do beside its base, on one machine without network: the time that it takes, and the figures.

    python benchmarks/abilities.py BASE TUNED --items mmlu:/path/lm_eval-0.4.13-py3-none-any.whl --out FOLDER

BASE and TUNED are model folders (plain or NVFP4 exports). `--items` takes JSONL files and READER:PATH, as does
`fgod evaluate` (docs/abilities.md); `--code` runs programs of the models. Writes abilities.json and abilities.tsv to
FOLDER. Calls the library in this process, without the guard: for a machine of one's own.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import torch

from fgod.abilities.figures import summary
from fgod.abilities.items import check_allowed, read_suites
from fgod.abilities.measure import Settings
from fgod.abilities.record import write
from fgod.cli.work.evaluate import ask_folder
from fgod.system.files import file_digests, sha256_listing


def say(text: str) -> None:
    print(text, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name in ("base", "tuned"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--items", nargs="+", required=True, metavar="SOURCE")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--batch", type=int, default=64, help="items at once (default %(default)s)")
    parser.add_argument("--max-tokens", type=int, default=512, help="of a reply (default %(default)s)")
    parser.add_argument("--limit", type=float, default=2.0, help="points that may be lost (default %(default)g)")
    parser.add_argument("--chat-template", action="store_true", help="ask multiple choice by the chat template")
    parser.add_argument("--code", action="store_true", help="run programs that the models write, in a sandbox")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    begin = time.perf_counter()
    suites = read_suites(args.items)
    check_allowed(suites, args.code)
    settings = Settings(args.code, args.chat_template, args.max_tokens, args.batch, device)
    say(f"{sum(len(suite.items) for suite in suites)} items read in {time.perf_counter() - begin:.1f} s")
    answers, compared = [], []
    for folder in (args.base, args.tuned):
        start = time.perf_counter()
        answers.append(ask_folder(folder, suites, settings, say))
        say(f"{folder}: {time.perf_counter() - start:.1f} s, loading included")
        compared.append({"folder": str(folder), "sha256": sha256_listing(file_digests(folder))})
    asked = asdict(settings) | {"chat": settings.chat.to_dict(), "items": args.items}
    out = args.out / "abilities.json"
    document = write(out, suites, (answers[0], answers[1]), args.limit, (compared[0], compared[1]), asked)
    say(summary(document))
    say(f"{time.perf_counter() - begin:.1f} s in all; {out} and {out.with_suffix('.tsv')}")


if __name__ == "__main__":
    main()
