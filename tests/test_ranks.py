"""One run on several GPUs, on the CPU by gloo: two ranks give one's numbers; who fails first is named; all end."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import time
import weakref
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure
from transformers import PreTrainedModel

from fgod.checkpoints import gpus as gpus_sharing
from fgod.checkpoints import saved_step
from fgod.cli import main
from fgod.config.models import Guard
from fgod.errors import FgodError, UsageError
from fgod.guard.command import options
from fgod.layout import Work
from fgod.model.chats import ChatFormat, Sample
from fgod.model.random import model_config
from fgod.models.architecture import tensors_of
from fgod.models.names import EMBEDDING
from fgod.nvfp4.codec import BLOCK_SCALES, device_global_scale, fake_quantise
from fgod.train import checkpoint
from fgod.train.batches import collate
from fgod.train.device.head import chunk_width
from fgod.train.device.plan import CUDA_WORKSPACE, layer_temporaries, predict_on_device
from fgod.train.device.trainer import device_stepper
from fgod.train.device.weights import Masters, as_module
from fgod.train.memory import step_temporaries
from fgod.train.optimizer import TensorOptimizer
from fgod.train.ranks import optimizer as rank_optimizer
from fgod.train.ranks import trainer as rank_trainer
from fgod.train.ranks.beats import Beat, Hangs, read_beats
from fgod.train.ranks.group import Ranks
from fgod.train.ranks.launch import HangWatch, error_of, leave_error, root, run_ranks
from fgod.train.ranks.packed import packed, packed_bytes, unpacked
from fgod.train.ranks.plan import predict_on_ranks
from fgod.train.ranks.shards import bounds, split
from fgod.train.ranks.trainer import Asked, RankStepper, inputs_of_rank, rank_stepper
from fgod.train.recipe import TrainRecipe
from fgod.train.stage import TRAINED, Job, run
from fgod.train.stepper import Stepper
from fgod.train.stored import read_all
from tests.running_ranks import pids_of_ranks, start_ranks
from tests.test_device import soft_samples
from tests.tiny_model import noise, tiny_folder, tiny_rows, tiny_tokenizer

CPU = torch.device("cpu")
STEPS = 6
WHO = checkpoint.Identity("test", "cpu")


@dataclass(frozen=True)
class Variant:
    """A recipe, and on what: a tied model, rows with a teacher, gradients that travel as factors."""

    recipe: dict[str, Any]
    tied: bool = True
    soft: bool = False
    factors: bool = False

    def made(self) -> TrainRecipe:
        return TrainRecipe.from_dict({"steps": STEPS, "lr": 1e-3, "batch": 5, **self.recipe})

    def samples(self) -> list[Sample]:
        return soft_samples(6, 8) if self.soft else ChatFormat(tiny_tokenizer()).rows(tiny_rows(8), 64)


EXACT = {"memory": "80gb", "master_dtype": "fp32", "m_dtype": "fp32", "v_dtype": "fp32"}
VARIANTS = {
    "in the backward pass": Variant(EXACT),
    "as factors": Variant(EXACT, factors=True),
    "after it, in pieces, with a teacher": Variant({"micro_batch": 3, "kl": {}}, tied=False, soft=True),
    "packed": Variant({"memory": "80gb", "compute_dtype": "bfloat16"}),
    "packed again": Variant({"memory": "80gb", "compute_dtype": "bfloat16"}),
}


@dataclass
class Found:
    """losses of all steps; weights at the end; of ranks, whether a checkpoint gave both of them back what they had, and
    how many parts of the whole model preflight made, and left."""

    losses: list[float]
    weights: dict[str, Tensor]
    came_back: bool = True
    whole_made: int = 0
    whole_left: int = 0


def start_of(folder: Path, variant: Variant) -> Path:
    return folder / ("tied" if variant.tied else "untied")


def steps_of(stepper: Stepper, samples: list[Sample]) -> Found:
    """Some steps, of batches of several sizes."""
    stepper.preflight([list(sample.ids[: sample.prompt_length]) for sample in samples[:2]])
    results = []
    for step in range(STEPS):
        stepper.launch(step, samples[step % 3 : step % 3 + 3 + step % 3])
        results += stepper.completed(False)
    results += stepper.completed(True)
    masters = stepper.masters
    if not masters.writes:
        masters.help_read()
        return Found([row.loss for row, _ in results], {})
    return Found([row.loss for row, _ in results], {name: value.clone() for name, value in read_all(masters)})


class Whole:
    """The masters of a whole model, its modules and their parameters, held by nothing but weak references."""

    def __init__(self) -> None:
        self.parts: list[weakref.ref[Any]] = []

    def as_module(self, masters: Masters, compute_dtype: str, block_scales: str) -> PreTrainedModel:
        """In place of `as_module`, which it calls."""
        model = as_module(masters, compute_dtype, block_scales)
        self.parts += map(weakref.ref, (masters, *masters.tensors.values(), *model.modules(), *model.parameters()))
        return model


def left_by_preflight(stepper: Stepper, samples: list[Sample]) -> tuple[int, int]:
    """How many parts of the whole model a preflight makes and leaves, where Python looks for circles only when it is
    told to."""
    whole = Whole()
    gc.disable()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(rank_trainer, "as_module", whole.as_module)
            stepper.preflight([list(sample.ids[: sample.prompt_length]) for sample in samples[:2]])
        return len(whole.parts), sum(part() is not None for part in whole.parts)
    finally:
        gc.enable()


def came_back(ranks: Ranks, stepper: RankStepper, again: RankStepper, work: Path) -> bool:
    """Whether a checkpoint brings a rank of another process group of as many to the same bits."""
    checkpoint.save(work, stepper.optimizer, WHO, {})
    ranks.all_here()
    checkpoint.restore(work, again.optimizer, WHO)
    pairs = zip(stepper.optimizer.tensors.values(), again.optimizer.tensors.values(), strict=True)
    same = all(
        torch.equal(a.weight, b.weight) and all(
            torch.equal(x.view(torch.uint8), y.view(torch.uint8))
            for name in a.states
            for x, y in zip(a.states[name].tensors, b.states[name].tensors, strict=True)
        )
        for a, b in pairs
    )  # fmt: skip
    return same and torch.equal(stepper.optimizer.whole_amaxes, again.optimizer.whole_amaxes)


def rank_of_two(rank: int, folder: Path) -> None:
    """What one of two processes does with all variants."""
    torch.set_num_threads(1)
    ranks = Ranks.join(dist.FileStore(str(folder / "store"), 2), rank, 2, CPU, 60)
    less = rank_optimizer.factors_are_less
    for number, variant in enumerate(VARIANTS.values()):
        rank_optimizer.factors_are_less = (lambda *_: True) if variant.factors else less
        start, recipe = start_of(folder, variant), variant.made()
        one, again = (rank_stepper(ranks, Asked(start, recipe, 1, 0, lambda _: None, print)) for _ in range(2))
        made, left = left_by_preflight(again, variant.samples())
        found = steps_of(one, variant.samples())
        found.whole_made, found.whole_left = made, left
        found.came_back = came_back(ranks, one, again, folder / f"work{number}")
        torch.save(found, folder / f"{number}-{rank}.pt")
    ranks.leave()


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what two ranks came to."""
    folder = tmp_path_factory.mktemp("ranks")
    for tied in (True, False):
        tiny_folder(folder / ("tied" if tied else "untied"), tied=tied)
    mp.start_processes(rank_of_two, (folder,), 2, start_method="fork")
    return folder


def found_by(folder: Path, name: str, rank: int = 0) -> Found:
    found: Found = torch.load(folder / f"{list(VARIANTS).index(name)}-{rank}.pt", weights_only=False)
    return found


@pytest.mark.parametrize("name", [name for name in VARIANTS if name != "packed again"])
def test_two_ranks_learn_what_one_does(two: Path, name: str) -> None:
    variant = VARIANTS[name]
    alone = device_stepper(CPU, start_of(two, variant), variant.made(), 1, 0, lambda _: None, print)
    one, both = steps_of(alone, variant.samples()), found_by(two, name)
    rounded = variant.recipe.get("compute_dtype") == "bfloat16"
    assert both.losses == pytest.approx(one.losses, rel=0.01 if rounded else 1e-5)
    assert both.losses == found_by(two, name, 1).losses, "each rank says the loss of the whole batch"
    for tensor, weight in one.weights.items():
        near = 2e-2 if rounded else 1e-5
        torch.testing.assert_close(both.weights[tensor].float(), weight.float(), atol=near, rtol=near)
        assert not torch.equal(weight, torch.zeros_like(weight))


def test_as_many_ranks_give_the_same_bits(two: Path) -> None:
    one, other = (found_by(two, name) for name in ("packed", "packed again"))
    assert one.losses == other.losses
    assert all(torch.equal(weight, other.weights[name]) for name, weight in one.weights.items())


@pytest.mark.parametrize("name", VARIANTS)
def test_nothing_of_the_whole_model_is_left_after_preflight(two: Path, name: str) -> None:
    first, second = (found_by(two, name, rank) for rank in range(2))
    assert first.whole_made > 10 and first.whole_left == 0
    assert second.whole_made == 0, "the first rank alone has it"


@pytest.mark.parametrize("number", range(len(VARIANTS)))
def test_a_checkpoint_of_two_is_whole_for_two_and_for_one(two: Path, number: int) -> None:
    name, variant = list(VARIANTS.items())[number]
    assert found_by(two, name).came_back and found_by(two, name, 1).came_back
    alone = device_stepper(CPU, start_of(two, variant), variant.made(), 1, 0, lambda _: None, print)
    assert checkpoint.restore(two / f"work{number}", alone.optimizer, WHO) == {}
    assert alone.optimizer.steps_done == STEPS and not alone.optimizer.unchanged()
    for tensor, weight in found_by(two, name).weights.items():
        assert torch.equal(dict(read_all(alone.masters))[tensor], weight)


# ---- what a rank has


@pytest.mark.parametrize("states", [("fp32", "fp32"), ("int8", "uint8"), ("nvfp4", "nvfp4")])
def test_rows_of_a_tensor_step_as_in_the_whole(states: tuple[str, str]) -> None:
    """To the bit, rounded stochastically: random words go by the place in the whole tensor."""
    recipe = TrainRecipe(
        steps=3, lr=1e-2, memory="80gb", m_dtype=states[0], v_dtype=states[1], grad_clip=None, step_chunk_rows=2
    )
    whole, gradient = (noise((6, 64), 1) * 0.1).bfloat16(), noise((6, 64), 2)
    parts = [whole[:2].clone(), whole[2:].clone()]
    steppers = [TensorOptimizer({"a": whole}, recipe, {"a": 1.0}, seed=5)]
    for first, part in zip((0, 2), parts, strict=True):
        steppers.append(TensorOptimizer({"a": part}, recipe, {"a": 1.0}, seed=5, elements={"a": first * 64}))
    for _ in range(3):
        for optimizer, grad in zip(steppers, (gradient, gradient[:2], gradient[2:]), strict=True):
            optimizer.begin(1e-2)
            optimizer.on_grad("a", grad)
            optimizer.finish()
    assert torch.equal(whole, torch.cat(parts))


@pytest.mark.parametrize("rule", BLOCK_SCALES)
def test_a_weight_travels_to_the_bit(rule: str) -> None:
    whole = noise((6, 48), 3)
    scale = device_global_scale(whole.abs().amax())
    sent = torch.stack([packed(part, scale, rule) for part in whole.split(2)])
    assert sent.shape == (3, packed_bytes(2, 48)) and sent.element_size() * sent.numel() == 4.5 / 8 * whole.numel()
    found = unpacked(sent, 48, scale, torch.bfloat16)
    assert torch.equal(found, fake_quantise(whole, scale, block_scales=rule).bfloat16())


def test_ranks_own_every_row_once() -> None:
    shards = split(model_config("tiny"), "bf16", 4, "tiny")
    for name, tensor in shards.whole.tensors.items():
        if tensor.ndim > 1:
            rows = [row for rank in range(4) for row in range(len(tensor))[shards.rows(name, rank)]]
            assert rows == list(range(len(tensor))), name
    owned = [shards.own(rank, torch.device("meta")) for rank in range(4)]
    matrices = [sum(t.numel() for t in one.tensors.values() if t.ndim > 1) for one in owned]
    assert len(set(matrices)) == 1 and 4 * matrices[0] == sum(
        t.numel() for t in shards.whole.tensors.values() if t.ndim > 1
    )
    assert [bounds(10, rank, 4) for rank in range(4)] == [(0, 3), (3, 6), (6, 9), (9, 10)]
    with pytest.raises(UsageError, match=r"found 3, which does not divide the 256 rows of model.layers"):
        split(model_config("tiny"), "bf16", 3, "tiny")


def test_the_rows_of_a_batch_are_shared_out() -> None:
    batch = collate(ChatFormat(tiny_tokenizer()).rows(tiny_rows(3), 64), 0)
    parts = [inputs_of_rank(batch, rank, 2, 5, 0, None) for rank in range(2)]
    assert torch.equal(torch.cat([inputs.ids for inputs, _ in parts])[:3], batch.input_ids)
    (first, real), (second, _) = parts
    assert torch.equal(first.labels[real], batch.labels) and first.weights.sum() == len(batch.labels)
    assert torch.equal(first.labels, second.labels) and torch.equal(first.weights, second.weights)
    each = len(first.labels) // 2
    own = torch.cat([first.positions[: int(first.weights[:each].sum())], batch.positions[:0]])
    assert torch.equal(own, batch.positions), "all three rows are the first rank's: its share of five"
    assert not second.weights[each:].any()


# ---- what is refused, and what is part of a lineage


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"memory": "80gb", "offload_moments": True}, "offload_moments: found true with gpus: 2; expected false"),
        ({"check": {"until": {"identity": ">=0.9"}}}, "check: found a table with gpus: 2; expected null"),
        ({"master_dtype": "nvfp4"}, "master_dtype: found nvfp4 with gpus: 2; expected fp32 or bf16"),
        ({"train_last_layers": 1}, "train_last_layers: a debugging mode with gpus: 2"),
        ({"batch": 1}, "batch: found 1 with gpus: 2; expected at least a row for each"),
    ],
)
def test_what_several_gpus_cannot_do_is_refused(keys: dict[str, Any], said: str) -> None:
    TrainRecipe.from_dict({"steps": 1, "lr": 1e-3, **keys})
    with pytest.raises(UsageError, match=said):
        TrainRecipe.from_dict({"steps": 1, "lr": 1e-3, "gpus": 2, **keys})


def test_one_gpu_is_no_part_of_a_lineage() -> None:
    recipe = TrainRecipe(steps=1, lr=1e-3)
    assert "gpus" not in recipe.to_dict() and replace(recipe, gpus=2).to_dict()["gpus"] == 2


def test_how_long_ranks_wait_is_told_to_the_trainer_alone() -> None:
    assert "rank" not in options({"limit_gb": 1.0, "rank_secs": Guard().rank_secs})


def test_memory_is_that_of_each_gpu() -> None:
    recipe = TrainRecipe(steps=1, lr=1e-3, batch=8, memory="80gb", device="cuda", compute_dtype="bfloat16")
    config = model_config("qwen3-4b")
    one = predict_on_device(config, recipe, 8, 512, 2048)
    halves = predict_on_ranks(config, recipe, 2, 8, 512, 2048)
    assert halves.weights == one.weights // 2 and halves.total < 0.65 * one.total
    large = predict_on_ranks(model_config("qwen3-14b"), recipe, 2, 8, 512, 2048)
    assert 14.7e9 < large.weights < 14.9e9, "half of 14.8 billion parameters of two bytes"


@pytest.mark.parametrize(
    ("shape", "gpus", "rows", "width", "measured"),
    [
        ("qwen3-4b", 2, 2, 96, 8.76), ("qwen3-4b", 2, 8, 512, 9.55), ("qwen3-4b", 2, 16, 512, 10.39),
        ("qwen3-4b", 4, 4, 96, 4.64), ("qwen3-4b", 4, 8, 512, 4.99), ("qwen3-4b", 4, 32, 512, 6.28),
        ("qwen3-14b", 2, 8, 512, 33.23), ("qwen3-14b", 2, 16, 512, 34.00),
        ("qwen3-14b", 4, 8, 512, 17.01), ("qwen3-14b", 4, 32, 512, 19.31),
    ],
)  # fmt: skip
def test_memory_is_predicted_as_it_was_measured(shape: str, gpus: int, rows: int, width: int, measured: float) -> None:
    """GiB of torch's peak on H100s (docs/several-gpus.md): at least that, and at most a tenth more."""
    recipe = TrainRecipe(
        steps=1, lr=1e-5, batch=rows, memory="80gb", device="cuda", compute_dtype="bfloat16", length_bucket=32
    )
    predicted = predict_on_ranks(model_config(shape), recipe, gpus, rows, width, rows * (width - width // 2))
    assert measured < predicted.total / 2**30 < 1.1 * measured


def test_a_step_after_the_backward_pass_has_for_itself_what_waited_for_it() -> None:
    """Many labels in short rows of a narrow model: the head has more than a layer and what travels."""
    gpus, rows, width, labels, item = 4, 32, 16, 256, 2
    config = model_config("qwen2.5-0.5b")
    recipe = TrainRecipe(steps=1, lr=1e-5, batch=rows, device="cuda", compute_dtype="bfloat16", m_dtype="int8")
    predicted = predict_on_ranks(config, recipe, gpus, rows, width, labels)
    shapes = tensors_of(config, "config")
    table, parameters = prod(shapes[EMBEDDING]), sum(map(prod, shapes.values()))
    travelling = predicted.gradients - table * item // gpus - 4 * parameters // gpus
    chunk = chunk_width(labels, -(-config["vocab_size"] // gpus))
    head = labels * (chunk * 2 * item + config["hidden_size"] * (item + 12))
    assert predicted.logits == head - travelling - layer_temporaries(config, item, rows // gpus * width) > 0
    own = step_temporaries(recipe, shapes.values(), "cuda")
    assert predicted.activations + predicted.logits + predicted.workspace == CUDA_WORKSPACE + own
    assert "logits of the labels, beyond what a layer needs" in predicted.text()


# ---- ends


def test_a_rank_that_is_behind_or_shows_nothing_hangs() -> None:
    hangs = Hangs(10)
    assert hangs.judge(0, {0: Beat(1, 5, 0), 1: Beat(2, 5, 0)}) is None
    assert hangs.judge(9, {0: Beat(1, 6, 9), 1: Beat(2, 5, 9)}) is None
    assert hangs.judge(11, {0: Beat(1, 6, 11), 1: Beat(2, 5, 11)}) == 1, "others are further for ten seconds"
    frozen = Hangs(10)
    seen = [frozen.judge(t, {0: Beat(1, 5, 0), 1: Beat(2, 5, t)}) for t in (0, 9, 10)]
    assert seen == [None, None, 0], "its process stands still"
    same = Hangs(10)
    assert [same.judge(t, {0: Beat(1, 5, 0), 1: Beat(2, 5, 0)}) for t in (0, 100)] == [None, None]


def test_the_clock_of_a_file_server_is_not_read(tmp_path: Path) -> None:
    """One that goes an hour wrong, for a rank that writes and for one that does not any more."""
    hangs, begin = Hangs(1), time.time()
    for t, (lives, gone) in enumerate([(0, 0), (1, 0), (2, 0)]):
        for rank, (writings, wrong) in enumerate([(lives, -3600), (gone, 3600)]):
            file = tmp_path / f"{rank}.beat"
            file.write_text(f"{rank} 5 {writings}\n")
            os.utime(file, (begin + wrong, begin + wrong))
        assert hangs.judge(t, read_beats(tmp_path)) == (None if t < 1 else 1)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("hang", "rank 1 of 2 hung: the others waited 1 s for it"),
        ("fail", "rank 1 of 2 failed with exit code 3, see above; all ranks were ended"),
    ],
)
def test_the_rank_that_fails_is_named(how: str, said: str, tmp_path: Path) -> None:
    begin = time.monotonic()
    with pytest.raises(FgodError, match=said):
        run_ranks("tests.failing_rank", [how, str(tmp_path / "ranks")], 2, tmp_path / "ranks", 1)
    assert time.monotonic() - begin < 30
    pids = [int(path.read_text().split()[0]) for path in (tmp_path / "ranks").glob("*.beat")]
    assert len(pids) == 2 and not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_a_rank_that_ends_before_it_is_killed_did_not_hang(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    (tmp_path / "0.beat").write_text(f"{os.getpid()} 5 0\n")
    (tmp_path / "1.beat").write_text(f"{gone.pid} 3 0\n")
    with HangWatch(tmp_path, 0.1) as watch:
        time.sleep(1.5)
        assert watch.is_alive() and not watch.found


def test_who_failed_first_is_told_from_how_ranks_ended(tmp_path: Path) -> None:
    def ended(rank: int, code: int) -> ProcessFailure:
        return ProcessFailure(rank, 1, code, "")

    by_us, missed, crashed = ended(0, -signal.SIGTERM), ended(1, 1), ended(2, -signal.SIGSEGV)
    assert root({0: by_us, 1: missed, 2: crashed}, ()) == (2, crashed)
    assert root({0: by_us, 1: missed}, ()) == (1, missed)
    assert root({0: by_us, 1: missed, 2: crashed}, {0}) == (0, by_us), "a rank that hung was killed by us too"
    leave_error(tmp_path, 1, UsageError("not with me"))
    found = error_of(tmp_path, 1, missed, 2, False, 1)
    assert isinstance(found, UsageError) and str(found) == "rank 1 of 2: not with me"
    leave_error(tmp_path, 0, FgodError("nor with me"))
    assert str(error_of(tmp_path, 1, missed, 2, False, 1)) == "nor with me", "what the first rank says is said of all"


def test_a_killed_rank_ends_all_and_one_gpu_goes_on(two: Path, tmp_path: Path) -> None:
    keys = {"steps": 60, "lr": 1e-3, "batch": 4, "memory": "80gb", "gpus": 2}
    process = start_ranks(tmp_path, two / "tied", keys)
    pids = pids_of_ranks(tmp_path / "work")
    begin = time.monotonic()
    os.kill(pids[1], signal.SIGKILL)
    said = process.communicate()[1]
    assert process.returncode == 1 and "fgod: rank 1 of 2 was ended by SIGKILL; all ranks were ended" in said
    assert time.monotonic() - begin < 10 and not any(Path(f"/proc/{pid}").exists() for pid in pids)

    done, out = saved_step(tmp_path / "work"), tmp_path / "out"
    recipe_of_two = TrainRecipe.from_dict(keys)
    job = Job(two / "tied", tiny_rows(), recipe_of_two, 1, tmp_path / "work", out / "run", out / "master", "A", "abc")
    ended = run(job)
    assert (ended.status, ended.steps_done, ended.resumed_at, ended.gpus) == (TRAINED, 60, (done,), (2, 1))


def test_a_stopped_run_goes_on_with_as_many_gpus_as_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = {"train": {"steps": 9, "lr": 1e-3, "batch": 4, "gpus": 2}}
    record = tmp_path / "results" / "runs" / "A" / "abcdefabcdef" / "recipe.json"
    record.parent.mkdir(parents=True)
    record.write_text(json.dumps(recipe))
    work = Work(tmp_path / "artifacts" / "work" / "abcdefabcdef")
    assert refused_by("resume", "A", "--gpus", "1") and "stopped run with a checkpoint" in capsys.readouterr().err
    (work.folder / "checkpoint-00000005").mkdir(parents=True)
    assert gpus_sharing(work, recipe) == 2
    assert refused_by("resume", "A", "--gpus", "8") and "batch: found 4 with gpus: 8" in capsys.readouterr().err
    assert not main(["resume", "A@abc", "--gpus", "4"])
    assert "A@abcdefabcdef goes on after step 5 with gpus: 4" in capsys.readouterr().out
    assert gpus_sharing(work, recipe) == 4


def refused_by(*words: str) -> bool:
    """Whether a command line is refused as a wrong one."""
    with pytest.raises(SystemExit) as ended:
        main(list(words))
    return ended.value.code == 2
