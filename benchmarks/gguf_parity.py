"""Compare this project's import of a GGUF file with transformers' own loading of it: weights, logits, token ids.

    .venv/bin/python benchmarks/gguf_parity.py models/smollm2-135m.gguf

Both in float32 on the CPU; transformers takes a minute or two, and needs the package accelerate for it. Where a file
stores a tied table twice, transformers keeps one as embedding and the other as head, and the import takes the finer for
both.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from fgod.importing.gguf import import_gguf
from fgod.model.load import load_model, load_tokenizer, quiet

TEXTS = (
    "The capital of France is Paris, and the capital of Japan is Tokyo.",
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return fibonacci(n - 1) + fibonacci(n - 2)\n",
    "你是誰？我是由阿里云开发的超大规模语言模型。",
    "오늘 날씨가 좋네요. 今日はいい天気ですね。 It's 12,345.67 o'clock\t\n\n  and I'LL be café e\u0301.",
)


def theirs(file: Path) -> tuple[Any, Any]:
    """transformers' model and tokenizer of the file."""
    with quiet():
        kind: Any = AutoModelForCausalLM
        model = kind.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32, local_files_only=True)
        return model.eval(), AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, local_files_only=True)


def main() -> None:
    """Print the differences."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, metavar="FILE.gguf")
    file = parser.parse_args().file.resolve()
    torch.set_grad_enabled(False)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        import_gguf(file, Path(folder) / "out", "float32", say=print)
        print(f"import, float32     {time.monotonic() - started:8.1f} s")
        ours, tokenizer = load_model(Path(folder) / "out"), load_tokenizer(Path(folder) / "out")
    started = time.monotonic()
    peer, peer_tokenizer = theirs(file)
    print(f"transformers' load  {time.monotonic() - started:8.1f} s")
    compare_weights(ours, peer)
    for text in TEXTS:
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        other = peer_tokenizer(text, add_special_tokens=False)["input_ids"]
        compare_logits(ours(input_ids=ids).logits[0], peer(input_ids=ids).logits[0], text)
        print(f"  token ids         {'equal' if other == ids[0].tolist() else f'differ: {ids[0].tolist()} {other}'}")


def compare_weights(ours: Any, peer: Any) -> None:
    """The tensors that differ, each with its largest difference."""
    found = dict(peer.state_dict().items())
    differing = 0
    for name, value in ours.state_dict().items():
        difference = (value - found[name].float()).abs().max().item()
        if difference:
            differing += 1
            print(f"  {name}: largest difference {difference:.3g}")
    print(f"weights             {len(found) - differing} of {len(found)} tensors are equal to the bit")


def compare_logits(ours: torch.Tensor, peer: torch.Tensor, text: str) -> None:
    """Largest difference, and how often the likeliest token is the same."""
    same = (ours.argmax(-1) == peer.argmax(-1)).float().mean().item()
    print(f"{text[:40]!r}")
    print(
        f"  logits            largest difference {(ours - peer).abs().max().item():.3g}, same first choice {same:.3f}"
    )


if __name__ == "__main__":
    main()
