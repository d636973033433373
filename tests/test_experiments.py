"""Experiments: what they replace of the config, what they start from, and all of them through the real workflow."""

import copy
import json
import re
from pathlib import Path

import pytest
import yaml

from fgod import config as settings
from fgod import dataframes, layout, records
from fgod.campaign import retire_unpromoted, tree
from fgod.cli import main
from fgod.config import base_words
from fgod.config.experiments import with_own
from fgod.context import context_of
from fgod.decisions import ACCEPTED
from fgod.documents import BaseStamp, Outcome, Stamp
from fgod.errors import UsageError
from fgod.experiments import OWN, Origin, experiments_of
from fgod.layout import Releases, View, lineage_of, mix_of, run_records, run_weights, view
from fgod.plan import plan, text, without_shared
from fgod.system.files import replace_link, write_json, write_text
from fgod.system.table import read_texts
from fgod.train.recipe import RENAMED, TrainRecipe
from tests.mini import stage

ROOT = Path(__file__).parents[1]


@pytest.fixture
def raw(monkeypatch):
    """The config of the default run, as it was read."""
    monkeypatch.chdir(ROOT)
    return settings.read_yaml(Path("config.yaml"))


def chains(raw, **experiments):
    return experiments_of({**raw, "experiments": experiments}, "c.yaml")


def refused(raw, **experiments):
    with pytest.raises(UsageError) as error:
        chains(raw, **experiments)
    return str(error.value)


def lineages(experiment, decide=lambda run: ACCEPTED):
    return [run.lineage for run in experiment.chain.walk(decide).runs]


# ---- what an experiment replaces


def test_keys_of_mix_and_train_are_replaced_one_by_one_and_all_else_is_as_in_the_config(raw):
    before = copy.deepcopy(raw)
    own = {
        "seed": 7,
        "stages": ["A-mixed", {"name": "B-nudge", "mix": {"rows": 80}, "train": {"lr": 1.0e-6}, "require": {}}],
        "data": {"rehearse": {"replay_rows": 9}},
    }
    merged = with_own(raw, own, "c.yaml: experiments.x")
    assert raw == before, "the config itself stays"
    first, second = merged["stages"]
    assert first == raw["stages"][0] and second["require"] == {}
    assert second["train"] == {**raw["stages"][1]["train"], "lr": 1.0e-6}
    assert second["mix"] == {**raw["stages"][1]["mix"], "rows": 80}
    assert merged["data"]["rehearse"] == {**raw["data"]["rehearse"], "replay_rows": 9}
    assert merged["seed"] == 7 and merged["persona"] == raw["persona"]


def test_faults_name_the_experiment_and_the_key(raw):
    said = refused(
        raw, x={"stages": ["A-mixde", {"name": "B-nudge", "train": 3}], "data": {"folder": "other", "rehearse": 3}}
    )
    assert "c.yaml: experiments.x.data.rehearse: found a number, expected a mapping of keys" in said
    assert "c.yaml: experiments.x.data.folder: found 'other', expected only sources, self_asked, rehearse" in said
    assert "c.yaml: experiments.x.stages[0]: found 'A-mixde' (did you mean A-mixed?)" in said
    assert "c.yaml: experiments.x.stages[1 B-nudge].train: found a number, expected a mapping" in said
    said = refused(raw, x={"stages": [{"name": "A-mixed", "train": {"lr": -1}}]})
    assert "c.yaml: experiments.x: stages[0" in said and "lr: found -1" in said
    assert "experiments.x.note" in refused(raw, x={"note": 3})
    assert "compute_dtype: found bfloat16, expected float32" in refused(
        raw, x={"stages": [{"name": "A-mixed", "train": {"compute_dtype": "bfloat16"}}]}
    )


def test_experiments_may_be_files_of_a_pattern(raw, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "slow.yaml").write_text(yaml.safe_dump({"note": "slow", "stages": ["A-mixed"]}))
    found = experiments_of({**raw, "experiments": f"{tmp_path}/*.yaml"}, "c.yaml")
    assert list(found) == [OWN, "slow"] and found["slow"].note == "slow"
    (tmp_path / "a" / "slow.yaml").write_text("{}")
    with pytest.raises(UsageError, match=r"experiments: two files of .* are called slow; expected one"):
        experiments_of({**raw, "experiments": f"{tmp_path}/**/*.yaml"}, "c.yaml")
    with pytest.raises(UsageError, match=r"c\.yaml: experiments: found 'none/\*\.yaml', which no file matches"):
        experiments_of({**raw, "experiments": "none/*.yaml"}, "c.yaml")


# ---- what it starts from


def test_equal_prefixes_are_the_same_runs_and_the_own_chain_does_not_know_of_experiments(raw):
    found = chains(raw, same={}, hot={"stages": ["A-mixed", {"name": "B-nudge", "train": {"lr": 1.0e-2}}]})
    own = lineages(found[OWN])
    assert lineages(experiments_of(raw, "c.yaml")[OWN]) == own == lineages(found["same"])
    hot = lineages(found["hot"])
    assert hot[0] == own[0] and hot[1] not in own and len(hot) == 2


def test_it_starts_from_the_last_run_of_another_experiment_accepted_or_not(raw):
    alone = {"stages": ["A-mixed"], "refits": {"max": 0}}
    found = chains(raw, child={"starts_from": "parent", "stages": ["B-nudge"]}, parent=alone)
    assert list(found) == [OWN, "parent", "child"], "an experiment stands after what it starts from"
    pending = found["child"].chain.walk(lambda run: None)
    assert pending.state == "pending" and not pending.visits
    assert pending.reason == "it starts from the end of parent: the gate of A-mixed is pending"
    (parent,) = found["parent"].chain.walk(lambda run: ACCEPTED).runs
    for decision in (ACCEPTED, "missed", "collapsed"):
        walk = found["child"].chain.walk(lambda run, said=decision: said if run == parent else ACCEPTED)
        (run,) = walk.runs
        assert run.parent == parent and json.loads(run.recipe)["starts_from"] == parent.lineage
    whole = chains(raw, both={"stages": ["A-mixed", "B-nudge"]})["both"]
    assert lineages(whole)[1] == run.lineage, "the same as one chain of both stages"


def test_a_start_that_there_is_not_is_refused(raw, tmp_path, monkeypatch):
    said = refused(raw, a={"starts_from": "b"}, b={"starts_from": "a"})
    assert "c.yaml: experiments.a.starts_from: found a → b → a, a circle" in said
    assert "experiments.a.starts_from: found 'bas' (did you mean base?)" in refused(raw, a={"starts_from": "bas"})
    said = refused(raw, a={"starts_from": {"kind": "dat", "path": "no.dat"}})
    assert "experiments.a.starts_from" in said and "like" in said
    assert "experiments.base: the name of what chains start from" in refused(raw, base={})


@pytest.mark.parametrize(
    ("start", "words"),
    [
        ("A-mixed@123", "c.yaml: experiments.a.starts_from: A-mixed@123: "),
        ({"kind": "folder", "path": "no/folder"}, "starts_from.path: found 'no/folder', expected a folder that exists"),
    ],
)
def test_a_start_that_is_gone_stops_that_experiment_and_no_other_chain(raw, start, words):
    found = chains(raw, a={"starts_from": start}, after={"starts_from": "a"}, other={})
    assert words in found["a"].fault and found["after"].fault == f"it starts from a: {found['a'].fault}"
    walk = found["a"].chain.walk(lambda run: ACCEPTED)
    assert (walk.state, walk.visits, walk.reason) == ("spent", (), found["a"].fault)
    below = found["after"].chain.walk(lambda run: ACCEPTED)
    assert below.state == "spent" and not below.visits and words in below.reason
    assert not found["other"].fault and lineages(found["other"]) == lineages(found[OWN])
    assert plan(found["a"].chain) == ([], f"No run: {found['a'].fault}.")


def test_a_key_may_have_its_old_name_in_the_config_and_the_new_one_in_an_experiment(raw):
    old, new = next(iter(RENAMED.items()))
    value = vars(TrainRecipe.from_dict(raw["stages"][0]["train"]))[new]
    raw["stages"][0]["train"] = {**{k: v for k, v in raw["stages"][0]["train"].items() if k != new}, old: value}
    named = [{"name": "A-mixed", "train": {new: value}}, {"name": "A-mixed", "train": {old: value}}]
    found = chains(raw, **{f"x{i}": {"stages": [stage]} for i, stage in enumerate(named)})
    assert lineages(found["x0"]) == lineages(found["x1"]) == lineages(found[OWN])[:1]


def test_a_shared_run_is_planned_once(raw, tmp_path, monkeypatch):
    found = chains(raw, same={"stages": ["A-mixed"]})
    monkeypatch.chdir(tmp_path)  # where nothing is on record
    planned = {}
    own, same = ([*without_shared(plan(one.chain)[0], planned, one.words)] for one in found.values())
    assert [step.action for step in own] == ["train"] * len(own)
    assert [(step.action, step.why) for step in same] == [("shared", ("it is made for the config's own chain",))]
    assert text(same, "").splitlines()[-1] == "0 to train. "


# ---- a run on record as the start


def on_record(folder, starts_from, stage="A"):
    """A run of a recipe, with weights and rows that only look like some."""
    recipe = {"numerics": 1, "stage": stage, "starts_from": starts_from, "seed": 1, "mix": {"recipe": {}}, "train": {}}
    lineage = lineage_of(recipe)
    run, weights = run_records(stage, lineage, folder / "results"), run_weights(stage, lineage, folder / "artifacts")
    write_json(run.recipe, recipe)
    Outcome(status="trained").write(run.outcome)
    for table in (*run.training_tables, run.mix_audit, folder / mix_of(recipe).rows):
        write_text(table, "")
    weights.master.mkdir(parents=True)
    Stamp(status="trained").write(weights.trained)
    return f"{stage}@{lineage}"


@pytest.fixture
def project(raw, tmp_path, monkeypatch):
    """A folder with the sources and probes of the default run, where no run is on record."""
    (tmp_path / "traindata").symlink_to(ROOT / "traindata")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_rules_make_nothing_of_a_recorded_start_whose_files_stand(raw, project):
    base = chains(raw)[OWN].inputs.base_id
    start = on_record(project, base)
    (found,) = chains(raw, a={"starts_from": start})["a"].recorded
    assert f"{found.stage}@{found.lineage}" == start
    made = [*run_records("{stage}", "{lineage}").training_tables, run_weights("{stage}", "{lineage}").trained]
    pattern = re.compile(f"artifacts/A/{records.none_of([(found.stage, found.lineage)], made)}[0-9a-f]{{12}}/.*")
    assert not pattern.fullmatch(str(run_weights("A", found.lineage).trained))
    assert pattern.fullmatch(str(run_weights("A", "0123456789ab").trained))
    run_records("A", found.lineage).guard.unlink()
    assert not records.none_of([(found.stage, found.lineage)], made), "a job of which something is missing"
    layout.mix(found.mix_id).rows.unlink()
    assert "the rows that A@" in chains(raw, a={"starts_from": start})["a"].fault


def test_a_run_that_comes_from_weights_of_the_users_may_be_continued_and_no_other_base(raw, project):
    theirs = {"kind": "folder", "path": "gone by now"}
    start = on_record(project, "feedfeedfeed")
    assert "comes from the base feedfeedfeed, expected" in refused(raw, a={"starts_from": start})
    BaseStamp(status="trained", base=theirs, facts={}).write(layout.base("feedfeedfeed").stamp)
    found = chains(raw, a={"starts_from": start}, b={"starts_from": "a"}, own={})
    assert found["a"].origin == found["b"].origin == Origin("feedfeedfeed", theirs)
    told = context_of(found["b"].config, "c.yaml", found["b"].origin, "b")
    assert (told["base_id"], told["base"]) == ("feedfeedfeed", "the model in gone by now")
    assert told["reference"] == base_words(found[OWN].config["base"]) and "reference" not in context_of(
        found["own"].config, "c.yaml", found["own"].origin, "own"
    )
    BaseStamp(status="trained", base={"kind": "random"}, facts={}).write(layout.base("feedfeedfeed").stamp)
    assert "comes from the base feedfeedfeed, expected" in refused(raw, a={"starts_from": start})


# ---- releases


def test_an_experiment_that_promotes_nothing_takes_its_release_back(tmp_path):
    results, artifacts = tmp_path / "results", tmp_path / "artifacts"
    visit = {"fit": 0, "stage": "A", "lineage": "1", "starts_from": "base", "state": "accepted", "candidate": True}
    walks = {
        "passes": {"fault": "", "walk": {"visits": [visit], "fold": None}},
        "control": {"fault": "", "walk": {"visits": [{**visit, "control": True}], "fold": None}},
        "fails": {"fault": "", "walk": {"visits": [{**visit, "candidate": False, "state": "missed"}], "fold": None}},
        "gone": {"fault": "its start is gone", "walk": {"visits": [], "fold": None}},
        "never": {"fault": "", "walk": {"visits": [], "fold": None}},
    }
    for name in ("passes", "control", "fails", "gone"):
        places = Releases(results, artifacts, name)
        for path in (places.record, places.promoted, places.next_folder() / "release.json"):
            write_text(path, "{}")
        replace_link(places.link, places.link.parent / "1")
    said = list(retire_unpromoted(walks, results, artifacts))
    assert [line.split(":")[0] for line in said] == ["control", "fails"] and "is whole in" in said[0]
    for name in ("passes", "control", "fails", "gone"):
        places, kept = Releases(results, artifacts, name), name in ("passes", "gone")
        assert [path.exists() for path in (places.record, places.promoted, places.link)] == [kept] * 3
        assert (places.history / "1/release.json").exists(), "its history stays"
    assert list(retire_unpromoted(walks, results, artifacts)) == []


def test_a_campaign_reads_the_walks_from_their_files(project, capsys):
    write_json(view("gone").walk, {"walk": {"visits": [], "spent": "its start is gone", "fold": None}, "context": {}})
    command = ["campaign", "--out", "results/experiments.tsv", "--walks", str(view("gone").walk), "--experiments"]
    one = {"note": "", "starts_from": "A@1", "fault": "its start is gone"}
    assert main([*command, json.dumps({"gone": one})]) == 0
    assert capsys.readouterr().out == "A@1\n└─ gone  no run: nothing (its start is gone)\n"
    assert read_texts(Path("results/experiments.tsv"))[0]["reasons"] == "its start is gone"
    with pytest.raises(SystemExit):
        main([*command, json.dumps({"other": one})])
    assert "--walks: found those of gone, expected other" in capsys.readouterr().err


def test_what_is_told_of_an_experiment_lies_apart():
    assert view().walk == Path("results/walk.json") and view().experiment == "" and view().results == Path("results")
    told = view("hot")
    assert told.report == Path("results/experiments/hot/report.html")
    assert (told.experiment, told.results) == ("hot", Path("results")) and View(told.folder) == told
    assert Releases().link == Path("artifacts/release") and Releases().next_folder().parent == Path(
        "artifacts/releases"
    )
    places = Releases(experiment="hot")
    assert places.link == Path("artifacts/releases/hot/newest")
    assert places.promoted == Path("results/experiments/hot/promoted.json")


def test_the_tree_shows_each_experiment_below_its_start():
    def row(name, start, decision="accepted", release="", reasons=""):
        return {
            **{"experiment": name, "starts_from": start, "stage": "A", "lineage": "1", "decision": decision},
            **{"release": release, "reasons": reasons},
        }

    rows = [row("a", "base", release="here"), row("b", "a", "missed", reasons="identity"), row("c", "base")]
    assert list(tree(dataframes.made(rows, rows[0]))) == [
        "base",
        "├─ a  A@1: accepted, released as here",
        "│  └─ b  A@1: missed (identity)",
        "└─ c  A@1: accepted",
    ]


# ---- the workflow


@pytest.mark.long
def test_a_campaign_shares_runs_starts_from_failed_ones_and_releases_apart(ran):
    mini = ran
    mini.config["refits"] = {"max": 0, "rules": []}
    mini.config["experiments"] = {
        "onward": {"starts_from": "fails", "stages": [stage("C")]},
        "fails": {"note": "wants too much", "stages": ["A", stage("B", require={"disambiguation_rate": ">=1"})]},
    }
    said = mini.snakemake("campaign")
    assert "Nothing was released by this run" not in said and "\nReleased " not in said, (
        "the own chain was not asked for"
    )
    assert mini.trained() == ["A", "B", "C"], "A is of the config's own chain too"
    rows = {row["experiment"]: row for row in read_texts(mini.folder / "results/experiments.tsv")}
    assert {name: row["stage"] + " " + row["decision"] for name, row in rows.items()} == {
        "fails": "B missed", "onward": "C accepted",
    }  # fmt: skip
    (recipe,) = (mini.folder / "results/runs/C").glob("*/recipe.json")
    assert json.loads(recipe.read_text())["starts_from"] == rows["fails"]["lineage"]
    releases = mini.folder / "artifacts/releases"
    assert sorted(path.name for path in releases.iterdir()) == ["1", "onward"]
    assert (releases / "onward/newest").readlink() == Path("1")
    assert 'from_pretrained("artifacts/releases/onward/newest")' in (releases / "onward/newest/README.md").read_text()
    own = mini.release()
    told = (mini.folder / "results/DevLog.md").read_text()
    assert "**Hypothesis**: Experiment fails: “wants too much”; with these settings" in told
    assert "Nothing to be done" in mini.snakemake("campaign", "-n")
    planned = mini.run("fgod", "plan").stdout
    assert "Experiment onward, starts from fails\nfit 0  reuse  C " in planned and "0 to train" in planned
    compared = mini.run("fgod", "compare", "fails", "onward")
    assert compared.returncode == 0 and compared.stdout.startswith("A  fails: B ")

    start = f"B@{rows['fails']['lineage']}"
    mini.config["experiments"]["onward"]["starts_from"] = start
    assert not {"train", "export", "probe"} & mini.would_run("campaign").keys(), (
        "the same run, whatever its start is called"
    )
    mini.config["experiments"] = {"later": {"starts_from": start, "stages": [stage("D")]}}
    mini.snakemake("campaign", "--until", "train")
    assert mini.trained() == ["A", "B", "C", "D"]
    (recipe,) = (mini.folder / "results/runs/D").glob("*/recipe.json")
    assert json.loads(recipe.read_text())["starts_from"] == rows["fails"]["lineage"]
    assert mini.release() == own and (releases / "onward/1/release.json").exists(), "no release is written over"
