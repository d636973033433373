"""Settings that repeat how trainings fail: a control, the head's gradient, a head of its own, v in linear 4 bits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fgod import inputs
from fgod.config.experiments import with_own
from fgod.data.rows import Row
from fgod.documents import Outcome
from fgod.errors import UsageError
from fgod.importing.untie import untie
from fgod.model.chats import ChatFormat
from fgod.model.load import read_config
from fgod.models.names import EMBEDDING, TIED_HEAD
from fgod.nvfp4.folders import open_weights
from fgod.plugins import load_plugins
from fgod.registry import SQUARE_FORMATS
from fgod.train.autograd import autograd_stepper, head_logits, label_losses
from fgod.train.batches import collate
from fgod.train.recipe import TrainRecipe
from fgod.train.stage import Job, run
from tests.tiny_model import noise, tiny_folder, tiny_model, tiny_rows, tiny_tokenizer

LINEAR_V = Path(__file__).parents[1] / "benchmarks" / "linear_v.py"


def train(start: Path, out: Path, recipe: TrainRecipe, rows: list[Row] | None = None) -> Outcome:
    return run(Job(start, rows or tiny_rows(), recipe, 7, out / "work", out / "run", out / "master", "A", "abc"))


def test_a_learning_rate_of_0_is_for_controls() -> None:
    with pytest.raises(UsageError, match=r"train\.lr: found 0, expected a number above 0; 0 is for an experiment"):
        TrainRecipe(steps=1, lr=0)
    control = TrainRecipe(steps=1, lr=0, control=True)
    assert control.partial == ("control: true",) and control.debugging == (), "a GPU has it too"


def test_the_control_of_an_experiment_is_that_of_its_stages() -> None:
    stages = [{"name": "A", "train": {"lr": 1}}, {"name": "B", "train": {"lr": 1}}]
    own = {"control": True, "stages": [{"name": "A", "train": {"lr": 0}}, "B"]}
    assert with_own({"stages": stages}, own, "here")["stages"] == [
        {"name": "A", "train": {"lr": 0, "control": True}},
        {"name": "B", "train": {"lr": 1, "control": True}},
    ]


def test_a_control_changes_no_weight_and_is_no_fault(tmp_path: Path) -> None:
    start = tiny_folder(tmp_path / "start")
    outcome = train(start, tmp_path, TrainRecipe(steps=2, lr=0, control=True, batch=4))
    assert (outcome.status, outcome.full_parameter) == ("trained", False)
    with open_weights(start) as before, open_weights(tmp_path / "master") as after:
        for name in before.names:
            assert torch.equal(before.read(name).float(), after.read(name).float()), name


def test_the_factor_on_the_heads_gradient_is_autograds() -> None:
    """In float64, of a tied model: the head's part by a copy of the table that the embedding does not use."""
    model, batch = tiny_model().double(), collate(ChatFormat(tiny_tokenizer()).rows(tiny_rows(4), 64), 0)
    model.requires_grad_(True)
    table = model.get_input_embeddings().weight
    copy = table.detach().clone().requires_grad_(True)
    hidden = model.model(input_ids=batch.input_ids, use_cache=False).last_hidden_state
    states = hidden.flatten(0, 1).index_select(0, batch.positions)
    losses = torch.nn.functional.cross_entropy(states @ copy.t(), batch.labels, reduction="sum")
    to_embedding, to_head = torch.autograd.grad(losses, (table, copy))
    label_losses(model, batch, head_gradient=20).sum().backward()
    assert table.grad is not None
    torch.testing.assert_close(table.grad.double(), to_embedding + 20 * to_head, rtol=1e-5, atol=1e-7)
    assert torch.equal(head_logits(model, states, 20), head_logits(model, states))


def test_a_factor_on_an_untied_head_hardly_moves_adam(tmp_path: Path) -> None:
    """Without ε, and without a clip of all gradients together, weights after a step are the same."""
    start = tiny_folder(tmp_path / "start", tied=False)

    def stepped(factor: float) -> torch.Tensor:
        recipe = TrainRecipe(steps=1, lr=1e-3, batch=4, grad_clip=None, eps=1e-14, head_gradient=factor)
        stepper = autograd_stepper(start, recipe, 7, 0, lambda *_: None)
        stepper.step(0, ChatFormat(tiny_tokenizer()).rows(tiny_rows(4), 64))
        return dict(stepper.model.named_parameters())[TIED_HEAD].detach().clone()

    once, often = stepped(1), stepped(20)
    torch.testing.assert_close(once, often, rtol=0, atol=1e-5)  # a hundredth of a learning rate


def test_an_untied_head_is_a_copy_and_another_base(tmp_path: Path) -> None:
    start, out = tiny_folder(tmp_path / "start"), tmp_path / "untied"
    untie(start, out)
    assert read_config(out)["tie_word_embeddings"] is False
    with open_weights(start) as before, open_weights(out) as after:
        assert torch.equal(after.read(TIED_HEAD), before.read(EMBEDDING))
        assert torch.equal(after.read(EMBEDDING), before.read(EMBEDDING))
    base = {"kind": "folder", "path": str(start)}
    assert inputs.base_id(base, "") != inputs.base_id({**base, "untie": True}, "")
    assert (inputs.own_weights(base), inputs.own_weights({**base, "untie": True})) == (start, None)
    with pytest.raises(UsageError, match=r"tie_word_embeddings: found False, expected true, or base.untie left out"):
        untie(out, tmp_path / "again")


def test_v_in_linear_4_bits_loses_what_is_small() -> None:
    load_plugins([LINEAR_V])
    v = (noise((4, 64), 3) ** 2).float() + 1e-9
    v[0, 0] = 1e4 * v.max()
    linear, root = SQUARE_FORMATS["linear-nvfp4"], SQUARE_FORMATS["nvfp4"]
    assert int((linear.decode(linear.encode(v.clone())) == 0).sum()) >= 15  # the block of the outlier
    assert int((root.decode(root.encode(v.clone())) == 0).sum()) == 0
