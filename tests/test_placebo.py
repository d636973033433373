"""The placebo of a fit: its runs, and its rows with the base's own answers."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from fgod import config as settings
from fgod.chain import Chain, Inputs, interpolated
from fgod.chat import Chat, ChatSettings
from fgod.cli.data import Placebo
from fgod.cli.work.worker import Worker
from fgod.data.rows import BASE, CONFIG, NO_SYSTEM, USER, Message, Row, read_rows, write_rows
from fgod.decisions import ACCEPTED
from fgod.errors import FgodError, UsageError
from fgod.guard import Limits
from fgod.layout import PLACEBO
from fgod.model.chats import ChatFormat
from fgod.model.generate import greedy
from fgod.model.load import load_model
from fgod.placebo import compared_runs, placebo_runs, tuned_mix
from fgod.placebo_rows import EMPTY, SHORTENED, placebo_rows, taught_chats
from fgod.recipes import PLACEBO as KEY
from fgod.system.files import digest
from tests.mini import ROOT
from tests.tiny_model import tiny_folder, tiny_rows

INPUTS = Inputs("b" * 12, "r" * 12, "s" * 64, {})
ASKED = {"base": "b" * 12, "max_new_tokens": 24, "device": "cpu"}


@pytest.fixture
def chain(monkeypatch: pytest.MonkeyPatch) -> Chain:
    monkeypatch.chdir(ROOT)
    return Chain(settings.load(Path("config.yaml")), INPUTS)


# ------------------------------------------------------------------------------------------------------------ runs


def test_a_placebo_is_the_chain_itself_but_for_who_answers(chain: Chain) -> None:
    runs = chain.fit([]).runs
    found = placebo_runs(runs, ASKED)
    assert list(found) == list(runs)
    for run, placebo in found.items():
        ours, theirs = json.loads(placebo.recipe), json.loads(run.recipe)
        asked = ours["mix"].pop(KEY)
        assert asked == {**ASKED, "seq_len": theirs["train"]["seq_len"]}
        assert ours.pop("starts_from") == (placebo.parent.lineage if placebo.parent else "b" * 12)
        theirs.pop("starts_from")
        assert ours == theirs, "rows, order, seed, steps, rates and rehearsal are the same"
        assert placebo.mix_id == digest(json.loads(placebo.mix_spec)) + PLACEBO
        assert tuned_mix(json.loads(placebo.mix_spec)) == run.mix_id
    assert [p.parent for p in found.values()] == [None, *list(found.values())[:-1]]
    assert not {p.lineage for p in found.values()} & {run.lineage for run in runs}


def test_points_between_have_their_placebo_at_the_same_alpha(chain: Chain) -> None:
    first, second, *_ = chain.fit([]).runs
    between = interpolated(first, 0.5)
    found = placebo_runs([between, replace(second, parent=between)], ASKED)
    assert list(found)[:2] == [first, between], "what is trained behind the point is trained for the placebo too"
    point = found[between]
    assert point.alpha == 0.5 and point.trained == found[first]
    assert json.loads(list(found.values())[2].recipe)["starts_from"] == point.lineage


def test_the_accepted_fit_is_compared_and_fit_0_without_one(chain: Chain) -> None:
    first = chain.fit([]).runs
    collapsed = chain.walk(lambda run: "collapsed" if run == first[1] else ACCEPTED)
    assert compared_runs(collapsed) == collapsed.candidate != first
    assert compared_runs(chain.walk(lambda run: "diverged")) == first[:1]


def test_a_stage_that_ends_by_what_it_has_learned_has_no_placebo(chain: Chain) -> None:
    run = chain.fit([]).runs[0]
    recipe = json.loads(run.recipe)
    recipe["train"]["check"] = {"until": {"identity": ">=0.9"}}
    with pytest.raises(UsageError, match=f"train.check in stage {run.stage}"):
        placebo_runs([replace(run, recipe=json.dumps(recipe))], ASKED)


# ------------------------------------------------------------------------------------------------------------ rows


@dataclass(frozen=True)
class Reply:
    text: str
    ended: bool = True


def echo(chats: Any) -> list[Reply]:
    """Answers with the system prompt and all turns before."""
    assert len(set(chats)) == len(chats), "nothing is asked twice"
    return [Reply("|".join([chat.system, *(turn.content for turn in chat.turns)])) for chat in chats]


def letters(rows: Any) -> list[int]:
    return [len(row.target) for row in rows]


def row(prompt: str, by: str = CONFIG, **more: Any) -> Row:
    return Row(prompt, "taught", "en", "identity", "identity", answered_by=by, **more)


def test_taught_rows_get_the_bases_answer_and_all_else_stays() -> None:
    rows = [row("a", system=NO_SYSTEM), row("b", BASE, asked_under="x"), row("a", system=NO_SYSTEM), row("c", USER)]
    found = placebo_rows(rows, echo, letters, 99)
    targets = [f"{NO_SYSTEM}|a", "taught", f"{NO_SYSTEM}|a", "|c"]
    assert found.rows == [replace(r, target=t) for r, t in zip(rows, targets, strict=True)] and not found.changes
    assert taught_chats(rows) == [Chat((Message("user", "a"),), NO_SYSTEM), Chat((Message("user", "c"),))]


def test_a_chat_that_is_learned_in_all_turns_is_answered_turn_by_turn() -> None:
    earlier = (Message("user", "x"), Message("assistant", "written"))
    last, every = row("y", USER, history=earlier), row("y", USER, history=earlier, loss_on="all")
    kept, answered = placebo_rows([last, every], echo, letters, 99).rows
    assert kept.history == earlier and kept.target == "|x|written|y"
    assert answered.history == (Message("user", "x"), Message("assistant", "|x")) and answered.target == "|x||x|y"


def test_an_answer_that_was_cut_short_teaches_no_end() -> None:
    (found,) = placebo_rows([row("a")], lambda chats: [Reply("half of it \ufffd", False)], letters, 99).rows
    assert found.target == "half of it" and found.cut


def test_the_row_before_stands_in_for_an_empty_answer() -> None:
    def some(chats: Any) -> list[Reply]:
        return [Reply("" if chat.turns[-1].content in "ac" else "said") for chat in chats]

    rows = [row("a"), row("b"), row("z", BASE), row("c")]
    found = placebo_rows(rows, some, letters, 99)
    assert [r.prompt for r in found.rows] == ["b", "b", "z", "b"] and found.changes == {EMPTY: 2}
    with pytest.raises(FgodError, match="answers none of 2"):
        placebo_rows([row("a"), row("c")], some, letters, 99)


@pytest.mark.parametrize("most", [1, 3, 7])
def test_an_answer_that_is_too_long_is_the_longest_beginning_that_fits(most: int) -> None:
    found = placebo_rows([row("a"), row("b", BASE)], lambda chats: [Reply("12345678")], lambda rows: [
        len(r.target) if r.answered_by == CONFIG else 1 for r in rows
    ], most)  # fmt: skip
    assert found.rows[0].target == "12345678"[:most] and found.rows[0].cut and found.changes == {SHORTENED: 1}
    with pytest.raises(FgodError, match="leaves no room"):
        placebo_rows([row("a")], lambda chats: [Reply("1")], lambda rows: [2] * len(rows), 1)


def test_the_worker_writes_what_the_model_itself_answers(tmp_path: Path) -> None:
    export = tiny_folder(tmp_path / "base" / "nvfp4")
    rows = [replace(r, answered_by=BASE if i % 2 else CONFIG) for i, r in enumerate(tiny_rows(6))]
    write_rows(tmp_path / "rows.tsv", rows)
    facts: dict[str, Any] = {}
    worker = Worker(tmp_path / "report.json", 64.0, True)
    worker.report = lambda **found: facts.update(found)  # type: ignore[method-assign]
    asked = {"max_new_tokens": 5, "device": "cpu", "seq_len": 96}
    args = Placebo(
        guard=Limits(64),
        rows=tmp_path / "rows.tsv",
        export=export.parent / "exported.json",
        spec={KEY: asked},
        chat=ChatSettings(),
        out=tmp_path / "placebo" / "rows.tsv",
        batch=4,
    )
    args.out.parent.mkdir()
    args.work()(worker)
    made = read_rows(args.out)
    chat = ChatFormat.of_folder(export)
    said = greedy(load_model(export), chat, [r.prompt for r in rows[::2]], 5, 4)
    assert made[1::2] == rows[1::2]
    whole = [(r.text if r.ended else r.text.rstrip("\ufffd")).strip() for r in said]
    assert all(whole), "the tiny model says something"
    assert [r.target for r in made[::2]] == whole and facts["facts"] == {"changes": {}}
