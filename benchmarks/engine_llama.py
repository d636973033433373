"""What llama.cpp says with an exported GGUF file on the CPU, beside the same weights as this package computes them.

    python -m benchmarks.engine_llama gguf nvfp4 --question 你是誰 --question 我是誰
    python -m benchmarks.engine_llama gguf nvfp4 --probes traindata/probes.tsv --count 40 --threads 2

The first folder is an export to GGUF, the second one what is compared with. Both are asked greedily, one question at a
time, with the chat template in the file and the folder's, by the code that judges a release (`fgod engine`). Here
transformers answers all questions, too. Probes are chosen as there.

Needs the package xllamacpp, a binding of llama.cpp with its server (the extra `llama`).
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import asdict
from pathlib import Path

from fgod.chat import ChatSettings
from fgod.data.probes import Probe, asked_in, load_probes
from fgod.engines.asking import ask_engine, figures, first_tokens
from fgod.engines.judge import chosen
from fgod.registry import ENGINES
from fgod.system.stop import exit_on_fgod_error

SOURCES = Path("traindata")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("gguf", type=Path)
    parser.add_argument("other", type=Path)
    parser.add_argument("--question", action="append", default=[])
    parser.add_argument("--probes", type=Path, nargs="+", default=[])
    parser.add_argument("--count", type=int)
    parser.add_argument("--languages", nargs="*", default=[])
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    args = parser.parse_args()
    with exit_on_fgod_error():
        written = load_probes(args.probes, SOURCES, args.languages) if args.probes else []
        named = [Probe("questions", "", "", "", text, "reference") for text in args.question]
        probes = named + chosen((one for one in asked_in(written) if one.scored), args.count)
        report(args, probes)


def report(args: argparse.Namespace, probes: list[Probe]) -> None:
    """Ask both, and print both."""
    engine, chat = ENGINES["llama.cpp"], ChatSettings()
    ours = first_tokens(args.other, chat, probes, args.tokens, args.threads, len(probes))
    replies = ask_engine(engine, args.gguf, chat, probes, ours.prompts, args.tokens, args.threads)
    for probe, own, theirs in zip(probes, ours.said, replies, strict=True):
        print(json.dumps({"asked": probe.prompt, "fgod": own.text, engine.name: theirs.text}, ensure_ascii=False))
    found = figures(ours, [one.text for one in ours.said], replies)
    speed = sum(one.tokens for one in replies) / sum(one.seconds for one in replies)
    facts = {
        "engine": engine.version(),
        "file": str(args.gguf),
        "asked": len(probes),
        "threads": args.threads,
        **{name: asdict(one) for name, one in found.items()},
        "tokens a second": round(speed, 2),
        "tokens a second, transformers": round(ours.tokens_a_second, 2),
    }
    print(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main()
