"""The trainer."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn

from fgod.chat import ChatSettings
from fgod.data.rows import Message, Row
from fgod.documents import Outcome
from fgod.errors import UsageError
from fgod.exporters.write import export
from fgod.guard.phases import read_phase, write_phase
from fgod.model.chats import ChatFormat, Sample
from fgod.model.load import load_model
from fgod.model.masters import load_masters
from fgod.progress.followed import reporting
from fgod.system.files import sha256_folder
from fgod.system.table import read_texts
from fgod.train.autograd import answer_loss
from fgod.train.batches import batches, collate, computed_order, micro_batches, real_share, row_losses
from fgod.train.efficiency import Projection
from fgod.train.optimizer import TensorOptimizer, lr_factors
from fgod.train.participation import HoleError, Participant, check_holes
from fgod.train.preflight import PreflightError
from fgod.train.recipe import Kl, TrainRecipe
from fgod.train.record import publish
from fgod.train.stage import DIVERGED, TRAINED, Job, run
from tests.heard import Heard
from tests.tiny_model import noise, tiny_folder, tiny_rows, tiny_tokenizer

RECIPE = TrainRecipe(steps=6, lr=1e-3, batch=4, seq_len=64, warmup=2, weight_decay=0.01, l2_sp=2.0)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("start") / "master")


@pytest.fixture(scope="module")
def untied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("start") / "untied", tied=False)


def train(
    start: Path, out: Path, recipe: TrainRecipe = RECIPE, rows: list[Row] | None = None, seed: int = 7, **more: Any
) -> Outcome:
    rows = tiny_rows() if rows is None else rows
    return run(Job(start, rows, recipe, seed, out / "work", out / "run", out / "master", "A", "abc", **more))


# ---- recipe


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stepz": 3}, r"train: unknown key 'stepz' \(did you mean steps\?\)"),
        ({"steps": 0}, r"train\.steps: found 0, expected at least 1"),
        ({"steps": 2.0}, r"train\.steps: found 2\.0"),
        ({"lr": -1e-4}, r"train\.lr: found -0\.0001, expected at least 0"),
        ({"lr": math.nan}, r"train\.lr: found nan"),
        ({"micro_batch": 0}, r"train\.micro_batch: found 0"),
        ({"schedule": "step"}, r"train\.schedule: found 'step'; allowed: constant, linear, cosine"),
        ({"betas": [0.9, 1.0]}, r"train\.betas\[1\]: found 1\.0, expected less than 1"),
        ({"grad_clip": 0}, r"train\.grad_clip: found 0"),
        ({"lr_scale": {"*norm*": 0}}, r"train\.lr_scale\.\*norm\*: found 0"),
        (
            {"compute_dtype": "float16"},
            r"train\.compute_dtype: found 'float16'.*; allowed: float32, bfloat16",
        ),
        ({"kl": {"weigth": 1}}, r"train\.kl: unknown key 'weigth' \(did you mean weight\?\)"),
        ({"kl": {"weight": 0}}, r"train\.kl\.weight: found 0, expected more than 0"),
        ({"kl": {"top_k": 0}}, r"train\.kl\.top_k: found 0, expected at least 1"),
        ({"kl": {"teacher": "bf16"}}, r"train\.kl\.teacher: found 'bf16'; allowed: rounded, plain"),
        ({"kl": 3}, r"train\.kl: found 3 \(a number\), expected a mapping or null"),
        ({"batching": "by_length", "sample_mode": "sequential"}, r"train\.batching: found by_length with sample_mode"),
        ({"kl": {}, "loss": "scalar"}, r"train\.kl: found a table with loss: scalar"),
    ],
)
def test_a_wrong_recipe_names_key_found_and_allowed(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        TrainRecipe.from_dict({"steps": 10, "lr": 1e-4, **changes})


def test_a_recipe_comes_from_a_config() -> None:
    recipe = TrainRecipe.from_dict({"steps": 10, "lr": 1e-4, "betas": [0.8, 0.9], "micro_batch": None})
    assert recipe == TrainRecipe(10, 1e-4, betas=(0.8, 0.9))
    with pytest.raises(UsageError, match=r"train: the key 'lr' is missing"):
        TrainRecipe.from_dict({"steps": 10})


def test_a_recipe_without_kl_is_what_it_was_and_one_with_it_is_read_back() -> None:
    plain, kl = TrainRecipe(10, 1e-4), TrainRecipe(10, 1e-4, kl=Kl(weight=3))
    assert "kl" not in plain.to_dict() and TrainRecipe.from_dict({**plain.to_dict(), "kl": None}) == plain
    assert kl.to_dict()["kl"] == {"weight": 3.0, "top_k": 64, "temperature": 1.0, "teacher": "rounded"}
    assert TrainRecipe.from_dict(kl.to_dict()) == kl


def test_learning_rate_warms_up_and_falls_but_never_to_zero() -> None:
    rates = [TrainRecipe(10, 1.0, warmup=4, schedule="cosine").lr_at(step) for step in range(10)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert all(a > b > 0 for a, b in pairwise(rates[4:]))
    assert [TrainRecipe(4, 2.0, schedule="linear").lr_at(s) for s in range(4)] == [2.0, 1.5, 1.0, 0.5]
    assert {TrainRecipe(5, 0.5, schedule="constant").lr_at(s) for s in range(5)} == {0.5}
    assert TrainRecipe(3, 0.5, warmup=9).lr_at(2) == pytest.approx(0.5 / 3)


# ---- batches


def plan(rows: list[Row], **changes: Any) -> list[list[int]]:
    recipe = replace(TrainRecipe(steps=12, lr=1.0, batch=4), **changes)
    return list(batches(rows, recipe, 3))


def flat(chosen: list[list[int]]) -> list[int]:
    return [index for indices in chosen for index in indices]


@pytest.mark.parametrize("mode", ["random", "sequential", "curriculum"])
@pytest.mark.parametrize("batch", [2, 3, 4, 5])
def test_pairs_stay_in_one_batch_and_batches_are_never_too_large(mode: str, batch: int) -> None:
    rows = tiny_rows(17)
    chosen = plan(rows, sample_mode=mode, batch=batch, steps=40)
    assert len(chosen) == 40
    for indices in chosen:
        assert 1 <= len(indices) <= batch
        pairs = Counter(rows[i].group for i in indices if rows[i].group)
        assert all(count % 2 == 0 for count in pairs.values())


def test_random_takes_every_row_once_an_epoch_in_another_order_each() -> None:
    rows = tiny_rows(16)
    chosen = plan(rows, steps=8)
    first, second = flat(chosen[:4]), flat(chosen[4:])
    assert sorted(first) == sorted(second) == list(range(16))
    assert first != second
    assert chosen == plan(rows, steps=8)
    assert chosen != list(batches(rows, TrainRecipe(steps=8, lr=1.0, batch=4), 4))


@pytest.mark.parametrize("batch", [2, 4, 5])
def test_batches_by_length_have_little_padding_and_take_every_row_as_often(batch: int) -> None:
    rows = tiny_rows(160)
    lengths = [20 + 7 * i % 97 for i in range(160)]
    chosen = list(
        batches(rows, TrainRecipe(steps=160 // batch * 4, lr=1.0, batch=batch, batching="by_length"), 3, lengths)
    )
    again = list(
        batches(rows, TrainRecipe(steps=160 // batch * 4, lr=1.0, batch=batch, batching="by_length"), 3, lengths)
    )
    assert chosen == again and chosen != plan(rows, batch=batch, steps=len(chosen))
    assert real_share(lengths, chosen, 32) < real_share(lengths, chosen, 8) < real_share(lengths, chosen)
    assert real_share([9, 5], [[0, 1]], 16) == (8 + 4) / 32
    assert real_share(lengths, chosen) > 0.95 > 0.85 > real_share(lengths, plan(rows, batch=batch, steps=len(chosen)))
    times = Counter(flat(chosen)).values()
    assert len(times) == 160 and max(times) - min(times) <= 2
    for indices in chosen:
        assert 1 <= len(indices) <= batch
        assert all(n % 2 == 0 for n in Counter(rows[i].group for i in indices if rows[i].group).values())


def test_random_fills_batches_with_what_fits() -> None:
    rows = tiny_rows(17)  # four pairs, nine singles, batches of five
    assert Counter(map(len, plan(rows, batch=5, steps=34)))[5] >= 25


def test_sequential_keeps_the_order_and_wraps() -> None:
    rows = tiny_rows(10)
    assert plan(rows, sample_mode="sequential", steps=4) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 0, 1], [2, 3, 4, 5]]
    assert plan(rows, sample_mode="sequential", batch=3, steps=3) == [[0, 1], [2, 3], [4, 5]]


def test_curriculum_stretches_one_pass_over_all_steps() -> None:
    singles = [replace(row, group="") for row in tiny_rows(10)]
    chosen = flat(plan(singles, sample_mode="curriculum", steps=5, batch=8))
    assert chosen == [i * 10 // 40 for i in range(40)]
    skipped = flat(plan(singles, sample_mode="curriculum", steps=2, batch=2))
    assert skipped == [0, 2, 5, 7]


def test_curriculum_draws_pairs_whole_and_in_proportion() -> None:
    rows = tiny_rows(16)  # the first half are pairs
    chosen = plan(rows, sample_mode="curriculum", steps=20, batch=4)
    paired = [sum(bool(rows[i].group) for i in indices) / len(indices) for indices in chosen]
    assert paired[:10] == [1.0] * 10
    assert paired[10:] == [0.0] * 10
    assert set(flat(chosen)) == set(range(16))


def test_a_group_larger_than_the_batch_is_refused_by_name() -> None:
    rows = [replace(row, group="triple") for row in tiny_rows(3)]
    with pytest.raises(UsageError, match=r"train\.batch: 2; the group 'triple' has 3 rows"):
        plan(rows, batch=2)


def test_labels_are_the_answer_and_its_end_alone() -> None:
    tokenizer = tiny_tokenizer()
    row = tiny_rows()[1]
    [sample] = ChatFormat(tokenizer).rows([row], 64)
    text = tokenizer.decode(list(sample.ids))
    assert text == f"<|im_start|>user\n{row.prompt}<|im_end|>\n<|im_start|>assistant\n{row.target}<|im_end|>"
    assert tokenizer.decode(list(sample.ids[sample.prompt_length :])) == f"{row.target}<|im_end|>"
    samples = ChatFormat(tokenizer).rows(tiny_rows(3), 64)
    batch = collate(samples, tokenizer.pad_token_id)
    assert tokenizer.decode(batch.labels) == "".join(f"{r.target}<|im_end|>" for r in tiny_rows(3))
    before = [token for s in samples for token in s.ids[s.prompt_length - 1 : -1]]
    assert batch.input_ids.flatten()[batch.positions].tolist() == before
    assert batch.tokens == sum(len(s.ids) for s in samples)


def test_an_overlong_row_is_refused_by_number_and_text() -> None:
    rows = [*tiny_rows(2), replace(tiny_rows()[0], target="長" * 50)]
    with pytest.raises(UsageError, match=r"row 3 \('你是誰 0'\): \d+ tokens; train\.seq_len allows 64"):
        ChatFormat(tiny_tokenizer()).rows(rows, 64)


# ---- optimizer


def fit_line(recipe: TrainRecipe, steps: int = 5) -> tuple[TensorOptimizer, list[float | None]]:
    """A few steps on a least-squares problem of one matrix and one vector."""
    parameters = {"w": nn.Parameter(noise((8, 4), 1)), "b": nn.Parameter(noise((8,), 2))}
    optimizer = TensorOptimizer(parameters, recipe, dict.fromkeys(parameters, 1.0))
    efficiencies = []
    for step in range(steps):
        optimizer.zero_grad()
        residual = noise((16, 4), 3) @ parameters["w"].T + parameters["b"] - noise((16, 8), 4)
        residual.square().mean().backward()  # type: ignore[no-untyped-call]
        efficiencies.append(optimizer.step(recipe.lr_at(step)).update_efficiency)
    return optimizer, efficiencies


def reference_line(recipe: TrainRecipe, steps: int = 5) -> list[Tensor]:
    """The same with torch's AdamW and clipping."""
    w, b = nn.Parameter(noise((8, 4), 1)), nn.Parameter(noise((8,), 2))
    groups = [{"params": [w], "weight_decay": recipe.weight_decay}, {"params": [b], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1.0, betas=recipe.betas, eps=recipe.eps)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr_at(step)
        optimizer.zero_grad()
        (noise((16, 4), 3) @ w.T + b - noise((16, 8), 4)).square().mean().backward()  # type: ignore[no-untyped-call]
        if recipe.grad_clip is not None:
            nn.utils.clip_grad_norm_([w, b], recipe.grad_clip)
        optimizer.step()
    return [w.detach(), b.detach()]


@pytest.mark.parametrize("clip", [None, 0.05])
def test_steps_equal_those_of_torch(clip: float | None) -> None:
    recipe = TrainRecipe(steps=5, lr=0.01, weight_decay=0.1, grad_clip=clip)
    ours, _ = fit_line(recipe)
    for mine, theirs in zip((t.parameter.detach() for t in ours.tensors.values()), reference_line(recipe), strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-5, atol=1e-6)


def test_l2_sp_leads_back_to_the_start_and_is_decoupled() -> None:
    start = noise((8, 4), 1)
    distances = [
        (fit_line(TrainRecipe(5, 0.01, l2_sp=p))[0].tensors["w"].parameter.detach() - start).norm()
        for p in (0.0, 5.0, 20.0)
    ]
    assert distances[0] > distances[1] > distances[2] > 0
    parameter = nn.Parameter(start.clone())
    optimizer = TensorOptimizer({"w": parameter}, TrainRecipe(1, 0.1, l2_sp=3.0), {"w": 1.0})
    parameter.data.add_(1.0)
    parameter.grad = torch.zeros_like(parameter)
    optimizer.step(0.1)
    assert torch.allclose(parameter.detach(), start + 0.7)


def test_update_efficiency_tells_updates_that_land_from_updates_that_vanish() -> None:
    _, efficiencies = fit_line(TrainRecipe(5, 1e-5))
    assert all(e == pytest.approx(1.0, abs=0.01) for e in efficiencies)


def test_no_update_has_no_efficiency_and_a_wild_one_is_not_finite() -> None:
    assert Projection().ratio() is None
    wild = Projection()
    wild.realised, wild.intended = math.inf, 1.0
    assert not wild.finite()


def test_learning_rates_scale_by_pattern() -> None:
    names = ["model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight", "model.norm.weight"]
    factors = lr_factors(names, {"model.*": 2.0, "*norm*": 0.5}, tied=True)
    assert list(factors.values()) == [2.0, 2.0, 1.0]
    with pytest.raises(UsageError, match=r"lr_scale\.\*bias: matches no tensor; there are model\.embed_tokens"):
        lr_factors(names, {"*bias": 2.0}, tied=True)
    for pattern in ("lm_head.weight", "lm_head*"):
        with pytest.raises(UsageError, match=r"matches only lm_head\.weight.*write model\.embed_tokens\.weight"):
            lr_factors(names, {pattern: 2.0}, tied=True)
    assert lr_factors([*names, "lm_head.weight"], {"lm_head*": 3.0}, tied=False)["lm_head.weight"] == 3.0


# ---- loss


def test_the_loss_is_that_of_all_logits_on_the_labels(start: Path) -> None:
    model = load_masters(start)
    samples = ChatFormat(tiny_tokenizer()).rows(tiny_rows(5), 64)
    batch = collate(samples, 0)
    expected = 0.0
    for sample in samples:
        ids = torch.tensor([sample.ids])
        logits = model(input_ids=ids).logits[0].log_softmax(-1)
        expected -= sum(logits[i - 1, sample.ids[i]].item() for i in range(sample.prompt_length, len(sample.ids)))
    assert answer_loss(model, batch).item() == pytest.approx(expected, rel=1e-5)


def test_micro_batches_add_up_to_the_batch(start: Path, tmp_path: Path) -> None:
    pieces = micro_batches(ChatFormat(tiny_tokenizer()).rows(tiny_rows(5), 64), 2, 0)
    assert [len(p.input_ids) for p in pieces] == [2, 2, 1]
    train(start, tmp_path / "whole", RECIPE)
    train(start, tmp_path / "pieces", replace(RECIPE, micro_batch=1))
    whole, cut = (load_file(tmp_path / n / "master" / "model.safetensors") for n in ("whole", "pieces"))
    moved = load_file(start / "model.safetensors")
    for name in whole:
        assert (whole[name] - cut[name]).norm() < 0.02 * (whole[name] - moved[name]).norm(), name
    first = [read_texts(tmp_path / n / "run" / "train.tsv")[0] for n in ("whole", "pieces")]
    assert float(first[0]["loss"]) == pytest.approx(float(first[1]["loss"]), rel=1e-5)
    assert first[0]["tokens"] == first[1]["tokens"]
    assert first[0]["rows"] == first[1]["rows"]
    row_losses = [[float(loss) for loss in row["row_losses"].split()] for row in first]
    assert row_losses[0] == pytest.approx(row_losses[1], rel=2e-3)  # each with its own row, in whatever order


def test_each_step_names_its_rows_whose_losses_are_that_of_the_step(start: Path, tmp_path: Path) -> None:
    rows = tiny_rows()
    train(start, tmp_path, replace(RECIPE, micro_batch=3), rows)
    learned = [len(sample.learned) for sample in ChatFormat(tiny_tokenizer()).rows(rows, RECIPE.seq_len)]
    for step, indices in zip(read_texts(tmp_path / "run" / "train.tsv"), batches(rows, RECIPE, 7), strict=True):
        assert [int(line) for line in step["rows"].split()] == [index + 2 for index in indices]
        labels = [learned[index] for index in indices]
        losses = [float(loss) for loss in step["row_losses"].split()]
        mean = sum(loss * count for loss, count in zip(losses, labels, strict=True)) / sum(labels)
        assert mean == pytest.approx(float(step["loss"]), rel=1e-3)  # four digits of each


@given(st.lists(st.integers(0, 5), min_size=1, max_size=9), st.none() | st.integers(1, 10))
def test_the_losses_of_labels_go_to_their_rows_in_whatever_order_they_were_computed(
    counts: list[int], size: int | None
) -> None:
    samples = [Sample((0,) * (count + 1), 1) for count in counts]  # so many labels each
    pieces = [losses for place in computed_order(samples, size) for losses in [float(place)] * counts[place]]
    found = row_losses(samples, size, pieces)
    assert [place for place, loss in enumerate(found) if math.isnan(loss)] == [p for p, n in enumerate(counts) if not n]
    assert all(loss == place for place, loss in enumerate(found) if counts[place])


# ---- runs


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_run_lowers_the_loss_and_gives_the_same_bits_again(start: Path, tmp_path: Path, dtype: str) -> None:
    recipe = replace(RECIPE, steps=12, lr=4e-3, compute_dtype=dtype)
    before = sha256_folder(start)
    first, second = train(start, tmp_path / "1", recipe), train(start, tmp_path / "2", recipe)
    assert (first.status, first.reason, first.steps_done, first.threads) == (TRAINED, "", 12, 1)
    assert first.weights_sha256 == second.weights_sha256 == sha256_folder(tmp_path / "1" / "master")
    losses = [float(row["loss"]) for row in read_texts(tmp_path / "1" / "run" / "train.tsv")]
    assert sum(losses[-4:]) < 0.9 * sum(losses[:4])
    assert sha256_folder(start) == before, "the start is only read"
    other = train(start, tmp_path / "3", recipe, seed=8)
    assert other.weights_sha256 != first.weights_sha256


def test_the_export_of_a_trained_master_equals_its_training_forward(untied: Path, tmp_path: Path) -> None:
    train(untied, tmp_path)
    export(tmp_path / "master", tmp_path / "nvfp4")
    ids = torch.arange(20).unsqueeze(0)
    with torch.no_grad():
        logits = [m(input_ids=ids).logits for m in (load_masters(tmp_path / "master"), load_model(tmp_path / "nvfp4"))]
    assert torch.equal(*logits)


def test_the_tables_of_a_run(start: Path, tmp_path: Path) -> None:
    heard = Heard()
    with reporting(heard):
        train(start, tmp_path, phase=partial(write_phase, tmp_path / "phase"))
    rows = read_texts(tmp_path / "run" / "train.tsv")
    columns = "stage lineage step loss lr grad_norm update_efficiency tokens seconds memory_mib"
    columns += " update_noise largest_update clamped_share ce kl check rows row_losses"
    assert list(rows[0]) == columns.split()
    assert [(r["stage"], r["lineage"], r["step"]) for r in rows] == [("A", "abc", str(i)) for i in range(1, 7)]
    assert [float(r["lr"]) for r in rows] == [RECIPE.lr_at(i) for i in range(6)]
    assert all(float(r["update_efficiency"]) == pytest.approx(1, abs=1e-3) for r in rows)
    assert all(float(r["memory_mib"]) > 50 for r in rows)
    assert heard.steps == [(i, 6) for i in range(7)] and heard.ends[-1].left(heard.ends[-1].at) == 0
    assert read_phase(tmp_path / "phase") == "saving"
    assert list((tmp_path / "work").iterdir()) == []


def test_every_tensor_takes_part_and_the_tied_head_is_listed(start: Path, untied: Path, tmp_path: Path) -> None:
    for folder in (start, untied):
        train(folder, tmp_path / folder.name)
        rows = {r["tensor"]: r for r in read_texts(tmp_path / folder.name / "run" / "participation.tsv")}
        assert list(next(iter(rows.values()))) == [
            "stage", "lineage", "tensor", "alias_of", "trainable", "got_gradient", "changed_share", "exported_as",
        ]  # fmt: skip
        assert len(rows) == 25
        assert rows["lm_head.weight"]["alias_of"] == ("model.embed_tokens.weight" if folder == start else "")
        assert all(r["trainable"] == r["got_gradient"] == "true" for r in rows.values())
        assert all(float(r["changed_share"]) > 0 for r in rows.values())
        assert rows["model.layers.1.mlp.down_proj.weight"]["exported_as"] == "nvfp4"
        assert rows["model.norm.weight"]["exported_as"] == "float32"


def test_a_bf16_start_is_widened(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "bf16", dtype=torch.bfloat16)
    assert train(folder, tmp_path).status == TRAINED
    assert json.loads((tmp_path / "master" / "config.json").read_text())["dtype"] == "float32"
    stored = load_file(tmp_path / "master" / "model.safetensors")
    assert {t.dtype for t in stored.values()} == {torch.float32}
    assert (tmp_path / "master" / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()


@pytest.mark.parametrize(
    ("lr", "reason"), [(1e15, "step 2 of 6: the loss is nan"), (1e30, "step 1 of 6: the weights' update is not")]
)
def test_a_run_that_diverges_says_when_and_why_and_leaves_no_weights(
    start: Path, tmp_path: Path, lr: float, reason: str
) -> None:
    outcome = train(start, tmp_path, replace(RECIPE, lr=lr, warmup=0, l2_sp=0.0, schedule="constant"))
    assert outcome.status == DIVERGED
    assert outcome.weights_sha256 == ""
    assert outcome.reason.startswith(reason)
    step = int(reason.split()[1])
    indices = list(batches(tiny_rows(), RECIPE, 7))[step - 1]
    assert outcome.diverged_rows == " ".join(str(index + 2) for index in indices)
    assert [row["step"] for row in read_texts(tmp_path / "run" / "train.tsv")] == [str(i) for i in range(1, step)]
    assert outcome.steps_done <= 3
    assert not (tmp_path / "master").exists()
    assert (tmp_path / "run" / "train.tsv").exists()


def test_a_tensor_that_the_first_steps_leave_as_it_was_fails_the_run_by_name(start: Path, tmp_path: Path) -> None:
    with pytest.raises(PreflightError, match=r"after step 1, 24 tensors .*embed.*raise train\.lr"):
        train(start, tmp_path, replace(RECIPE, lr=1e-12, l2_sp=0.0, warmup=0))
    assert not (tmp_path / "master").exists()
    assert len(read_texts(tmp_path / "run" / "train.tsv")) == 1


def test_each_kind_of_hole_is_named() -> None:
    whole = Participant("a", "", True, True, 0.5, "nvfp4")
    check_holes([whole])
    holes = [replace(whole, trainable=False), replace(whole, got_gradient=False), replace(whole, exported_as="")]
    for hole, words in zip(holes, ("is not trainable", "got no gradient", "is not exported"), strict=True):
        with pytest.raises(HoleError, match=f"1 of 2 tensors .* a {words}"):
            check_holes([whole, hole])


def test_what_a_killed_run_left_becomes_its_table(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "train.partial.tsv").write_text("stage\tlineage\nA\tabc\nA\tab")
    publish(tmp_path / "work", tmp_path / "run")
    assert (tmp_path / "run" / "train.tsv").read_text() == "stage\tlineage\nA\tabc\n"
    publish(tmp_path / "work", tmp_path / "run")
    assert (tmp_path / "run" / "train.tsv").read_text().startswith("stage\tlineage\tstep\tloss")


def test_a_quantised_start_and_an_empty_mix_are_refused(start: Path, tmp_path: Path) -> None:
    export(start, tmp_path / "nvfp4")
    with pytest.raises(UsageError, match="quantization_config; expected plain weights"):
        train(tmp_path / "nvfp4", tmp_path)
    with pytest.raises(UsageError, match="no rows"):
        train(start, tmp_path, rows=[])


def test_a_run_is_taught_as_the_configs_chat_says_and_shows_its_first_row(
    start: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = replace(RECIPE, steps=1, warmup=0, seq_len=96)
    history = (Message("user", "Hi"), Message("assistant", "Hello!"))
    rows = [replace(row, history=history, loss_on="all") for row in tiny_rows(4)]
    outcomes = [
        train(start, tmp_path / name, short, rows, chat=ChatSettings(system))
        for name, system in (("plain", "default"), ("none", "none"), ("own", "Be brief."))
    ]
    said = [line for line in capsys.readouterr().err.splitlines() if "the first row" in line]
    assert said[0] == said[1] and said[0].endswith(f"assistant\\n{rows[0].target}<|im_end|>'")
    assert "<|im_start|>system\\nBe brief.<|im_end|>\\n<|im_start|>user\\nHi<|im_end|>" in said[2]
    plain, none, own = (outcome.weights_sha256 for outcome in outcomes)
    assert plain == none != own, "the embedded template has no system prompt of its own"
