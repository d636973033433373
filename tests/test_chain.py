"""The walk: lineages, fits, refit rules. Pure decisions, no files."""

import copy
import json
import re
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fgod import config as settings
from fgod.chain import Chain, Inputs, Run
from fgod.decisions import ACCEPTED
from fgod.errors import UsageError
from fgod.inputs import parts_of
from fgod.refits import Bracket, Tried, adjusted
from fgod.train.recipe import MEMORY

ROOT = Path(__file__).parents[1]
INPUTS = Inputs("b" * 12, "r" * 12, "s" * 64, {})


@pytest.fixture
def config(monkeypatch):
    monkeypatch.chdir(ROOT)
    return settings.load(Path("config.yaml"))


def names(runs):
    return [run.stage[0] for run in runs]


def lineages(chain, failures=()):
    return [run.lineage for run in chain.fit(failures).runs]


def changed(config, edit):
    other = copy.deepcopy(config)
    edit(other)
    return other


def test_a_pending_gate_stops_the_walk_and_a_hopeful_one_shows_all_stages(config):
    chain = Chain(config, INPUTS)
    assert names(chain.walk(lambda run: None).runs) == ["A"]
    hopeful = chain.walk(lambda run: ACCEPTED)
    assert names(hopeful.runs) == ["A", "B", "C", "D"] and hopeful.state == "accepted"
    assert hopeful.candidate == hopeful.runs


def test_a_collapse_starts_the_next_fit_from_the_base_and_shares_what_is_unchanged(config):
    chain = Chain(config, INPUTS)
    first = chain.fit([])
    second = chain.fit([("B-nudge", "collapsed")])
    assert first.runs[0] == second.runs[0], "A is the same lineage: not trained twice"
    assert first.runs[1].lineage != second.runs[1].lineage
    assert second.runs[1].parent == first.runs[0]
    assert (second.adjustments[0].stage, second.adjustments[0].key) == ("B-nudge", "train.lr")
    walk = chain.walk(lambda run: "collapsed" if run == first.runs[1] else ACCEPTED)
    assert walk.state == "accepted" and walk.candidate == second.runs
    assert [(v.fit, v.run.stage[0], v.decision) for v in walk.visits] == [
        (0, "A", "accepted"), (0, "B", "collapsed"),
        (1, "A", "accepted"), (1, "B", "accepted"), (1, "C", "accepted"), (1, "D", "accepted"),
    ]  # fmt: skip


def test_adjustments_accumulate_over_fits(config):
    chain = Chain(config, INPUTS)
    lr = config["stages"][1]["train"]["lr"]
    factor = float(config["refits"]["rules"][0]["set"]["train.lr"][1:])
    twice = chain.fit([("B-nudge", "collapsed"), ("B-nudge", "collapsed")])
    rates = [a.new for a in twice.adjustments if a.key == "train.lr"]
    assert rates == pytest.approx([lr * factor, lr * factor**2])


def test_the_default_run_is_missed_then_collapses_then_rehearses(config):
    """Its refit rules answer both failures of stage B: too far up, then halfway back, with rows that keep the rest."""
    fit = Chain(config, INPUTS).fit([("B-nudge", "missed"), ("B-nudge", "collapsed")])
    lr = config["stages"][1]["train"]["lr"]
    rates = [a.new for a in fit.adjustments if a.key == "train.lr"]
    assert rates == pytest.approx([100 * lr, 50 * lr])
    assert [(a.fit, a.key, a.cause) for a in fit.adjustments] == [
        (1, "train.lr", "B-nudge missed"), (2, "train.lr", "B-nudge collapsed"),
        (2, "mix.shares.general", "B-nudge collapsed"), (2, "mix.shares.replay", "B-nudge collapsed"),
    ]  # fmt: skip


def test_all_fits_spent_says_so(config):
    walk = Chain(config, INPUTS).walk(lambda run: "collapsed" if run.stage == "B-nudge" else ACCEPTED)
    assert walk.state == "spent" and "all 5 fits are spent" in walk.reason and walk.candidate == ()
    assert len([v for v in walk.visits if v.decision == "collapsed"]) == 5


def test_a_verdict_that_no_rule_answers_ends_the_walk(config):
    config["refits"]["rules"] = []
    walk = Chain(config, INPUTS).walk(lambda run: "missed")
    assert walk.state == "spent" and "no rule under refits.rules answers 'missed'" in walk.reason
    config["refits"]["max"] = 0
    walk = Chain(config, INPUTS).walk(lambda run: "missed")
    assert walk.state == "spent" and walk.reason == "A-mixed missed, and refits.max is 0: there is one fit"


def test_a_refit_that_changes_nothing_ends_the_walk(config):
    config["refits"]["rules"] = [{"when": ["missed"], "stage": "failed", "set": {"train.lr": "*1"}}]
    walk = Chain(config, INPUTS).walk(lambda run: "missed")
    assert walk.state == "spent" and "changed nothing" in walk.reason and len(walk.visits) == 1


def test_stage_all_changes_every_stage(config):
    config["refits"]["rules"] = [{"when": ["damaged"], "stage": "all", "set": {"mix.shares.general": "+1"}}]
    fit = Chain(config, INPUTS).fit([("C-disambiguate", "damaged")])
    assert [a.stage[0] for a in fit.adjustments] == ["A", "B", "C", "D"]


def test_an_edit_changes_its_stage_and_what_follows_and_nothing_else(config):
    before = lineages(Chain(config, INPUTS))
    after = lineages(Chain(changed(config, lambda c: c["stages"][2]["train"].update(lr=1e-3)), INPUTS))
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, True, False, False]


@pytest.mark.parametrize(
    "edit",
    [
        lambda c: c["gate"].update(leak=0.5),
        lambda c: c["stages"][3]["require"].update(retention=">=0.1"),
        lambda c: c["guard"].update(limit_gb=99),
        lambda c: c["probe"].update(batch=3),
        lambda c: c["persona"].update(marks=["x"]),
        lambda c: c["refits"].update(max=9),
    ],
)
def test_limits_marks_and_the_guard_are_no_part_of_a_lineage(config, edit):
    assert lineages(Chain(config, INPUTS)) == lineages(Chain(changed(config, edit), INPUTS))


@pytest.mark.parametrize(
    "edit",
    [
        lambda c: c.update(seed=7),
        lambda c: c["persona"]["replies"].update(en="I am someone else."),
        lambda c: c["data"].update(held_out_topics=["ufo"]),
        lambda c: c["chat"].update(system="none"),
        lambda c: c["chat"].update(template_kwargs={"enable_thinking": False}),
        lambda c: c["disambiguation"]["my_name"].update(replies={"zh": "x", "en": "x", "ja": "x", "ko": "x"}),
    ],
)
def test_what_rows_depend_on_is_part_of_every_lineage(config, edit):
    before, after = lineages(Chain(config, INPUTS)), lineages(Chain(changed(config, edit), INPUTS))
    assert not set(before) & set(after)


def test_the_default_chat_is_no_part_of_a_recipe(config):
    assert all("chat" not in json.loads(run.recipe) for run in Chain(config, INPUTS).fit([]).runs)
    written = changed(config, lambda c: c["chat"].update(system="none"))
    assert json.loads(Chain(written, INPUTS).fit([]).runs[0].recipe)["chat"] == {"system": "none"}


def test_a_users_file_is_part_of_the_lineages_that_use_it(config):
    config["stages"][2]["mix"]["shares"]["mine"] = 0.1
    old = lineages(Chain(config, Inputs("b", "r", "s", {"mine": "1"})))
    new = lineages(Chain(config, Inputs("b", "r", "s", {"mine": "2"})))
    assert [a == b for a, b in zip(old, new, strict=True)] == [True, True, False, False]


def test_a_lineage_holds_what_the_memory_row_gives(config):
    """Whether a key is written out or given by the row: the weights are the same, and so is the lineage."""
    row, written = copy.deepcopy(config), copy.deepcopy(config)
    row["stages"][0]["train"]["memory"] = "24gb"
    written["stages"][0]["train"].update(memory="24gb", **asdict(MEMORY["24gb"]))
    assert lineages(Chain(row, INPUTS)) == lineages(Chain(written, INPUTS)) != lineages(Chain(config, INPUTS))
    train = json.loads(Chain(row, INPUTS).fit([]).runs[0].recipe)["train"]
    assert (train["master_dtype"], train["m_dtype"], train["step_chunk_rows"]) == ("bf16", "nvfp4", 1024)


def test_the_device_is_part_of_a_lineage(config):
    other = changed(config, lambda c: c["stages"][0]["train"].update(device="cuda"))
    assert lineages(Chain(config, INPUTS))[0] != lineages(Chain(other, INPUTS))[0]


def test_new_kernels_train_anew_on_gpus_alone(config, monkeypatch):
    on_gpu = changed(config, lambda c: [stage["train"].update(device="cuda") for stage in c["stages"]])
    before = [lineages(Chain(c, INPUTS)) for c in (config, on_gpu)]
    monkeypatch.setattr("fgod.GPU_NUMERICS_VERSION", 4711)
    on_cpu, gpu = [lineages(Chain(c, INPUTS)) for c in (config, on_gpu)]
    assert on_cpu == before[0]
    assert not set(gpu) & set(before[1])


def test_a_number_is_one_recipe_however_it_is_written(config, tmp_path, monkeypatch):
    text = (ROOT / "config.yaml").read_text()
    assert "shares: {identity: 1}" in text
    other = tmp_path / "other.yaml"
    other.write_text(text.replace("shares: {identity: 1}", "shares: {identity: 1.0}"))
    assert lineages(Chain(config, INPUTS)) == lineages(Chain(settings.load(other), INPUTS))


@given(st.floats(1e-6, 1e6), st.floats(1e-3, 1e3))
def test_relative_numbers(old, amount):
    assert adjusted(old, f"*{amount!r}", "x") == pytest.approx(old * amount)
    assert adjusted(old, f"+{amount!r}", "x") == pytest.approx(old + amount)
    assert adjusted(old, f"-{amount!r}", "x") == pytest.approx(old - amount, abs=1e-6)


@given(st.integers(1, 10**6), st.floats(0.01, 0.99))
def test_a_whole_number_stays_one_and_never_falls_below_one(old, amount):
    new = adjusted(old, f"*{amount}", "x")
    assert isinstance(new, int) and 1 <= new <= old


@pytest.mark.parametrize("change", [3, 0.5, "cosine", None, [0.9, 0.99]])
def test_anything_else_replaces(change):
    assert adjusted(1.0, change, "x") == change


def test_a_relative_change_of_what_is_no_number_is_refused():
    with pytest.raises(UsageError, match=r"refits\.x: found '\*2', but the value it changes is 'cosine'"):
        adjusted("cosine", "*2", "refits.x")
    with pytest.raises(UsageError, match="expected a number behind"):
        adjusted(1.0, "*two", "refits.x")


def test_a_refit_that_leaves_the_allowed_range_after_others_ends_the_walk(config):
    config["refits"]["rules"] = [{"when": ["missed"], "stage": "failed", "set": {"train.seq_len": "-60"}}]
    walk = Chain(config, INPUTS).walk(lambda run: "missed")
    assert walk.state == "spent" and len(walk.fits) == 2
    assert walk.reason == "refits.rules[0] on stage A-mixed: train: seq_len: found -24, expected at least 8"


def test_a_killed_run_gets_a_smaller_micro_batch(config):
    config["refits"]["rules"] = [{"when": ["killed"], "stage": "failed", "set": {"train.micro_batch": "*0.5"}}]
    fit = Chain(config, INPUTS).fit([("A-mixed", "killed")])
    assert [(a.old, a.new) for a in fit.adjustments] == [(16, 8)]


def test_runs_are_values(config):
    chain = Chain(config, INPUTS)
    assert isinstance(chain.fit([]).runs[0], Run) and chain.fit([]) == chain.fit([])


# -------------------------------------------------------------------------------------------------- interpolation

ALPHAS = [0.75, 0.5, 0.25]


@pytest.fixture
def between(config):
    """Damage is answered by interpolation, then by more rehearsal."""
    config["refits"]["rules"] = [
        {"when": ["damaged"], "stage": "failed", "interpolate": ALPHAS},
        {"when": ["collapsed"], "stage": "failed", "set": {"train.lr": "*0.5"}},
        {"when": ["damaged"], "stage": "failed", "set": {"mix.shares.general": "+1"}},
        {"when": ["missed"], "stage": "failed", "set": {"train.lr": "*2"}},
    ]
    config["refits"]["max"] = 1
    return Chain(config, INPUTS)


def told(walk):
    return [(visit.fit, visit.run.name, visit.decision) for visit in walk.visits if visit.run.stage == "B-nudge"]


def by_alpha(decisions, refitted=ACCEPTED):
    """Verdicts on stage B by its α (1: as it was first trained); all other runs are accepted."""

    def decide(run):
        if run.stage != "B-nudge":
            return ACCEPTED
        mended = json.loads(run.recipe)["mix"]["recipe"]["shares"].get("general", 0) >= 1
        return refitted if mended else decisions[run.alpha or 1]

    return decide


def test_a_damaged_run_is_followed_by_the_points_between_until_one_is_accepted(between):
    walk = between.walk(by_alpha({1: "damaged", 0.75: "damaged", 0.5: ACCEPTED}))
    assert told(walk) == [
        (0, "B-nudge", "damaged"), (1, "B-nudge at α 0.75", "damaged"), (2, "B-nudge at α 0.5", ACCEPTED)
    ]  # fmt: skip
    trained, chosen, after = walk.visits[1].run, walk.candidate[1], walk.candidate[2]
    assert chosen.trained == trained and chosen.parent == trained.parent and after.parent == chosen
    assert json.loads(after.recipe)["starts_from"] == chosen.lineage == f"{chosen.lineage[:12]}-0.5"
    assert json.loads(chosen.recipe) == json.loads(trained.recipe) | {"interpolate": 0.5, "of": trained.lineage}
    assert walk.fits[-1].refits == 0, "nothing was trained again"
    assert [str(a) for a in walk.fits[-1].adjustments] == [
        "fit 1: B-nudge weights as trained → at α 0.75 (after B-nudge damaged)",
        "fit 2: B-nudge weights at α 0.75 → at α 0.5 (after B-nudge at α 0.75 damaged)",
    ]


@pytest.mark.parametrize(
    "decisions, alphas",
    [
        ({1: "damaged", 0.75: "damaged", 0.5: "missed"}, [0.75, 0.5]),
        ({1: "damaged", 0.75: "missed"}, [0.75]),
        ({1: "damaged", 0.75: "damaged", 0.5: "damaged", 0.25: "damaged"}, ALPHAS),
    ],
)
def test_where_no_point_will_do_the_next_rule_answers_the_damage(between, decisions, alphas):
    walk = between.walk(by_alpha(decisions))
    assert [visit.run.alpha for visit in walk.visits if visit.run.alpha] == alphas
    assert walk.state == "accepted" and walk.candidate[1].alpha is None and walk.fits[-1].refits == 1
    last = walk.fits[-1].adjustments[-1]
    assert (last.key, last.rule) == ("mix.shares.general", 2), "not the rate that `missed` would double"


def test_a_collapse_between_is_answered_from_the_original_weights(between):
    walk = between.walk(by_alpha({1: "damaged", 0.75: "collapsed"}))
    assert walk.fits[2].adjustments[-1].key == "train.lr" and walk.fits[2].runs[1].alpha is None


def test_a_new_training_has_its_points_again_and_only_trainings_count_against_the_maximum(between):
    walk = between.walk(by_alpha(dict.fromkeys((1, *ALPHAS), "damaged"), refitted="damaged"))
    assert [visit.run.alpha for visit in walk.visits if visit.run.stage == "B-nudge"] == [None, *ALPHAS] * 2
    assert walk.state == "spent" and "all 8 fits are spent (refits.max: 1)" in walk.reason


def test_without_another_rule_the_walk_says_where_it_ended(between):
    del between.config["refits"]["rules"][2]
    walk = between.walk(by_alpha({1: "damaged", 0.75: "missed"}))
    assert walk.reason == ("no other rule under refits.rules answers 'damaged' (stage B-nudge, at α 0.75 missed)")


def test_what_follows_a_stage_that_changes_is_trained_to_its_end_first(between):
    """C's point was chosen for a C that started from another B."""
    fit = between.fit([("C-disambiguate", "damaged"), ("B-nudge", "damaged"), ("B-nudge", "missed")])
    assert [run.alpha for run in between.fit([("C-disambiguate", "damaged")]).runs] == [None, None, 0.75, None]
    assert [run.alpha for run in fit.runs] == [None, None, None, None]


def test_points_are_runs_of_their_own(between):
    runs = [between.fit([("B-nudge", "damaged")] * count).runs[1] for count in range(4)]
    assert len({run.lineage for run in runs}) == 4 and len({run.mix_id for run in runs}) == 1


# ------------------------------------------------------------------------------------------------------- bisection

BISECT = {"key": "train.lr", "up": 2.0, "down": 0.3, "narrowest": 1.2}


@given(low=st.floats(1e-6, 1e-2), width=st.floats(1.25, 10), first=st.floats(1e-7, 1e-1))
def test_bisection_finds_every_window_that_is_wider_than_the_narrowest_bracket(low, width, first):
    tried, value = [], first
    while not low <= value <= low * width:
        tried.append(Tried(value, "missed" if value < low else "collapsed"))
        value = Bracket.of(tried).middle(BISECT)
        assert value is not None and len(tried) < 40
        bracket = Bracket.of(tried)
        if bracket.missed and bracket.too_much:
            assert bracket.missed.value < value < bracket.too_much.value


@pytest.mark.parametrize(
    "tried, expected",
    [
        ([(1e-5, "missed")], 2e-5),
        ([(1e-5, "missed"), (2e-5, "missed")], 4e-5),
        ([(1e-5, "collapsed")], 3e-6),
        ([(1e-5, "damaged"), (3e-6, "diverged")], 9e-7),
        ([(1e-6, "missed"), (4e-6, "collapsed")], 2e-6),
        ([(1e-6, "missed"), (4e-6, "collapsed"), (2e-6, "missed")], 2.82843e-6),
        ([(1e-6, "missed"), (1.1e-6, "damaged")], None),
        ([(3e-6, "missed"), (1e-6, "damaged")], None),
    ],
)
def test_the_next_rate(tried, expected):
    assert Bracket.of([Tried(*one) for one in tried]).middle(BISECT) == expected


def rate(run):
    return json.loads(run.recipe)["train"]["lr"]


@pytest.fixture
def bisecting(config):
    config["stages"][1]["train"]["lr"] = 1e-6
    config["refits"] = {"max": 9, "rules": [{"when": ["missed", "collapsed", "damaged"], "bisect": BISECT}]}
    config["refits"]["rules"][0]["stage"] = "failed"
    return Chain(config, INPUTS)


def by_rate(least, most):
    def decide(run):
        if run.stage != "B-nudge":
            return ACCEPTED
        return "missed" if rate(run) < least else "damaged" if rate(run) > most else ACCEPTED

    return decide


def test_the_walk_bisects_the_rate_of_the_failed_stage(bisecting):
    walk = bisecting.walk(by_rate(2.5e-6, 3.5e-6))
    rates = [rate(visit.run) for visit in walk.visits if visit.run.stage == "B-nudge"]
    assert rates == pytest.approx([1e-6, 2e-6, 4e-6, 2.82843e-6]) and walk.state == "accepted"
    assert [(a.key, a.new) for a in walk.fits[-1].adjustments][-1] == ("train.lr", 2.82843e-6)


def test_a_bracket_that_is_too_narrow_ends_the_walk_or_goes_to_the_next_rule_and_says_so(bisecting):
    walk = bisecting.walk(by_rate(3e-6, 3e-6))
    assert walk.state == "spent" and len(walk.fits) < 9
    assert "answers 'damaged' (stage B-nudge); train.lr between " in walk.reason
    assert re.search(r"between 2\.\S+ missed and 3\.\S+ damaged has no middle$", walk.reason)
    more = {"when": ["missed", "damaged"], "stage": "failed", "set": {"train.steps": "*2"}}
    bisecting.config["refits"]["rules"].append(more)
    walk = bisecting.walk(by_rate(3e-6, 3e-6))
    mended, *_ = [a for a in walk.fits[-1].adjustments if a.key == "train.steps"]
    assert "has no middle" in mended.cause


def test_runs_that_differ_in_more_than_the_rate_are_no_bracket(bisecting):
    rehearse = {"when": ["collapsed"], "stage": "failed", "set": {"mix.shares.general": "+1"}}
    bisecting.config["refits"]["rules"].insert(0, rehearse)
    fit = bisecting.fit([("B-nudge", "missed"), ("B-nudge", "collapsed"), ("B-nudge", "damaged")])
    rates = [a.new for a in fit.adjustments if a.key == "train.lr"]
    assert rates == pytest.approx([2e-6, 0.6e-6]), "with more rehearsal 2e-6 was too much, and nothing missed"


def test_points_between_are_no_rates(bisecting):
    bisecting.config["refits"]["rules"].insert(0, {"when": ["damaged"], "stage": "failed", "interpolate": [0.5]})
    fit = bisecting.fit([("B-nudge", "missed"), ("B-nudge", "damaged"), ("B-nudge", "missed")])
    assert [a.new for a in fit.adjustments] == [2e-6, "at α 0.5", pytest.approx(1.41421e-6)]


def test_inputs_are_gathered_for_rules_of_every_kind(config):
    """The parts that a rule may add are those of its `set`; the other kinds have none."""
    rules = [{"when": ["damaged"], "interpolate": [0.5]}, {"when": ["missed"], "bisect": BISECT}]
    before = parts_of(config)
    config["refits"]["rules"] += rules
    assert parts_of(config) == before
    config["refits"]["rules"].append({"when": ["damaged"], "set": {"mix.shares.talk": 0.1}})
    assert parts_of(config) == before | {"talk"}
