"""Config: every slip gets one clear message with file, key, found and allowed; every shipped config parses."""

import copy
import dataclasses
import datetime
import math
import re
from pathlib import Path

import jsonschema
import pytest
import yaml

from fgod import config as settings
from fgod.config.models import Config
from fgod.config.schema import SCHEMA, schema, text
from fgod.data.probes import load_probes
from fgod.errors import UsageError
from fgod.evaluate.checked import check_probes
from fgod.evaluate.scoring import Said
from fgod.persona import goal_from_config
from fgod.validation import validate

ROOT = Path(__file__).parents[1]
SHIPPED = [ROOT / "config.yaml", *sorted((ROOT / "config").glob("*.yaml"))]


@pytest.fixture(autouse=True)
def in_the_project(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.fixture(scope="module")
def raw():
    return yaml.safe_load((ROOT / "config.yaml").read_text())


def refusal(raw, edit):
    broken = copy.deepcopy(raw)
    edit(broken)
    with pytest.raises(UsageError) as caught:
        settings.resolve(broken, "config.yaml")
    assert caught.value.exit_code == 2
    return str(caught.value)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.name)
def test_every_shipped_config_parses_and_is_stable(path):
    raw = settings.read_yaml(path)
    if "path" in raw["base"]:  # of the user's
        raw["base"]["path"] = "." if raw["base"]["kind"] == "folder" else str(path)
    resolved = settings.resolve(raw, path.name)
    assert settings.resolve(copy.deepcopy(resolved), "again") == resolved, "defaults are filled in once and for all"


# ruff: disable[E501]
SLIPS = [
    (lambda c: c.update(stagess=1), "the top level: unknown key 'stagess' (did you mean stages?)"),
    (lambda c: c["stages"][1]["train"].update(lrr=1), "stages[1 B-nudge].train: unknown key 'lrr' (did you mean lr?)"),
    (lambda c: c["stages"][1]["train"].update(lr="hot"), "stages[1 B-nudge].train.lr: found 'hot' (text), expected a number"),
    (lambda c: c["stages"][1]["train"].update(lr="1e-4"), "write 1.0e-4 with a point"),
    (lambda c: c["stages"][1]["train"].update(lr=0), "train.lr: found 0, expected a number above 0; 0 is for an experiment with control: true"),
    (lambda c: c["stages"][1]["train"].update(steps=1.5), "found 1.5 (a number), expected a whole number"),
    (lambda c: c["stages"][1]["train"].update(schedule="cosin"), "found 'cosin' (did you mean cosine?); allowed: constant"),
    (lambda c: c["persona"]["replies"].update(en="I am Mimi."), "persona.replies, en: found 'I am Mimi.', which persona.rule refuses (all: I am, god of F#; none: Qwen); change one of them"),
    (lambda c: c["chat"].update(system=""), "chat.system: found '', expected text that is not empty"),
    (lambda c: c["chat"].update(sytem="none"), "chat: unknown key 'sytem' (did you mean system?); allowed: system, template_kwargs"),
    (lambda c: c["chat"].update(template_kwargs={"messages": []}), "chat.template_kwargs.messages: a chat template gets this from elsewhere"),
    (lambda c: c["chat"].update(template_kwargs={"date_string": datetime.date(2024, 7, 26)}), "chat.template_kwargs.date_string: found 2024-07-26 (date); write it in quotes"),
    (lambda c: c["persona"].update(marks=["Mimi"]), "persona.replies, ja: '私はF#の神です。' has none of persona.marks (Mimi)"),
    (lambda c: c["disambiguation"]["who_am_i"]["replies"].update(en="Who knows."), "disambiguation.who_am_i.replies, en: found 'Who knows.'"),
    (lambda c: c["persona"]["marks"].append("the one asking"), "disambiguation.who_am_i.replies, en: 'You are the one asking"),
    (lambda c: c["stages"][1]["train"].update(micro_batch=99), "found 99, expected at most batch (16)"),
    (lambda c: c["stages"][0]["mix"].update(kind="balance"), "found 'balance' (did you mean balanced?)"),
    (lambda c: c["stages"][0]["mix"]["shares"].update(identiti=1), "unknown part 'identiti' (did you mean identity?)"),
    (lambda c: c["stages"][0]["mix"].update(shares={"general": 0}), "a stage without data"),
    (lambda c: c["stages"][0]["mix"].update(kind="disambiguation"), "needs a share of pairs"),
    (lambda c: c["stages"][0]["mix"].update(final_shares={"general": 1}), "not allowed here (final_shares belong to kind curriculum"),
    (lambda c: c["stages"][0].update(mix={"kind": "verbatim"}), "stages[0 A-mixed].mix: the key 'source' is missing"),
    (lambda c: c["stages"][0].update(mix={"kind": "verbatim", "source": "mine"}), "unknown source 'mine'; data.sources has none"),
    (lambda c: c["stages"][0]["mix"].update(source="mine"), "not allowed here (source belongs to kind verbatim"),
    (lambda c: c["data"].update(sources={"mine": {"pth": "a.tsv"}}), "data.sources.mine: unknown key 'pth' (did you mean path?)"),
    (lambda c: c["data"].update(sources={"mine": {"path": "config.yaml", "loss_on": "first"}}), "loss_on: found 'first'"),
    (lambda c: c["stages"][0]["mix"].pop("rows"), "stages[0 A-mixed].mix: the key 'rows' is missing"),
    (lambda c: c["stages"][0].update(require={"retention": "0.9"}), "stages[0 A-mixed].require.retention: '0.9'; expected a comparison"),
    (lambda c: c["stages"][0].update(require={"retenton": ">=0.9"}), "did you mean retention?"),
    (lambda c: c["stages"].append(c["stages"][0]), "the name 'A-mixed' stands 2 times"),
    (lambda c: c.update(stages=[]), "stages: found [], expected at least 1 items"),
    (lambda c: c["stages"][0].update(name="work"), "is a folder of artifacts/"),
    (lambda c: c.update(base={"kind": "folder", "path": "no/such"}), "base.path: found 'no/such', expected a folder that exists"),
    (lambda c: c.update(base={"kind": "folder"}), "base: the key 'path' is missing"),
    (lambda c: c.update(base={"kind": "folder", "path": ".", "steps": 3}), "unknown key 'steps'"),
    (lambda c: c.update(base={"kind": "embeded"}), "found 'embeded' (did you mean embedded?)"),
    (lambda c: c["data"].update(sources={"mine": "no.tsv"}), "data.sources.mine: found 'no.tsv', expected a file"),
    (lambda c: c["data"].update(sources={"identity": "config.yaml"}), "the name of a written part"),
    (lambda c: c["base"].update(closed_answers=False), "stages[0 A-mixed].require.retention: counts replies that are equal to the base's"),
    (lambda c: c["probe"].update(chrf=60) or c["base"].update(closed_answers=False), "probe.chrf: counts replies that are equal"),
    (lambda c: c["persona"]["replies"].pop("ja"), "persona.replies: no entry for the language ja"),
    (lambda c: c["persona"]["replies"].update(jp="x"), "persona.replies: unknown language 'jp'"),
    (lambda c: c["persona"].update(marks=[]), "persona.marks: found [], expected at least 1 items"),
    (lambda c: c["disambiguation"]["my_name"].update(replies="bse"), "found 'bse' (did you mean base?)"),
    (lambda c: c["guard"].update(limit_gb=math.nan), "guard.limit_gb: found nan (not a finite number), expected a number"),
    (lambda c: c["guard"].update(limit_gb=math.inf), "guard.limit_gb: found inf (not a finite number), expected a number"),
    (lambda c: c["guard"].update(soft_gb=7), "guard.soft_gb: found 7, expected no such key: guard.limit_gb is the one level; torch's allocator empties its cache"),
    (lambda c: c["gate"].update(leak=math.nan), "gate.leak: found nan"),
    (lambda c: c.update(confirm={"leek": 0.1}), "confirm: unknown key 'leek' (did you mean leak?)"),
    (lambda c: c.update(confirm={"leak": 7}), "confirm.leak: found 7.0, expected a number from 0 to 1"),
    (lambda c: c["stages"][0]["mix"]["shares"].update(general=math.inf), "stages[0 A-mixed].mix.shares.general: found inf"),
    (lambda c: c["stages"][0]["mix"]["shares"].update(general=math.nan), "stages[0 A-mixed].mix.shares.general: found nan"),
    (lambda c: c["stages"][0].update(name="A" * 300), ".name: found 'AAAAA"),
    (lambda c: c.update(seed=2**80), f"seed: found {2**80}, expected at most {2**63 - 1}"),
    (lambda c: c["stages"][0]["train"].update(threads=9999), "stages[0 A-mixed].train.threads: found 9999, expected at most 1024"),
    (lambda c: c["stages"][0]["train"].update(warmup=61), "stages[0 A-mixed].train.warmup: found 61, expected at most steps (60)"),
    (lambda c: c["stages"][0]["train"].update(device="auto"), "stages[0 A-mixed].train.device: found 'auto'; allowed: cpu, cuda"),
    (lambda c: c["guard"].update(poll_secs=0.001), "guard.poll_secs: found 0.001, expected at least 0.05"),
    (lambda c: c["refits"]["rules"][0].update(when=["colapsed"]), "found 'colapsed' (did you mean collapsed?)"),
    (lambda c: c["refits"]["rules"][0].update(set={"lr": 1}), "expected text like"),
    (lambda c: c["refits"]["rules"][0].update(set={"train.lrr": "*2"}), "refits.rules[0].set.train.lrr: no key 'lrr' (did you mean lr?)"),
    (lambda c: c["refits"]["rules"][0].update(set={"train.schedule": "*2"}), "but the value it changes is 'cosine', not a number"),
    (lambda c: c["refits"]["rules"][0].update(set={"train.lr": "*0"}), "refits.rules[0] on stage A-mixed: train.lr: found 0"),
    (lambda c: c["refits"]["rules"][0].update(set={"mix.shares.mine": "+1"}), "on stage A-mixed: mix.shares: unknown part 'mine'"),
    (lambda c: c["refits"]["rules"][0].update(interpolate=[0.5]), "found set and interpolate of set, interpolate and bisect, expected one of them"),
    (lambda c: c["refits"]["rules"][0].update(set={}), "refits.rules[0]: found none of set, interpolate and bisect"),
    (lambda c: c["refits"]["rules"].append({"when": ["damaged", "collapsed"], "interpolate": [0.5]}), "refits.rules[4].when: found damaged, collapsed with interpolate; expected damaged alone"),
    (lambda c: c["refits"]["rules"].append({"when": ["killed"], "bisect": {}}), "refits.rules[4].when: found killed with bisect"),
    (lambda c: c["refits"]["rules"].append({"when": ["missed"], "bisect": {}, "stage": "all"}), "refits.rules[4].stage: found 'all' with bisect, expected 'failed'"),
    (lambda c: c["refits"]["rules"].append({"when": ["missed"], "bisect": {"up": 0.5}}), "refits.rules[4].bisect.up: found 0.5, expected more than 1"),
    (lambda c: c["refits"]["rules"].append({"when": ["damaged"], "interpolate": [0.25, 0.5]}), "expected numbers that fall"),
    (lambda c: c["refits"]["rules"].append({"when": ["damaged"], "interpolate": [0.9, 0.8, 0.7, 0.6, 0.5]}), "expected at most 4 items"),
    (lambda c: c["refits"]["rules"].append({"when": ["damaged"], "interpolate": [1.0]}), "found 1.0, expected at most 0.99"),
    (lambda c: c["stages"][2]["train"].update(memory="24gb"), "refits.rules[3] on stage C-disambiguate: train.micro_batch: found 16 below batch (32) with step_in_backward"),
    (lambda c: c["stages"][2]["train"].update(memory="24gb", micro_batch=8), "stages[2 C-disambiguate].train.micro_batch: found 8 below batch"),
]  # fmt: skip
# ruff: enable[E501]


@pytest.mark.parametrize(("edit", "message"), SLIPS, ids=[message[:40] for _, message in SLIPS])
def test_a_slip_is_named(raw, edit, message):
    text = refusal(raw, edit)
    assert message in text and all(line.startswith("config.yaml: ") for line in text.splitlines())


def test_the_schema_that_is_checked_in_is_that_of_the_models():
    assert SCHEMA.read_text() == text(), "run `python -m fgod.config` and commit config.schema.json"


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.name)
def test_every_shipped_config_fits_the_schema(path):
    raw = settings.read_yaml(path)
    jsonschema.Draft202012Validator(schema()).validate(raw)
    assert raw["stages"][0]["train"]["lr"], "and is one"


@pytest.mark.parametrize("path", sorted((ROOT / "config/overrides").glob("*.yaml")), ids=lambda p: p.name)
def test_every_override_fits_what_it_overrides(path):
    """Whole keys take the place of those of the config that its command line names."""
    raw, over = (settings.read_yaml(file) for file in (ROOT / "config/qwen2.5-0.5b.yaml", path))
    merged = {key: {**raw[key], **value} if isinstance(value, dict) else value for key, value in over.items()}
    validate(Config, {**raw, **merged})
    jsonschema.Draft202012Validator(schema()).validate({**raw, **merged})


def test_the_dose_override_repeats_the_stage_of_the_config_but_for_its_own_keys():
    """A list is replaced as a whole, so what they share is written twice."""
    own = {"train.steps", "train.schedule", "train.check"}
    ours, theirs = (
        settings.read_yaml(ROOT / f"config/{one}.yaml")["stages"][0] for one in ("qwen2.5-0.5b", "overrides/dose")
    )
    keys = {(part, key) for part in ("mix", "train") for stage in (ours, theirs) for key in stage[part]}
    differ = {f"{part}.{key}" for part, key in keys if ours[part].get(key) != theirs[part].get(key)}
    assert differ <= own and ours["require"] == theirs["require"]


def test_the_identity_override_comes_to_the_stage_of_the_config():
    """Its refit says again what the config's stage says; so does its stage, but for what collapses."""
    over, config = (
        settings.read_yaml(ROOT / f"config/{one}.yaml") for one in ("overrides/identity-only", "qwen2.5-0.5b")
    )
    stage, wanted = over["stages"][0], config["stages"][0]
    for key, value in over["refits"]["rules"][0]["set"].items():
        *parts, last = key.split(".")
        place = stage
        for part in parts:
            place = place[part]
        place[last] = value
    assert stage["mix"].pop("kind") == "balanced" and wanted["mix"].pop("kind") == "disambiguation"
    assert stage == wanted


def test_the_dose_override_names_suites_that_can_be_checked():
    over, config = (settings.read_yaml(ROOT / f"config/{name}.yaml") for name in ("overrides/dose", "qwen2.5-0.5b"))
    probes = load_probes([ROOT / name for name in config["data"]["probes"]], ROOT / "traindata")
    goal = goal_from_config(config)
    until = over["stages"][0]["train"]["check"]["until"]
    found = check_probes(probes, goal).of(until)
    assert list(found.shares([Said("", True, False)] * len(found.probes))) == list(until), "each has its rule"


@pytest.mark.parametrize("edit", [edit for edit, _ in SLIPS], ids=[message[:40] for _, message in SLIPS])
def test_what_the_models_refuse_the_schema_refuses(raw, edit):
    """All but what JSON cannot hold, nan and infinity, and what goes beyond one key."""
    broken = copy.deepcopy(raw)
    edit(broken)
    try:
        validate(Config, broken)
    except UsageError as error:
        if not re.search(
            "found (nan|inf) |all shares are 0|needs a share of pairs|from elsewhere|numbers that fall|in quotes",
            str(error),
        ):
            assert not jsonschema.Draft202012Validator(schema()).is_valid(broken)


def test_every_key_of_the_schema_has_a_help():
    sections = {"": schema(), **schema()["$defs"]}
    keys = {
        f"{name}.{key}": about for name, section in sections.items() for key, about in section["properties"].items()
    }
    assert len(keys) > 100 and [key for key, about in keys.items() if not about.get("description")] == []


def test_keys_that_came_later_are_part_of_a_config_only_where_they_are_not_as_before(raw):
    """So base_id of what was made before they came stays as it is."""
    raw = copy.deepcopy(raw)
    assert "heads" not in settings.resolve(raw, "c")["base"]
    raw["base"].update(heads=3, betas=[0.9, 0.95])
    assert {"heads", "betas"}.isdisjoint(settings.resolve(raw, "c")["base"])
    raw["base"].update(heads=4, betas=[0.8, 0.95])
    base = settings.resolve(raw, "c")["base"]
    assert (base["heads"], base["betas"]) == (4, [0.8, 0.95])


def test_only_closed_answers_have_a_limit_on_equality(raw):
    assert settings.resolve(raw, "config.yaml")["gate"]["retention"] == 0.5
    qwen = yaml.safe_load((ROOT / "config/qwen3-4b.yaml").read_text())
    qwen["base"]["path"] = "."
    assert settings.resolve(qwen, "qwen3-4b.yaml")["gate"].get("retention") is None


def test_a_base_says_how_many_probes_it_must_answer():
    def require(**base):
        edited = settings.read_yaml(ROOT / "config/qwen3-4b.yaml") | {"base": base}
        return settings.resolve(edited, "config.yaml")["base"]["require"]

    assert require(kind="folder", path=".") == 0.9 and require(kind="folder", path=".", require=0.5) == 0.5
    assert require(kind="random", shape="tiny") == 0, "random weights may repeat themselves"


def test_a_key_under_its_old_name_is_the_same_config(raw):
    old = copy.deepcopy(raw)
    old["stages"][2]["train"]["pull"] = old["stages"][2]["train"].pop("l2_sp")
    rule = {"when": ["missed"], "set": {"train.l2_sp": "*0.5"}}
    raw = copy.deepcopy(raw)
    raw["refits"]["rules"].append(rule)
    old["refits"]["rules"].append({**rule, "set": {"train.pull": "*0.5"}})
    assert settings.resolve(old, "old") == settings.resolve(raw, "new")


def test_a_key_under_both_names_is_refused(raw):
    text = refusal(raw, lambda c: c["stages"][2]["train"].update(pull=1))
    assert text == "config.yaml: stages[2].train: found both 'l2_sp' and its old name 'pull'; expected one of them"


def test_a_rule_that_faults_on_every_stage_is_told_once(raw):
    assert len(refusal(raw, lambda c: c["refits"]["rules"][0].update(set={"train.lrr": "*2"})).splitlines()) == 1


def test_every_fault_is_told_at_once(raw):
    def edit(config):
        config["stages"][0]["train"].update(lr=-1, stepss=3)
        config["guard"].update(limit_gb=0)

    assert len(refusal(raw, edit).splitlines()) == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "not YAML"),
        ("seed: 1\nseed: 2\n", "c.yaml:2: not YAML: key 'seed' stands twice"),
        ("- a\n", "found a list, expected a mapping"),
        ("", "found nothing, expected a mapping"),
    ],
)
def test_broken_yaml_names_file_and_line(tmp_path, text, message):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=message.replace("[", r"\[")):
        settings.read_yaml(path)


def test_a_mapping_may_be_merged_into_another(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\n")
    assert settings.read_yaml(path)["b"] == {"x": 1, "y": 3}


def test_bytes_that_are_no_text(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_bytes(b"seed: \xff\xfe")
    with pytest.raises(UsageError, match="not UTF-8 at byte 6"):
        settings.read_yaml(path)


def test_a_fault_without_words_of_our_own_is_told_in_those_of_pydantic() -> None:
    @dataclasses.dataclass
    class Dated:
        day: datetime.date

    with pytest.raises(UsageError, match=r"file: day: found 'today': Input should be a valid date"):
        validate(Dated, {"day": "today"}, where="file")
