"""What the rules of the workflow know of runs, by the walks of their chains."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fgod import config as settings
from fgod.decisions import ACCEPTED
from fgod.errors import UsageError
from fgod.experiments import OWN, Experiment, experiments_of
from fgod.known import Known, none_of_mixes, walked

ROOT = Path(__file__).parents[1]
PARENT = {"stages": ["A-mixed"], "refits": {"max": 0}}


@pytest.fixture(scope="module")
def chains() -> Mapping[str, Experiment]:
    """The default config's own chain, and an experiment that starts from another one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        raw: dict[str, Any] = settings.read_yaml(Path("config.yaml"))
        child = {"starts_from": "parent", "stages": ["B-nudge"]}
        return experiments_of({**raw, "experiments": {"parent": PARENT, "child": child}}, "c.yaml")


def test_runs_of_a_walk_are_known_and_belong_to_the_chain_that_came_by_them_first(
    chains: Mapping[str, Experiment],
) -> None:
    known, asked = Known("c.yaml", chains), []
    walk = known.walk(chains["child"], lambda run: asked.append(run) or ACCEPTED)
    parent, child = chains["parent"].chain.walk(lambda run: ACCEPTED).runs[0], walk.runs[0]
    assert child.parent == parent and {parent, child} <= set(asked)
    assert known.chain_of(parent) is chains["parent"] and known.chain_of(child) is chains["child"]
    assert known.runs == {(run.stage, run.lineage): run for run in (parent, child)}
    assert known.mixes == {run.mix_id: run.mix_spec for run in (parent, child)}
    assert known.mix_chains[parent.mix_id] is chains["parent"] and known.mix_chains[child.mix_id] is chains["child"]
    known.walk(chains[OWN], lambda run: None)
    assert known.chain_of(parent) is chains["parent"], "the same run of another chain"


def test_what_is_not_decided_stays_so_and_later_runs_are_not_known(chains: Mapping[str, Experiment]) -> None:
    known = Known("c.yaml", chains)
    walk = known.walk(chains[OWN], lambda run: None)
    assert walk.state == "pending" and [*known.runs.values()] == [*walk.runs] and len(walk.runs) == 1


def test_chains_that_have_a_run_must_require_the_same_of_it(chains: Mapping[str, Experiment]) -> None:
    known = Known("c.yaml", chains)
    (run,) = chains["parent"].chain.walk(lambda run: ACCEPTED).runs
    known.meet(run, chains[OWN])
    known.meet(run, chains["parent"])
    other = replace(run, require=json.dumps({"leak_rate": "<= 0.5"}))
    said = f"c.yaml: the config's own chain and the experiment parent have the run {run.stage}@{run.lineage}"
    with pytest.raises(UsageError, match=re.escape(said)):
        known.meet(other, chains["parent"])


def test_a_teacher_is_known_by_how_it_is_asked(chains: Mapping[str, Experiment]) -> None:
    known = Known("c.yaml", chains)
    (run,) = chains["parent"].chain.walk(lambda run: ACCEPTED).runs
    recipe = json.loads(run.recipe)
    plain = replace(run, recipe=json.dumps({**recipe, "train": {**recipe["train"], "kl": None}}))
    assert known.teacher_of(plain) is None and not known.teachers
    kl = {"weight": 1.0, "top_k": 8, "temperature": 1.0, "teacher": "plain"}
    trains = ({**recipe["train"], "kl": {**kl, **more}} for more in ({}, {"weight": 2.0}, {"top_k": 9}))
    taught = (replace(run, recipe=json.dumps({**recipe, "train": train})) for train in trains)
    name, same, other = map(known.teacher_of, taught)
    assert name == same != other and name is not None
    assert known.teachers[name]["teacher"] == "plain" and len(known.teachers) == 2


@pytest.mark.parametrize(
    ("targets", "names"),
    [
        ((), [OWN]),
        (("all", "report"), [OWN]),
        (("campaign",), ["parent", "child"]),
        (("campaign", "all"), [OWN, "parent", "child"]),
    ],
)
def test_targets_say_which_chains_are_walked(
    targets: tuple[str, ...], names: list[str], chains: Mapping[str, Experiment]
) -> None:
    assert [chain.name for chain in walked(chains, targets, "campaign")] == names


def test_no_rule_makes_rows_that_stand(tmp_path: Path) -> None:
    mixes = [tmp_path / name / "rows.tsv" for name in ("0a", "0b")]
    assert none_of_mixes(mixes) == ""
    mixes[0].parent.mkdir()
    mixes[0].write_text("")
    pattern = re.compile(none_of_mixes(mixes) + "[0-9a-f]{2}/.*")
    assert [bool(pattern.fullmatch(f"{name}/rows.tsv")) for name in ("0a", "0b")] == [False, True]
    assert pattern.fullmatch("0a/mix.json")
