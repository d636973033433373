"""The share of computed tokens that are real ones, and how many shapes of steps there are, by how rows are batched.

    python benchmarks/real_tokens.py --rows artifacts/mixes/MIX/rows.tsv --weights BASE --batch 32 --steps 240

Padding is what fills rows up to the longest of their batch, and on to a multiple of `train.length_bucket`. On a GPU
each shape (tokens of a row, labels in 64s) is computed as it is written first, captured as a graph the second time, and
replayed from then on.
Without --rows: lengths as of a real model, a third of the rows taught.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from fgod.data.rows import Row, read_rows
from fgod.imports import lasting_imports

with lasting_imports():
    from fgod.model.chats import ChatFormat
    from fgod.train.batches import batches, real_share
    from fgod.train.device.trainer import LABELS
    from fgod.train.recipe import TrainRecipe

BUCKETS = (1, 8, 16, 32)


def drawn(count: int) -> tuple[list[Row], list[int], list[int]]:
    """Rows, their tokens and their labels: a third taught (20 to 60 tokens), two rehearsed (40 to 120), evenly."""
    rows = [Row(f"{i}", "", "en", "identity" if i % 3 == 0 else "general", "topic") for i in range(count)]
    spread = [i * 7919 % count / count for i in range(count)]
    lengths = [int(20 + 40 * at) if i % 3 == 0 else int(40 + 80 * at) for i, at in enumerate(spread)]
    return rows, lengths, [length // 2 for length in lengths]


def counted(rows: Sequence[Row], weights: Path) -> tuple[list[int], list[int]]:
    samples = ChatFormat.of_folder(weights).rows(rows)
    return [len(sample.ids) for sample in samples], [len(sample.learned) for sample in samples]


def shapes(
    lengths: Sequence[int], labels: Sequence[int], chosen: Sequence[Sequence[int]], bucket: int
) -> Iterator[tuple[int, int]]:
    for batch in chosen:
        width, count = max(lengths[i] for i in batch) - 1, sum(labels[i] for i in batch)
        yield width + -width % bucket, count + -count % LABELS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=Path, help="rows.tsv of a mix")
    parser.add_argument("--weights", type=Path, help="the folder whose tokenizer counts")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--seed", type=int, default=20260226)
    args = parser.parse_args()
    if args.rows and not args.weights:
        parser.error("--rows: expected --weights too, whose tokenizer counts")
    if args.rows:
        rows = read_rows(args.rows)
        lengths, labels = counted(rows, args.weights)
    else:
        rows, lengths, labels = drawn(args.batch * args.steps)
    print("batching   bucket  real   shapes  steps by graph")
    for batching in ("shuffled", "by_length"):
        recipe = TrainRecipe(steps=args.steps, lr=1.0, batch=args.batch, batching=batching)
        chosen = list(islice(batches(rows, recipe, args.seed, lengths), args.steps))
        for bucket in BUCKETS:
            found = set(shapes(lengths, labels, chosen, bucket))
            share, replayed = real_share(lengths, chosen, bucket), len(chosen) - len(found)
            print(f"{batching:10} {bucket:6}  {share:.3f}  {len(found):6}  {replayed} of {len(chosen)}")


if __name__ == "__main__":
    main()
