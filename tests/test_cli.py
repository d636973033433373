"""The command line in process: exit codes, messages, what people use directly."""

import json
import re
import subprocess
import sys
from dataclasses import MISSING, asdict, replace
from pathlib import Path

import pytest
import yaml

from fgod import inputs, layout, manifest, plan, records
from fgod.arguments import arguments_of
from fgod.call import Call
from fgod.chain import Chain
from fgod.cli import COMMANDS, build_parser, main, parse
from fgod.cli.command import Command, Input, Output, Personal, ReadOnly
from fgod.config import load, resolve
from fgod.confirm.folds import give_fold
from fgod.confirm.judge import confirmation_checks, judge_confirmation
from fgod.context import context_of
from fgod.decisions import ACCEPTED
from fgod.documents import Metrics, Outcome, Probed, PromotedRun, Release, Served, Stamp
from fgod.errors import UsageError
from fgod.evaluate.metric import Estimate
from fgod.experiments import Origin
from fgod.probe.record import write_probes, write_skipped
from fgod.project import DEFAULT
from fgod.promotion import WalkEntry
from fgod.registry import METRICS
from fgod.system.files import file_digests, write_json
from tests.made_runs import context, write_run

ROOT = Path(__file__).parents[1]


@pytest.fixture
def project(tmp_path, monkeypatch):
    """An empty project folder with the shipped config and the written sources."""
    (tmp_path / "traindata").symlink_to(ROOT / "traindata")
    (tmp_path / "config.yaml").write_text((ROOT / "config.yaml").read_text())
    monkeypatch.chdir(tmp_path)
    return tmp_path


SERVED = Served(export_sha256="", transformers="", torch="", dtype="", prompts=4, tokens=80, cast=False)


def chain_of(**changes):
    config = yaml.safe_load(Path("config.yaml").read_text())
    config.update(changes)
    config = resolve(config, "config.yaml")
    return Chain(config, inputs.gather(config))


BAD = {"collapsed": {"kl_reference": 0.6}, "damaged": {"confusion_rate": 1.0}}
"""Values that the limits of the shipped config do not let pass, by the verdict on them."""


def record(run, decision, **values):
    """Leave a run's recipe, outcome, metrics and verdict on record; `values` of metrics instead of good ones."""
    files = records.records_of(run)
    write_json(files.recipe, json.loads(run.recipe))
    trained = decision not in ("killed", "diverged")
    Outcome(status="trained" if trained else decision, reason="" if trained else decision).write(files.outcome)
    good = {name: 1.0 if metric.better == "higher" else 0.0 for name, metric in METRICS.items()}
    found = {name: Estimate(value, 9) for name, value in {**good, **BAD.get(decision, {}), **values}.items()}
    write_probes(files.probes, ())
    if trained:
        Metrics(status="measured", metrics=found, tables_sha256=file_digests(files.folder, [files.probes])).write(
            files.metrics
        )
    else:
        write_skipped(files, decision)
    verdict = records.standing(load(Path("config.yaml")), run).fresh
    assert verdict.decision == decision
    verdict.write(files.verdict)


def test_every_rule_of_the_workflow_calls_a_known_subcommand():
    text = "".join(path.read_text() for path in (ROOT / "rules").glob("*.smk"))
    called = set(
        re.findall(
            r"(?:\bfgod|\{FGOD\}) ([a-z]+)",
            "".join(line for line in text.splitlines() if line.strip().startswith(('"', "shell("))),
        )
    )
    known = build_parser().format_help()
    assert "train" in called and not [name for name in called if name not in known]


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        (["--version"], 0, "fgod "),
        ([], 2, "COMMAND"),
        (["no-such"], 2, "invalid choice"),
        (["data"], 2, 'expected "data.COMMAND" to be one of {mix,'),
        (
            ["gate", "--limits", "{", "--require", "{}", "--out", "x"],
            2,
            "argument --limits: Not of type dict: Expecting",
        ),
        (["gate", "--limits", "{"], 2, "usage: fgod gate [-h] --limits JSON"),
        (["manifest", "why"], 2, "the following arguments are required: file"),
        (["confirm", "--limits", "{}", "--out", "x"], 2, "arguments are required: --require, --own, --fold"),
        (["plan", "--config", "none.yaml"], 2, "none.yaml: no such file"),
        (["data", "audit", "none.tsv"], 2, "none.tsv"),
        (["inspect", "none"], 2, "none"),
        (["data", "audit", "x.tsv", "--chat", '{"sytem": "none"}'], 2, "unknown key 'sytem' (did you mean system?)"),
        (["retry", "Z"], 2, "no run of stage 'Z'"),
    ],
)
def test_wrong_usage_is_said_in_words(project, capsys, argv, code, words):
    with pytest.raises(SystemExit) as ended:
        raise SystemExit(main(argv))
    said = capsys.readouterr()
    assert ended.value.code == code and words in said.out + said.err and "Traceback" not in said.err


def test_an_audit_with_errors_exits_100(project, capsys):
    Path("bad.tsv").write_text("你是誰\t我是 F# 之神。\n你是誰\t我是別人。\n只有一欄\n")
    with pytest.raises(SystemExit) as ended:
        main(["data", "audit", "bad.tsv"])
    said = capsys.readouterr()
    assert ended.value.code == 100 and "bad.tsv" in said.err and ":3" in said.out


def test_an_identity_file_is_written_once(project, capsys):
    assert main(["data", "identity", "--count", "30", "--seed", "1", "--out", "mine.tsv"]) == 0
    rows = Path("mine.tsv").read_text()
    assert len([line for line in rows.splitlines() if "\t" in line]) == 30
    with pytest.raises(SystemExit) as ended:
        main(["data", "identity", "--count", "3", "--seed", "1", "--out", "mine.tsv"])
    assert ended.value.code == 2 and Path("mine.tsv").read_text() == rows


def path_arguments(made):
    """The arguments of a command that are paths, or collections of them."""
    return [one for one in arguments_of(made) if one.type is Path]


SCRATCH = {"guard": {"phase_file", "lock"}}
"""Paths that leave nothing behind, or are found in another. (Of `--like` only what lies beside the weights is read, and
that is digested: tests/test_dat.py. Of `--tokens-of` the tokenizer is compared, and the base has a stamp.)"""


def test_every_command_is_listed_in_its_module():
    for name, entry in COMMANDS.items():
        assert issubclass(entry.load(), Command) and entry.load().__doc__, name


def test_every_path_that_a_command_is_given_is_digested_by_the_manifest():
    for name, entry in COMMANDS.items():
        for one in path_arguments(entry.load()):
            digested = isinstance(one.option, Input | Output)
            assert digested or one.name in {"child", "like", "tokens_of", *SCRATCH.get(name, ())}, f"{name} {one.flag}"


def test_only_commands_that_make_nothing_are_not_recorded():
    found = {name for name, entry in COMMANDS.items() if issubclass(entry.load(), ReadOnly)}
    assert found == {
        "doctor", "plan", "inspect", "status", "why-step", "summary", "ask", "chat", "parity", "inventory",
        "manifest show", "manifest why", "manifest verify",
    }  # fmt: skip
    assert not [
        name for name in found if [1 for one in path_arguments(COMMANDS[name].load()) if isinstance(one.option, Output)]
    ]


def test_no_rule_calls_what_is_recorded_in_a_project_alone():
    rules = "".join(path.read_text() for path in (ROOT / "rules").glob("*.smk"))
    personal = [name for name, entry in COMMANDS.items() if issubclass(entry.load(), Personal)]
    assert "retry" in personal and not [name for name in personal if f"FGOD}} {name} " in rules]


def example(made, given):
    """A dataclass of arguments with values of the right types; paths lie in x/, and go to `given`."""
    values = {}
    for one in arguments_of(made):
        if one.nested:
            values[one.name] = example(one.nested, given)
        elif one.type is Path:
            given[one.name] = path = Path(f"x/{one.name}")
            values[one.name] = (path,) if one.many else path
        else:
            values[one.name] = VALUES.get(one.name, 1.0 if one.default is MISSING else one.default)
    return made(**values)


VALUES = {
    "base": {"kind": "folder", "path": "x/base"},
    "files": {"mine": "x/mine.tsv"},
    "items": ("x/items.jsonl",),
    "repository": "own/name",
    "format": "nvfp4",
    "engine": "llama.cpp",
}


def test_every_input_and_output_of_a_command_is_in_its_entry():
    for name, entry in COMMANDS.items():
        given = {}
        made = example(entry.load(), given)
        if name == "train":
            made = replace(made, memory_report=None)
            del given["memory_report"]
        if name == "init":
            made = replace(made, config=DEFAULT)
            del given["folder"]  # its files are listed one by one
            assert Path("x/folder/config.yaml") in made.outputs()
        held = {Input: set(made.inputs()), Output: set(made.outputs())}
        for one in arguments_of(entry.load()):
            for mark in (Input, Output):
                if isinstance(one.option, mark) and one.name in given:
                    assert given[one.name] in held[mark], f"{name} {one.flag}"
        assert "files" not in {one.name for one in arguments_of(entry.load())} or Path("x/mine.tsv") in held[Input]


def test_what_lies_beside_the_arguments_is_in_the_entry_too():
    words = "train --recipe r --weights w --start s --rows m/rows.tsv --audit a --limit-gb 1 --teacher t/teacher.json"
    run = ["--outcome", "results/runs/A/x/outcome.json", "--stamp", "artifacts/A/x/trained.json"]
    made = parse([*words.split(), *run])
    beside = {layout.Mix(Path("m")).stamp, layout.Teacher(Path("t")).soft_labels}
    assert beside <= set(made.inputs()) and layout.RunWeights(Path("artifacts/A/x")).master in made.outputs()
    assert made.run_of() == ("A", "x")
    assert parse([*words.split(), *run, "--memory-report", "m.tsv"]).outputs() == [Path("m.tsv")]
    export = "export --weights w --stamp s --out artifacts/A/x/exported.json --dtype bfloat16 --limit-gb 1"
    assert parse(export.split()).outputs()[1:] == [layout.Export(Path("artifacts/A/x")).of("nvfp4")]
    gate = parse(["gate", "--limits", "{}", "--require", "{}", "--out", "results/runs/A/x/verdict.json"])
    assert gate.inputs() == list(layout.RunRecords(Path("results/runs/A/x")).judged)


def test_a_command_line_imports_the_module_of_its_command_alone():
    code = "import sys; from fgod.cli import build_parser; build_parser(sys.argv[1:]); print(*sys.modules)"
    command = [sys.executable, "-c", code, "walk"]
    loaded = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert "fgod.cli.results" in loaded and not {"fgod.cli.training", "fgod.cli.people", "torch"} & set(loaded)


BOOKKEEPING = (
    "gate --limits {} --require {} --out results/runs/A/aaaa11112222/verdict.json",
    "walk --json WALK --context CONTEXT --out results/experiments/one/walk.json",
    "tables --walk results/experiments/one/walk.json --out results/experiments/one/tables",
    "report --tables results/experiments/one/tables --out results/experiments/one/report.html",
    "campaign --experiments TOLD --walks results/experiments/one/walk.json --out results/experiments.tsv",
    "campaign-report --table results/experiments.tsv --out results/experiments.html",
    "plan",
)
"""What the workflow does between trainings, one command after the other; and what people ask most."""
WITH_PANDAS = ("tables", "report", "campaign", "campaign-report")
"""Of these, the ones that make tables and reports."""


def test_bookkeeping_imports_nothing_that_takes_seconds(project):
    """Each of these commands is a process of its own, and most of its time are imports."""
    decision = write_run(Path("."), "A", "aaaa11112222", "good")
    decided = {"visits": [asdict(WalkEntry(0, "A", "aaaa11112222", "base", decision))], "spent": "", "fold": None}
    own = {key: value for key, value in asdict(context(experiment="one")).items() if key not in decided}
    own.pop("adjustments")
    words = {
        "WALK": json.dumps({**decided, "adjustments": []}),
        "CONTEXT": json.dumps(own),
        "TOLD": json.dumps({"one": {"note": "", "starts_from": "base", "fault": ""}}),
    }
    code = "import sys; from fgod.cli import main; code = main(sys.argv[1:]); print(*sys.modules); sys.exit(code)"
    for command in BOOKKEEPING:
        line = [words.get(word, word) for word in command.split()]
        ended = subprocess.run([sys.executable, "-c", code, *line], capture_output=True, text=True, check=True)
        loaded = {name.partition(".")[0] for name in ended.stdout.splitlines()[-1].split()}
        slow = {"torch", "transformers", "snakemake", "numpy", "pandas"} & loaded
        expected = {"numpy", "pandas"} if line[0] in WITH_PANDAS else set()
        assert "fgod" in loaded and slow == expected, f"{command}: imports {', '.join(sorted(slow))}"
    assert Path("results/experiments.html").exists()


def test_what_the_workflow_imports_when_it_starts_imports_no_pandas():
    texts = [path.read_text() for path in (ROOT / "Snakefile", *sorted((ROOT / "rules").glob("*.smk")))]
    lines = [line for text in texts for line in text.splitlines() if line.startswith(("from fgod", "import fgod"))]
    code = "\n".join([*lines, "import sys; print(*sys.modules)"])
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "fgod.tables" in loaded and "pandas" not in loaded


def entries(name):
    return [entry for entry in manifest.join(Path(".")) if entry["argv"][:2] == ["fgod", name]]


def test_commands_of_people_are_recorded_in_a_project_and_nowhere_else(project, capsys):
    make = ["data", "identity", "--count", "30", "--seed", "1", "--out"]
    assert main([*make, "mine.tsv"]) == 0 and not Path("results").exists()
    Path("Snakefile").touch()
    Path("plug.py").write_text("")
    assert main(["--plugin", "plug.py", *make, "yours.tsv"]) == 0
    (made,) = entries("--plugin")
    assert [path["path"] for path in made["inputs"]] == ["config.yaml", "plug.py", "traindata"]
    assert [path["path"] for path in made["outputs"]] == ["yours.tsv"] and made["outputs"][0]["bytes"] > 0
    with pytest.raises(SystemExit):
        main([*make, "yours.tsv"])
    (refused,) = entries("data")
    assert refused["exit_code"] == 2 and refused["error"].startswith("yours.tsv: this file exists")

    run = chain_of().fit(()).runs[0]
    record(run, "killed")
    assert main(["retry", "A-mixed"]) == 0
    (retried,) = entries("retry")
    assert {path["path"]: path["kind"] for path in retried["outputs"]} == {
        records.records_of(run).folder.as_posix(): "missing"
    }

    locks = Path(".snakemake/locks")
    locks.mkdir(parents=True)
    (locks / "0.input.lock").touch()
    (Path("results") / ".walk.json.abc.tmp").touch()
    assert main(["recover"]) == 0
    (recovered,) = entries("recover")
    assert recovered["outputs"] == [{"path": ".snakemake/locks", "kind": "missing", "bytes": None, "sha256": None}]
    assert "cleared" in recovered

    assert main(["guard", "--limit-gb", "1", "--table", "guard.tsv", "--", "true"]) == 0
    (guarded,) = entries("guard")
    assert guarded["guard"]["reason"] == "" and guarded["outputs"][0]["path"] == "guard.tsv"
    assert main(["plan"]) == 0 and not entries("plan")
    capsys.readouterr()


def test_plan_says_what_trains_and_why(project):
    chain = chain_of()
    runs = chain.fit(()).runs
    steps, closing = plan.plan(chain)
    assert (steps[0].action, steps[0].why) == ("train", ("it never ran",)) and "decided by the gates" in closing
    for run in runs:
        record(run, ACCEPTED)
        Stamp(status="trained").write(records.weights_of(run).trained)
        Stamp(status="skipped").write(records.weights_of(run).stamp)
    steps, closing = plan.plan(chain)
    assert {s.action for s in steps} == {"reuse"} and "only what is missing" in closing
    stages = yaml.safe_load(Path("config.yaml").read_text())["stages"]
    stages[2]["train"]["lr"] = 2.0e-3
    steps, _ = plan.plan(chain_of(stages=stages))
    assert [s.action for s in steps] == ["reuse", "reuse", "train", "train"]
    assert any("train.lr 0.003 → 0.002" in why for why in steps[2].why)
    assert steps[3].why[0].startswith("it follows C-disambiguate")
    assert "2 to train" in plan.text(steps, "")
    thrown = records.weights_of(runs[1]).trash / "master"
    thrown.mkdir(parents=True)
    [first, second] = [step.why[-1] for step in plan.plan(chain_of(stages=stages))[0][2:]]
    assert first == f"its start is in the trash: `fgod restore B-nudge@{runs[1].lineage}` first" != second
    thrown.rmdir()
    assert {s.action for s in plan.plan(chain)[0]} == {"reuse"}

    weights, export = records.weights_of(runs[1]).trained, records.weights_of(runs[1]).stamp
    weights.unlink()  # nobody needs it as long as what is made of it is there
    assert {s.action for s in plan.plan(chain)[0]} == {"reuse"}
    export.unlink()
    steps, _ = plan.plan(chain)
    assert [s.action for s in steps] == ["reuse", "train", "train", "reuse"]
    assert steps[1].why[0] == f"its weights are gone: {weights}"
    assert steps[2].why[0] == f"it follows B-nudge {runs[1].lineage}, whose weights are made again", "as snakemake does"
    released = [PromotedRun(stage=run.stage, lineage=run.lineage, metrics={}, weights_sha256="") for run in runs]
    texts = {"path": "", "base_id": "", "config_digest": "", "persona": "", "export_sha256": ""}
    for path in (layout.Releases().record, layout.Releases().current):
        Release(fits=1, promoted=released, files={}, served=SERVED, **texts).write(path)
    assert {s.action for s in plan.plan(chain)[0]} == {"reuse"}, "the release stands"
    Release(fits=1, promoted=released, files={}, **texts).write(layout.Releases().record)
    Release(fits=1, promoted=released, files={}, **texts).write(layout.Releases().current)
    steps, closing = plan.plan(chain)
    assert closing.endswith(" Then transformers loads its export, it is released."), "one of an older version"
    for path in (layout.Releases().record, layout.Releases().current):
        Release(fits=1, promoted=released, files={}, served=SERVED, **texts).write(path)
    records.weights_of(runs[2]).trained.unlink()
    steps, _ = plan.plan(chain_of(stages=[*stages[:2], chain.config["stages"][2], {**stages[3], "name": "E"}]))
    assert [s.action for s in steps] == ["reuse", "train", "train", "train"], "each needs the one before it"


def test_plan_judges_again_what_a_changed_limit_or_requirement_decides(project):
    """What the gate will say is read from the records, and the walk goes on by it. Nothing is written."""
    chain = chain_of()
    runs = chain.fit(()).runs
    for run in runs:
        record(run, ACCEPTED, kl_reference=0.2)
        Stamp(status="trained").write(records.weights_of(run).trained)
        Stamp(status="skipped").write(records.weights_of(run).stamp)
    before = {path: path.read_bytes() for path in Path("results").rglob("*.*")}
    gate = chain.config["gate"]
    steps, closing = plan.plan(chain_of(gate={**gate, "kl": 0.4}))
    assert {s.action for s in steps} == {"judge"} and len(steps) == 4
    assert steps[0].why == (
        "other checks than its verdict's: accepted, as before",
        "kl_reference <= 0.5 → <= 0.4 (else collapsed)",
    )
    assert closing.startswith("The gates that judge again read records alone")

    stricter = chain_of(gate={**gate, "kl": 0.1})
    steps, closing = plan.plan(stricter)
    assert steps[0].action == "judge" and steps[0].why[0].endswith("accepted → collapsed")
    assert "kl 0.2 nats > 0.1 nats (n 9)" in steps[0].why
    assert [(s.fit, s.run.stage, s.action) for s in steps[1:]] == [
        (1, stage["name"], "train") for stage in chain.config["stages"]
    ], "a refit of the whole chain"
    assert "4 to train. Later fits are decided" in plan.text(steps, closing)
    _, closing = plan.plan(chain_of(base={**chain.config["base"], "seed": 7}, refits={"max": 0}))
    assert closing == "There is one fit (refits.max: 0): a run that fails ends it."

    stages = yaml.safe_load(Path("config.yaml").read_text())["stages"]
    stages[1]["require"] = {"kl_reference": "<=0.01"}
    steps, _ = plan.plan(chain_of(stages=stages))
    assert [s.action for s in steps[:2]] == ["reuse", "judge"] and steps[1].why[0].endswith("accepted → damaged")
    assert steps[2].fit == 1 and steps[2].action == "train"

    steps, closing = plan.plan(chain_of(gate={**gate, "kl": 0.1}, refits={"max": 0, "rules": []}))
    assert [s.action for s in steps] == ["judge"] and closing.startswith("No fit will be accepted: ")
    assert {path: path.read_bytes() for path in Path("results").rglob("*.*")} == before


def test_plan_shows_the_confirmation_of_a_candidate(project):
    chain = chain_of()
    runs = chain.fit(()).runs
    for run in runs:
        record(run, ACCEPTED)
        Stamp(status="trained").write(records.weights_of(run).trained)
        Stamp(status="skipped").write(records.weights_of(run).stamp)
    last, results = runs[-1], Path("results")
    files, place = records.records_of(last), records.confirmation_of(last)
    probed = Metrics.read(files.metrics).model_copy(update={"export": Probed(sha256="ab", bytes=1, files={})})
    probed.write(files.metrics)
    records.standing(chain.config, last).fresh.write(files.verdict)

    def said(folds, **changes):
        steps, closing = plan.plan(chain_of(**changes), folds)
        assert [step.action for step in steps[:-1]] == ["reuse"] * len(runs)
        assert "\n0 to train" in plan.text(steps, closing)
        assert steps[-1].run == last
        return steps[-1].action, *steps[-1].why

    assert said((1, 2)) == ("confirm", "it is asked fold 1 of the held-back wordings")
    give_fold(results, "D", "000000000000", 1, (1, 2))
    assert said((1, 2)) == ("confirm", "it is asked fold 2 of the held-back wordings")
    assert said((1,))[1].endswith(
        "fold 1 of the held-back wordings; it was asked before of 000000000000: no longer held back"
    )
    give_fold(results, last.stage, last.lineage, 2, (1, 2))
    write_probes(place.probes, ())
    probed.write(place.metrics)
    require = chain.config["stages"][-1]["require"]
    checks = confirmation_checks(chain.config["gate"], require, {})
    judge_confirmation(results, last.stage, last.lineage, 2, checks).write(place.confirmation)
    assert said((1, 2)) == ("reuse", "its confirmation is on record: confirmed (fold 2, n 0)")
    again = ("confirm", "other limits: it is judged again on fold 2, and not asked anew")
    assert said((1, 2), confirm={"leak": 0.01}) == again

    found = judge_confirmation(results, last.stage, last.lineage, 2, checks)
    found = found.model_copy(update={"decision": "unconfirmed", "reasons": ["a limit"]})
    found.write(place.confirmation)
    assert records.will_refuse(chain.config, last) and "it is released" not in plan.plan(chain, (1, 2))[1]
    stricter = [limit.model_copy(update={"limit": limit.limit / 2}) for limit in found.limits]
    found.model_copy(update={"limits": stricter}).write(place.confirmation)
    assert records.refused(last) and not records.will_refuse(chain.config, last), "the limits are loosened since"
    assert plan.plan(chain, (1, 2))[1].endswith("it is released.")


def test_plan_foresees_that_a_promotion_is_repeated_where_the_walks_record_changes(project):
    chain = chain_of()
    runs = chain.fit(()).runs
    for run in runs:
        record(run, ACCEPTED)
        Stamp(status="trained").write(records.weights_of(run).trained)
        Stamp(status="skipped").write(records.weights_of(run).stamp)
    context = context_of(chain.config, "config.yaml", Origin(chain.inputs.base_id, chain.config["base"]))
    walk = json.loads(records.walk_json(chain.walk(records.decision)))
    write_json(layout.view().walk, {"walk": walk, "context": {**context, "config": str(Path("config.yaml").resolve())}})
    released = [PromotedRun(stage=run.stage, lineage=run.lineage, metrics={}, weights_sha256="") for run in runs]
    texts = {"path": "", "base_id": "", "config_digest": "", "persona": "", "export_sha256": ""}
    for path in (layout.Releases().record, layout.Releases().current):
        Release(fits=1, promoted=released, files={}, served=SERVED, **texts).write(path)
    records.weights_of(runs[-1]).trained.unlink()
    records.weights_of(runs[-1]).stamp.unlink()

    steps, closing = plan.plan(chain, (), context)
    assert {step.action for step in steps} == {"reuse"} and "anew" not in closing, "the release stands"
    assert "Then" not in closing
    _, closing = plan.plan(chain_of(release={"formats": ["nvfp4", "modelopt", "bf16"]}))
    assert closing.endswith(" Then it is exported as modelopt, bf16, transformers loads its export, it is released.")
    steps, closing = plan.plan(chain, (), {**context, "suites": ["more"]})
    assert [step.action for step in steps] == ["reuse", "reuse", "reuse", "train"], "promote needs its export"
    assert "results/walk.json is written anew (context.suites): tables, report and promotion are made again." in closing


def test_plan_says_what_is_judged_again_because_records_are_missing(project):
    chain = chain_of()
    runs = chain.fit(()).runs
    for run in runs[:2]:
        record(run, ACCEPTED)
        Stamp(status="trained").write(records.weights_of(run).trained)
        Stamp(status="exported").write(records.weights_of(run).stamp)
    files = records.records_of(runs[1])
    files.verdict.unlink()
    steps, _ = plan.plan(chain)
    assert [s.action for s in steps] == ["reuse", "judge", "train", "train"]
    assert steps[1].why == ("it is trained; its gate is pending and will say: accepted",)
    files.metrics.unlink()
    steps, _ = plan.plan(chain)
    assert [s.action for s in steps] == ["reuse", "judge", "train", "train"]
    assert "counts as accepted here: metrics.json missing" in steps[1].why[0]
    records.weights_of(runs[1]).stamp.unlink()
    assert [s.action for s in plan.plan(chain)[0]] == ["reuse", "judge", "train", "train"], "it is exported anew"
    records.weights_of(runs[1]).trained.unlink()
    assert [s.action for s in plan.plan(chain)[0]] == ["reuse", "train", "train", "train"], "nothing to export is left"

    record(runs[0], "killed")
    records.records_of(runs[0]).metrics.unlink()
    Stamp(status="killed").write(records.weights_of(runs[0]).trained)
    steps, _ = plan.plan(chain)
    assert steps[0].action == "judge" and steps[0].why == ("it is killed; its gate is pending and will say: killed",)


def test_a_metric_that_is_asked_for_but_was_not_measured_leaves_the_gate_open(project):
    chain = chain_of()
    run = chain.fit(()).runs[0]
    record(run, ACCEPTED, retention_held_out=None)
    Stamp(status="trained").write(records.weights_of(run).trained)
    stages = yaml.safe_load(Path("config.yaml").read_text())["stages"]
    stages[0]["require"] = {"retention_held_out": ">=0.5"}
    steps, _ = plan.plan(chain_of(stages=stages))
    assert steps[0].action == "judge" and "no value for retention_held_out" in steps[0].why[0]


def test_plan_says_that_a_verdict_is_of_other_records(project):
    chain = chain_of()
    run = chain.fit(()).runs[0]
    record(run, ACCEPTED)
    Stamp(status="trained").write(records.weights_of(run).trained)
    Outcome(status="trained", wall_s=2.0).write(records.records_of(run).outcome)
    now = records.standing(chain.config, run)
    assert (now.decision, now.recorded, now.stale) == (ACCEPTED, None, ("outcome.json has changed",))
    words = "its verdict is of other records (outcome.json has changed since), and will be: accepted"
    assert plan.plan(chain)[0][0].why == (words,)


def test_only_killed_runs_are_retried(project):
    runs = chain_of().fit(()).runs
    record(runs[0], ACCEPTED)
    record(runs[1], "killed")
    with pytest.raises(UsageError, match="no killed run"):
        parse(["retry", "A-mixed"]).run(Call())
    call = Call()
    parse(["retry", "B-nudge"]).run(call)
    assert call.record.outputs == [records.records_of(runs[1]).folder]
    assert records.decision(runs[1]) is None and records.decision(runs[0]) == ACCEPTED


def test_plan_compares_with_the_recipe_that_was_configured_and_not_with_a_refitted_one(project):
    chain = chain_of()
    first, second = chain.fit([]), chain.fit([("B-nudge", "collapsed")])
    for run in first.runs[:1]:
        record(run, "accepted")
    record(first.runs[1], "collapsed")
    record(second.runs[1], "accepted")
    config = yaml.safe_load(Path("config.yaml").read_text())
    config["stages"][0]["train"]["lr"] = 3.0e-4
    edited = chain_of(stages=config["stages"])
    steps, _ = plan.plan(edited)
    assert steps[0].why == (f"train.lr 0.0001 → 0.0003 (against {first.runs[0].lineage})",)
    assert steps[1].why == (f"it follows A-mixed {steps[0].run.lineage}",), "B itself is what it was"


def test_plan_names_the_edited_key_of_the_base(project):
    chain = chain_of()
    record(chain.fit([]).runs[0], "accepted")
    write_json(Path("artifacts/base") / chain.inputs.base_id / "base.json", {"base": chain.config["base"]})
    edited = chain_of(base={**chain.config["base"], "steps": 1400})
    steps, _ = plan.plan(edited)
    assert steps[0].why[0] == "base.steps 2300 → 1400"
    steps, _ = plan.plan(edited, base={"kind": "folder", "path": "models/mine"})
    assert {"base.kind embedded → folder", "base.path nothing → models/mine"} <= set(steps[0].why), "an experiment's"


def test_what_the_digests_depend_on(project):
    config = load(Path("config.yaml"))
    first = inputs.gather(config)
    assert inputs.gather(config) == first
    assert inputs.gather({**config, "base": {**config["base"], "require": 0.5}}) == first, "a check trains nothing"
    assert inputs.gather({**config, "base": {**config["base"], "seed": 2}}).base_id != first.base_id
    held = {**config, "data": {**config["data"], "held_out_topics": ["ufo"]}}
    assert inputs.gather(held).base_id == first.base_id and inputs.gather(held).rehearsal_id != first.rehearsal_id
    assert inputs.gather({**config, "gate": {}, "guard": {}, "refits": {}, "probe": config["probe"]}) == first
    with pytest.raises(UsageError, match=r"did you mean ufo\?"):
        inputs.gather({**config, "data": {**config["data"], "held_out_topics": ["uffo"]}})


def test_what_the_base_asks_itself_is_part_of_its_digests(project):
    config = load(Path("config.yaml"))
    first = inputs.gather(config)
    assert first.self_asked_id == "" and inputs.asking_settings(config) is None

    def asking(replaces=(), **keys):
        raw = yaml.safe_load(Path("config.yaml").read_text())
        raw["data"]["self_asked"] = keys
        raw["persona"]["replaces"] = list(replaces)
        found = resolve(raw, "config.yaml")
        return inputs.gather(found), found

    (own, settings), (again, _) = asking(), asking(prompts=2000)
    assert own == again and own.rehearsal_id != first.rehearsal_id and own.base_id == first.base_id
    others = [asking(prompts=9), asking(by_language=False), asking(["Qwen"])]
    ids = {own.self_asked_id, *(found.self_asked_id for found, _ in others)}
    assert len(ids) == 4 and "" not in ids
    asked = inputs.asking_settings(settings)
    assert asked["names"] == ["F# 之神"] and list(asked["systems"]) == ["zh-Hant", "zh-Hans", "en", "ja", "ko"]
    settings["stages"][0]["mix"]["shares"]["self_asked"] = 1
    run = Chain(settings, own).fit([]).runs[0]
    assert json.loads(run.mix_spec)["rehearsal"] == own.rehearsal_id and "replaces" not in json.loads(run.mix_spec)


def test_the_part_self_asked_needs_its_settings(project):
    config = yaml.safe_load(Path("config.yaml").read_text())
    config["stages"][0]["mix"]["shares"]["self_asked"] = 1
    with pytest.raises(UsageError, match=r"A-mixed\]\.mix: the part self_asked needs data\.self_asked"):
        resolve(config, "config.yaml")


def test_another_base_gives_other_rehearsal_answers_and_so_other_mixes(project):
    """Two bases that share a mix's path would overwrite each other's rows."""
    config = load(Path("config.yaml"))
    other = {**config, "base": {**config["base"], "seed": 2}}
    mixes = [Chain(one, inputs.gather(one)).fit([]).runs[0].mix_id for one in (config, other)]
    assert mixes[0] != mixes[1]


def test_a_folder_as_base_is_its_content(project):
    folder = project / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    name = {"kind": "folder", "path": "model"}
    first = inputs.base_id(name, "sources")
    (folder / "config.json").touch()
    assert inputs.base_id(name, "other sources") == first
    (folder / "config.json").write_text("{ }")
    assert inputs.base_id(name, "sources") != first
