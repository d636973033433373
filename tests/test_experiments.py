"""Experiments: what they replace of the config, what they start from, and all of them through the real workflow."""

import copy
import json
from pathlib import Path

import pytest
import yaml

from fgod import config as settings
from fgod.campaign import tree
from fgod.cli import main
from fgod.config.experiments import with_own
from fgod.decisions import ACCEPTED
from fgod.errors import UsageError
from fgod.experiments import OWN, experiments_of
from fgod.layout import Releases, View, view
from fgod.system.table import read_texts
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
    assert "experiments.a.starts_from: A-mixed@123: " in refused(raw, a={"starts_from": "A-mixed@123"})
    said = refused(raw, a={"starts_from": {"kind": "dat", "path": "no.dat"}})
    assert "experiments.a.starts_from" in said and "like" in said
    assert "experiments.base: the name of what chains start from" in refused(raw, base={})


def test_a_start_that_is_gone_stops_its_experiment_alone(raw):
    found = chains(raw, a={"starts_from": {"kind": "folder", "path": "no/folder"}}, b={"starts_from": "a"}, c={})
    assert "experiments.a.starts_from.path: found 'no/folder', expected a folder that exists" in found["a"].fault
    assert found["a"].chain.walk(lambda run: ACCEPTED).reason == found["a"].fault
    assert "which has none" in found["b"].chain.walk(lambda run: ACCEPTED).reason
    assert lineages(found["c"]) == lineages(found[OWN]) and not found[OWN].fault


def test_an_experiment_that_passes_no_more_is_released_no_more(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    places = Releases(experiment="hot")
    folder = places.next_folder()
    for path in (places.record, places.promoted, folder / "release.json", view("hot").walk):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    places.link.symlink_to("1")
    view("hot").walk.write_text(json.dumps({"walk": {"visits": [], "spent": "no fit passed"}}))
    told = {"hot": {"starts_from": "base", "note": ""}}
    assert main(["campaign", "--told", json.dumps(told), "--out", "results/experiments.tsv"]) == 0
    assert not places.record.exists() and not places.link.is_symlink() and not places.promoted.exists()
    assert (folder / "release.json").exists(), "history is kept"
    assert "hot is released no more; the release before is whole in artifacts/releases/hot/1" in capsys.readouterr().err


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
    assert list(tree(rows)) == [
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
    mini.config["experiments"] = {"later": {"starts_from": start, "stages": [stage("D")]}}
    mini.snakemake("campaign", "--until", "train")
    assert mini.trained() == ["A", "B", "C", "D"]
    (recipe,) = (mini.folder / "results/runs/D").glob("*/recipe.json")
    assert json.loads(recipe.read_text())["starts_from"] == rows["fails"]["lineage"]
    assert mini.release() == own and (releases / "onward/1/release.json").exists(), "no release is written over"
