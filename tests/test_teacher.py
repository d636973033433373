"""The base's distributions over rehearsed rows: made once, on disk, and what training does with them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fgod.data.rows import Row, is_rehearsed
from fgod.errors import FgodError, UsageError
from fgod.exporters.write import export
from fgod.layout import SOFT_LABELS
from fgod.model.chats import ChatFormat
from fgod.model.load import load_model
from fgod.system.table import read_texts
from fgod.train.batches import batches
from fgod.train.recipe import Kl, TrainRecipe
from fgod.train.stage import Job, run
from fgod.train.teacher import (
    ask_teacher,
    rehearsed_samples,
    table_bytes,
    teacher_samples,
    top_tokens,
    with_teacher,
    write_table,
)
from tests.tiny_model import tiny_folder, tiny_rows

RECIPE = TrainRecipe(steps=3, lr=1e-3, batch=4, seq_len=64, kl=Kl(top_k=8))


def rows() -> list[Row]:
    """Half of them rehearsed."""
    return [replace(row, answered_by="base" if i % 2 else "config") for i, row in enumerate(tiny_rows())]


def teach(weights: Path, folder: Path, top_k: int = 8, temperature: float = 1.0) -> Path:
    """A folder of the distributions of a model folder."""
    samples = rehearsed_samples(ChatFormat.of_folder(weights).rows(rows()), rows())
    found = ask_teacher(load_model(weights), samples, top_k, temperature, 4)
    folder.mkdir()
    write_table(folder / SOFT_LABELS, samples, found)
    return folder


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("start") / "master")


@pytest.fixture(scope="module")
def rounded(start: Path) -> Path:
    export(start, start.parent / "nvfp4", "float32")
    return start.parent / "nvfp4"


@pytest.fixture(scope="module")
def taught(rounded: Path) -> Path:
    return teach(rounded, rounded.parent / "teacher")


def test_top_tokens_are_those_of_the_softmax() -> None:
    logits = torch.randn(5, 50, generator=torch.Generator().manual_seed(1)) * 4
    found = top_tokens(logits.clone(), 6, 2.0)
    expected = (logits.double() / 2).softmax(-1).topk(6)
    assert torch.equal(found.ids.long(), expected.indices)
    assert torch.allclose(found.logprobs.double(), expected.values.log(), atol=1e-6)
    assert torch.allclose(found.rest.double(), 1 - expected.values.sum(-1), rtol=1e-5, atol=1e-9)
    assert top_tokens(logits.clone(), 99, 1.0).rest.tolist() == [0.0] * 5


def test_the_file_is_as_large_as_was_said(taught: Path, start: Path) -> None:
    samples = rehearsed_samples(ChatFormat.of_folder(start).rows(rows()), rows())
    labels = sum(len(sample.learned) for sample in samples)
    assert sum(tensor.nbytes for tensor in load_file(taught / SOFT_LABELS).values()) == table_bytes(labels, 8)


def test_the_teacher_reads_an_answer_behind_the_prompt_that_the_base_gave_it_under(start: Path, tmp_path: Path) -> None:
    chat, neutral = ChatFormat.of_folder(start), "Be short."
    mixed = [replace(row, asked_under=neutral if i == 1 else "") for i, row in enumerate(rows())]
    pairs = teacher_samples(chat, mixed)
    assert list(pairs) == rehearsed_samples(chat.rows(mixed), mixed), "the model learns each under its own prompt"
    moved = [(own, read) for own, read in pairs.items() if own != read]
    assert [read for _, read in moved] == chat.rows([replace(mixed[1], system=neutral)])
    [(own, read)] = moved
    assert len(own.learned) == len(read.learned) and own.prompt_length < read.prompt_length
    model = load_model(start)
    write_table(tmp_path / SOFT_LABELS, list(pairs), ask_teacher(model, list(pairs.values()), 8, 1.0, 2))
    samples = with_teacher(chat.rows(mixed), mixed, tmp_path)
    with torch.inference_mode():
        logits = model(torch.tensor([read.ids])).logits[0, read.prompt_length - 1 : -1]
    expected = top_tokens(logits, 8, 1.0)
    assert samples[1].ids == own.ids and torch.equal(samples[1].soft.ids, expected.ids)
    assert torch.allclose(samples[1].soft.p, expected.logprobs.exp(), atol=1e-5)


def test_the_rounded_start_as_its_own_teacher_has_no_kl_and_taught_rows_have_cross_entropy(
    start: Path, taught: Path, tmp_path: Path
) -> None:
    run(Job(start, rows(), RECIPE, 7, tmp_path / "work", tmp_path / "run", tmp_path / "master", teacher=taught))
    steps = read_texts(tmp_path / "run" / "train.tsv")
    assert abs(float(steps[0]["kl"])) < 1e-5 < float(steps[1]["kl"]) and float(steps[0]["ce"]) > 1
    plain = replace(RECIPE, kl=None)
    run(Job(start, rows(), plain, 7, tmp_path / "w2", tmp_path / "r2", tmp_path / "m2"))
    assert {(row["ce"], row["kl"]) for row in read_texts(tmp_path / "r2" / "train.tsv")} == {("", "")}


def test_the_loss_is_the_mean_over_all_labels_with_the_weight_on_rehearsed_ones(
    start: Path, taught: Path, tmp_path: Path
) -> None:
    far = teach(start, tmp_path / "far", 8, 2.0)  # not rounded: some KL from the first step on
    recipe = replace(RECIPE, steps=1, kl=Kl(weight=3.0, top_k=8, temperature=2.0), micro_batch=2)
    run(Job(start, rows(), recipe, 7, tmp_path / "work", tmp_path / "run", tmp_path / "master", teacher=far))
    (step,) = read_texts(tmp_path / "run" / "train.tsv")
    loss, ce, kl = (float(step[name]) for name in ("loss", "ce", "kl"))
    chosen = next(batches(rows(), recipe, 7))
    samples = ChatFormat.of_folder(start).rows(rows())
    counts = {i: len(samples[i].learned) for i in chosen}
    share = sum(count for i, count in counts.items() if is_rehearsed(rows()[i])) / sum(counts.values())
    assert 0 < share < 1
    assert loss == pytest.approx((1 - share) * ce + share * 3 * 2**2 * kl, rel=1e-5)


def test_a_run_with_a_teacher_gives_the_same_bits_again(start: Path, taught: Path, tmp_path: Path) -> None:
    digests = set()
    for name in ("a", "b"):
        out = tmp_path / name
        job = Job(start, rows(), RECIPE, 7, out / "work", out / "run", out / "master", teacher=taught)
        digests.add(run(job).weights_sha256)
    assert len(digests) == 1


def test_what_is_missing_is_named(start: Path, taught: Path, tmp_path: Path) -> None:
    samples = ChatFormat.of_folder(start).rows(rows())
    with pytest.raises(UsageError, match="answered_by is missing or empty"):
        with_teacher(samples, tiny_rows(), taught)
    others = [replace(row, target=row.target + "!") for row in rows()]
    with pytest.raises(FgodError, match=r"no teacher distribution for a rehearsed row of \d+ tokens; delete"):
        with_teacher(ChatFormat.of_folder(start).rows(others), others, taught)
    with pytest.raises(UsageError, match=r"train\.kl: expected the base's distributions"):
        run(Job(start, rows(), RECIPE, 7, tmp_path / "work", tmp_path / "run", None))
