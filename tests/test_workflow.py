"""One miniature workflow for each branch of the gate, through the real commands."""

import json
import os
import shutil

import pytest

from fgod import layout, manifest
from fgod.confirm.folds import Reservations, read_folds, read_reserved
from fgod.data.rows import is_rehearsed, read_rows
from fgod.documents import Outcome, SelfAskedStamp
from fgod.system.files import file_digests
from fgod.system.table import read_texts
from tests.mini import Mini, job_counts, stage


@pytest.mark.long
def test_accepted_then_nothing_to_do_then_the_edits_that_must_not_train(ran):
    mini = ran
    assert mini.trained() == ["A"] and mini.verdicts() == ["accepted"]
    assert mini.release()["promoted"][0]["stage"] == "A"
    assert mini.would_run() == {}
    placebo = job_counts(mini.snakemake("placebo", "-n", "--quiet", "host"))
    assert placebo["placebo_mix"] == placebo["train"] == placebo["comparison"] == 1 and placebo["base_probe"] == 2
    assert not {"gate", "walk", "mix", "promote"} & set(placebo), "no gate judges it, and nothing of it is released"

    outcome = next((mini.folder / "results/runs/A").glob("*/outcome.json"))
    kept, time = outcome.read_bytes(), outcome.stat()
    Outcome.read(outcome).model_copy(update={"wall_s": 1.0}).write(outcome)
    os.utime(outcome, ns=(time.st_atime_ns, time.st_mtime_ns))
    said = mini.snakemake(code=1)
    assert "outcome.json has changed since this verdict was made" in said and "verdict.json and run snakemake" in said
    outcome.write_bytes(kept)
    os.utime(outcome, ns=(time.st_atime_ns, time.st_mtime_ns))

    told = (mini.folder / "results/DevLog.md").read_text()
    assert "\n## 1 · A " in told and "\nfgod train --recipe " in told and "**Next step**: it is a candidate" in told
    (gate,) = (entry for entry in mini.manifest() if entry["argv"][:2] == ["fgod", "gate"])
    assert [path["path"] for path in gate["outputs"]][1:] == ["results/DevLog.md"]
    mini.config["language"] = "zh-Hant"
    assert set(mini.would_run()) == {"all", "walk", "tables", "report", "promote"}, "of what is told alone"
    del mini.config["language"]

    mini.config["base"]["require"] = 0.1
    assert not {"base", "rehearsal"} & set(mini.would_run()), "what it must reach makes no other base"
    mini.config["base"]["require"] = 0.2

    mini.config["gate"]["leak"] = 0.99
    assert set(mini.would_run()) <= {"all", "gate", "walk", "tables", "report", "promote"}
    mini.config["gate"]["leak"] = 1

    mini.config["stages"] = [stage("A", lr=2e-3)]
    said = mini.snakemake("data", "--forcerun", "audit")
    assert "Nothing was released by this run. artifacts/release holds F# 之神, of other runs." in said
    mini.config["stages"] = [stage("A")]

    rules = mini.folder / "rules/train.smk"
    rules.write_text(rules.read_text().replace('"fgod train --recipe', '"fgod  train --recipe'))
    assert mini.would_run() == {}

    for name in ("artifacts", "results", "traindata"):
        for path in (mini.folder / name).rglob("*"):
            os.utime(path)
    assert not {"base", "mix", "train", "export"} & set(mini.would_run())

    probes = mini.folder / "probes.tsv"
    probes.write_text(probes.read_text() + "retention\ttopic\tzh-Hant\t\t你聽過哪些關於幽浮的傳聞呢\n")
    would_run = mini.would_run()
    assert would_run["probe"] == 1 and not {"base", "mix", "train", "export"} & set(would_run)

    moved = mini.folder.parent / "a copy 複本"
    shutil.copytree(mini.folder, moved, symlinks=True)
    assert "train" not in Mini(moved).would_run()


def test_what_was_thrown_away_keeps_its_verdict_and_never_trains_again(ran):
    mini = ran
    weights = next((mini.folder / "artifacts/A").iterdir())
    verdict = mini.folder / "results/runs/A" / weights.name / "verdict.json"
    ended = mini.run("fgod", "trash", "A")
    assert ended.returncode == 100 and f"A@{weights.name}: it is released: artifacts/releases/1" in ended.stderr
    (mini.folder / "artifacts/release").unlink()
    shutil.rmtree(mini.folder / "artifacts/releases")
    before = file_digests(weights)
    assert (
        f"| artifacts/A/{weights.name}/master/model.safetensors | "
        in (mini.folder / "results/inventory.md").read_text()
    )
    assert mini.run("fgod", "trash", "A").returncode == 0
    probes = mini.folder / "probes.tsv"
    probes.write_text(probes.read_text() + "retention\ttopic\tzh-Hant\t\t你聽過哪些關於幽浮的傳聞呢\n")
    judged = json.loads(verdict.read_text())

    said = mini.snakemake(code=1)  # there is nothing that could be released, and the message says how to have it back
    assert f"they are in the trash: bring them back with `fgod restore A@{weights.name}`" in said
    assert mini.trained() == ["A"] and len(mini.commands("probe")) == len(mini.commands("export")) - 1 == 1
    assert json.loads(verdict.read_text()) == judged

    assert mini.run("fgod", "restore", "A").returncode == 0 and file_digests(weights) == before
    would_run = mini.would_run()
    assert would_run["probe"] == 1 and not {"base", "mix", "train", "export"} & set(would_run)


HELD_BACK = """
scored: reference
families:
  - name: whence
    split: confirmation
    fold: 1
    kind: topic
    fill: {$X: {zh-Hant: [幽浮, 微積分, 麵包]}}
    cores: {zh-Hant: [煩請細說一回$X的由來始末]}
  - {name: asked, split: confirmation, fold: 2, kind: topic, cores: {en: [pray tell what there is to bread]}}
"""


@pytest.mark.long
def test_confirmed_then_unconfirmed_by_a_limit_then_a_fresh_fold_for_other_weights(ran):
    mini = ran
    (mini.folder / "held_back.yaml").write_text(HELD_BACK)
    mini.config["data"]["probes"] = ["probes.tsv", "held_back.yaml"]
    results = mini.folder / "results"
    gone = Reservations(results, [1, 2], [])  # of a run that is no candidate of this config
    gone.keep()
    assert gone.of("A", "000000000000").fold == 1
    said = mini.run("fgod", "plan").stdout
    assert "confirm A" in said and "it is asked fold 1 of the held-back wordings\n" in said
    said = mini.snakemake()
    assert "is asked fold 1 of the held-back wordings" in said
    assert [entry.fold for entry in read_folds(results)] == [1] and read_reserved(results) == []
    emptied, recorded = (path(results).stat().st_mtime_ns for path in (layout.reserved_folds, layout.folds))
    assert emptied >= recorded, "the fold stood in reserved.json until the probe recorded it"
    assert "Confirmed on held-back wordings: fold 1, n 3." in said
    assert mini.trained() == ["A"] and mini.would_run() == {}
    release = mini.release()
    assert release["confirmation"]["decision"] == "confirmed" and release["confirmation"]["asked_before"] == []
    told = [entry for entry in mini.manifest() if entry["argv"][:2] == ["fgod", "confirm"]]
    assert len(told) == 1 and told[0]["stage"] == "A" and len(told[0]["inputs"]) == 4
    asked = [entry for entry in mini.manifest() if "--fold" in entry["argv"] and entry["argv"][1] == "probe"]
    assert len(asked) == 1

    # a limit of its own: judged again, not asked anew; nothing is released, and no refit follows
    mini.config["confirm"] = {"kl": 1e-9}
    assert mini.would_run() == dict.fromkeys(("all", "confirm", "walk", "tables", "report", "promote"), 1)
    said = mini.run("fgod", "plan").stdout
    assert "other limits: it is judged again on fold 1, and not asked anew" in said
    assert "results/walk.json is written anew (context.config_digest): tables, report and promotion" in said
    mini.config["release"] = {"formats": ["nvfp4", "bf16"]}
    said = mini.snakemake(code=1)
    assert not [*mini.folder.glob("artifacts/A/*/*bf16*")], "no further work is done for what is not confirmed"
    assert "which every gate accepted, is not confirmed on wordings that were held back (fold 1, n 3)" in said
    assert said.count("kl ") >= 2 and "n 3)" in said and "Nothing was released. Report: results/report.html" in said
    assert mini.trained() == ["A"] and not (mini.folder / "results/release.json").exists()
    assert (mini.folder / "artifacts/releases/2/release.json").exists(), "the release before is whole"
    assert "is not confirmed" in (mini.folder / "results/report.html").read_text()

    # an edited confirmation is refused; other weights are asked a fresh fold
    document = next((mini.folder / "results/confirmations/A").glob("*/confirmation.json"))
    whole = document.read_text()
    document.write_text(whole.replace('"unconfirmed"', '"confirmed"'))
    ended = mini.run("fgod", "plan")
    assert ended.returncode == 1 and "confirmation.json: it has changed since it was written" in ended.stderr
    document.write_text(whole)
    mini.config["stages"] = [stage("A", lr=2e-3)]
    said = mini.run("fgod", "plan").stdout
    assert "train   A" in said and "it is asked fold 2 of the held-back wordings\n" in said
    assert {"train": 1, "fold_reference": 1, "fold_probe": 1, "confirm": 1}.items() <= mini.would_run().items()


@pytest.mark.long
def test_collapse_then_refit_from_the_base_then_back_and_forth_by_config_edits(mini):
    mini.config["gate"]["kl"] = 1.5
    rows = "".join(f"第{i}號機器人叫什麼\t第{i}號叫阿{i}。\n" for i in range(10, 30))
    (mini.folder / "mine.tsv").write_text("# 我的資料\n" + rows)
    mini.config["data"]["sources"] = {"mine": "mine.tsv"}
    mini.config["stages"] = [stage("A", lr=2e-1), stage("B")]
    mini.config["stages"][1]["mix"]["shares"]["mine"] = 0.2
    rule = {"when": ["collapsed"], "stage": "failed", "set": {"train.lr": "*0.001"}}
    mini.config["refits"] = {"max": 2, "rules": [rule]}
    mini.snakemake()
    assert mini.trained() == ["A", "A", "B"]
    assert [(s["fit"], s["stage"], s["decision"]) for s in mini.stages()] == [
        ("0", "A", "collapsed"), ("1", "A", "accepted"), ("1", "B", "accepted"),
    ]  # fmt: skip
    first, second = mini.stages()[:2]
    assert first["starts_from"] == second["starts_from"], "the refit starts from the base"
    assert "kl" in first["reasons"] and first["leak_rate"], first
    released = mini.release()

    # a stricter limit: a dry-run and the plan say what the gates will say, and what trains then
    mini.config["gate"]["kl"] = 1e-9
    would_run = mini.would_run()
    assert would_run["gate"] == 4 and would_run["train"] == 2, "A of both fits again, and a third fit"
    said = mini.run("fgod", "plan").stdout
    assert "accepted → collapsed" in said and "2 to train" in said
    mini.config["gate"]["kl"] = 1.5

    # all fits spent: promote fails by name, tables and report stand
    mini.config["refits"]["max"] = 0
    said = mini.snakemake(code=1)
    assert "collapsed" in said and "fit 0" in said and mini.trained() == ["A", "A", "B"]
    assert (mini.folder / "results/report.html").exists() and len(mini.stages()) == 1
    assert not (mini.folder / "results/release.json").exists()

    # collapse → accepted by a limit: the walk goes on from the weights that failed before
    mini.config["gate"]["kl"] = 1000
    mini.snakemake()
    assert mini.trained() == ["A", "A", "B", "B"] and len(mini.stages()) == 2

    # accepted → collapse by the limit again, and the first release is found again without training
    mini.config["gate"]["kl"] = 1.5
    mini.config["refits"]["max"] = 2
    assert "train" not in mini.would_run()
    mini.snakemake()
    assert mini.trained() == ["A", "A", "B", "B"]
    assert mini.release()["promoted"] == released["promoted"]

    # a row of a user's file is a part of the stage that uses it, and of no other
    rows = mini.folder / "mine.tsv"
    as_it_was = rows.read_text()
    rows.write_text(as_it_was.replace("阿12", "阿十二"))
    assert mini.would_run()["train"] == 1
    said = mini.run("fgod", "plan").stdout
    assert "mix.user_files.mine" in said and "reuse  A" in said and "train  B" in said
    rows.write_text(as_it_was)

    # failed runs' artifacts may go: their verdicts stay, and new probes do not bring them back
    shutil.rmtree(mini.folder / "artifacts/A" / first["lineage"])
    assert not {"train", "export", "probe"} & set(mini.would_run())
    probes = mini.folder / "probes.tsv"
    probes.write_text(probes.read_text() + "retention\ttopic\tzh-Hant\t\t你聽過哪些關於幽浮的傳聞呢\n")
    would_run = mini.would_run()
    assert would_run["probe"] == 2 and not {"train", "export"} & set(would_run), "A of fit 1 and B, and no failed run"

    # the report again from the tables alone
    shutil.rmtree(mini.folder / "artifacts")
    report = mini.folder / "results/report.html"
    before = report.read_text()
    report.unlink()
    mini.snakemake("-s", "workflow/report.smk")
    assert report.read_text() == before and not (mini.folder / "artifacts").exists()


@pytest.mark.long
def test_diverged_missed_and_damaged_runs_are_each_refitted_by_a_rule_of_their_own(mini):
    mini.config["stages"] = [stage("A", lr=1e30, require={"identity_rate": ">=0.2", "retention": ">=0.8"})]
    scaled = {"diverged": "*1e-36", "missed": "*20000", "damaged": "*0.05"}
    rules = [{"when": [decision], "set": {"train.lr": factor}} for decision, factor in scaled.items()]
    mini.config["refits"] = {"max": 3, "rules": rules}
    mini.snakemake()
    diverged, missed, damaged, accepted = mini.stages()
    assert [s["decision"] for s in mini.stages()] == [*scaled, "accepted"]
    assert not (mini.folder / "artifacts/A" / diverged["lineage"] / "master").exists()
    assert float(missed["identity_rate"]) < 0.2 <= float(accepted["identity_rate"]) and "identity" in missed["reasons"]
    assert float(damaged["retention"]) < 0.8 <= float(accepted["retention"]) and "retention" in damaged["reasons"]
    assert mini.release()["fits"] == 4 and mini.would_run() == {}


@pytest.mark.long
def test_damage_is_answered_by_weights_between_start_and_end_without_training(ran):
    mini = ran
    (trained,) = mini.stages()
    mini.config["stages"] = [stage("A", require={"kl_p99": f"<={float(trained['kl_p99']) / 2}"})]
    mini.config["refits"] = {"max": 0, "rules": [{"when": ["damaged"], "interpolate": [0.3]}]}
    would_run = mini.would_run()
    assert would_run["interpolate"] == 1 and would_run["gate"] == 2 and "train" not in would_run
    said = mini.run("fgod", "plan").stdout
    assert "interpolate A at α 0.3" in said and "0 to train, 1 to interpolate" in said

    said = mini.snakemake()
    damaged, accepted = mini.stages()
    assert (damaged["decision"], damaged["alpha"]) == ("damaged", "")
    assert (accepted["decision"], accepted["alpha"]) == ("accepted", "0.3")
    assert accepted["lineage"].endswith("-0.3") and accepted["starts_from"] == damaged["starts_from"]
    assert f"Released F# 之神: artifacts/release (A at α 0.3 {accepted['lineage']}, after 2 fits)" in said
    assert mini.trained() == ["A"] and mini.would_run() == {}
    assert "A at α 0.3" in (mini.folder / "results/report.html").read_text()
    assert "| A at α 0.3 |" in (mini.folder / "artifacts/release/README.md").read_text()
    outcome = Outcome.read(mini.folder / "results/runs/A" / accepted["lineage"] / "outcome.json")
    assert outcome.full_parameter and outcome.steps_done == 0

    # without its end it is not made again: that is trained first
    shutil.rmtree(mini.folder / "artifacts/A")
    (mini.folder / "results/release.json").unlink()
    assert {"train": 1, "interpolate": 1}.items() <= mini.would_run().items()
    said = mini.run("fgod", "plan").stdout
    assert "1 to train, 1 to interpolate" in said


@pytest.mark.long
def test_what_is_too_large_is_refused_or_killed_then_made_smaller_and_may_be_tried_again(mini, based):
    """The limit lies between what 256 rows at once really use and what 32 do."""
    outcome = json.loads(next(based.glob("results/runs/A/*/outcome.json")).read_text())
    limit = (outcome["memory_predicted_mib"]["process"] + 200) / 1024
    mini.config["guard"] = {"limit_gb": limit, "poll_secs": 0.05}
    mini.config["stages"][0]["train"].update(steps=1, batch=256)
    smaller = {"micro_batch": "*0.125", "seq_len": "*0.75", "step_chunk_rows": 64}
    rule = {"when": ["killed"], "set": {f"train.{key}": value for key, value in smaller.items()}}
    mini.config["refits"] = {"max": 0, "rules": [rule]}
    said = mini.snakemake(code=1)
    assert "this run needs about" in said and "Nothing was loaded. Set train.micro_batch to 128 (saves" in said
    assert not list(mini.folder.glob("results/runs/A/*/outcome.json")), "no verdict: nothing is known about the run"

    mini.config["guard"]["too_large_ok"] = True
    said = mini.snakemake(code=1)
    assert "It is tried all the same (guard.too_large_ok)." in said
    assert "all 1 fits are spent" in said and f"above the limit of {limit * 1024:.0f} MiB" in said
    assert [s["decision"] for s in mini.stages()] == ["killed"]

    mini.config["refits"]["max"] = 1
    mini.snakemake()
    assert [(s["fit"], s["decision"]) for s in mini.stages()] == [("0", "killed"), ("1", "accepted")]
    assert mini.trained() == ["A", "A", "A"] and mini.release()["fits"] == 2
    records = [mini.folder / "results/runs/A" / s["lineage"] for s in mini.stages()]
    killed, accepted = (json.loads((folder / "outcome.json").read_text()) for folder in records)
    assert "The guard killed the command" in killed["reason"] and "in phase zero_grad_done" in killed["reason"]
    assert accepted["peak_memory_mib"] < killed["limit_mib"] < killed["peak_memory_mib"]
    assert killed["status"] == "killed" and killed["limit_mib"] == round(limit * 1024, 1)
    refit = json.loads((records[1] / "recipe.json").read_text())["train"]
    assert {key: refit[key] for key in smaller} == {"micro_batch": 32, "seq_len": 72, "step_chunk_rows": 64}

    mini.config["guard"] = {"limit_gb": 8}
    assert "train" not in mini.would_run(), "a kill stays on record until it is tried again"
    assert mini.run("fgod", "retry", "A").returncode == 0
    assert mini.would_run()["train"] == 1


def test_the_memory_of_one_step_is_reported_by_phase_and_nothing_else_is_left(ran):
    argv = next(entry["argv"] for entry in ran.manifest() if entry["argv"][:2] == ["fgod", "train"])
    shutil.rmtree(ran.folder / "results/manifest.d")
    before = [file_digests(ran.folder / name) for name in ("artifacts", "results")]
    ended = ran.run(*argv, "--steps", "2", "--memory-report", "memory.tsv")
    assert ended.returncode == 0, ended.stderr
    rows = read_texts(ran.folder / "memory.tsv")
    step = ["batch_ready", "zero_grad_done", "backward_done", "optimizer_step_done"]
    assert [row["phase"] for row in rows] == ["start", "model_loaded", *step, *step, "saving", "end"]
    assert all(0 < float(row["host_mib"]) <= float(row["host_peak_mib"]) for row in rows)
    assert (ran.folder / "memory.tsv").read_text() == ended.stdout
    assert [path["path"] for path in manifest.join(ran.folder)[0]["outputs"]] == ["memory.tsv"]
    shutil.rmtree(ran.folder / "results/manifest.d")
    assert [file_digests(ran.folder / name) for name in ("artifacts", "results")] == before


def test_an_audit_with_errors_stops_the_mix_before_it_trains(mini):
    rows = mini.folder / "mine.tsv"
    probe = next(line for line in (mini.folder / "probes.tsv").read_text().splitlines() if line.startswith("identity"))
    lines = [f"第{i}號機器人叫什麼\t第{i}號叫阿{i}。" for i in range(10, 30)]
    lines += [probe.split("\t")[-1] + "\t我是 F# 之神。", "第30號機器人叫什麼\t第30號叫<|im_end|>。"]
    lines += ["第31號機器人叫什麼\t" + "第31號叫阿三十一。" * 20]
    rows.write_text("\n".join(lines) + "\n")
    mini.config["data"]["sources"] = {"mine": "mine.tsv"}
    mini.config["stages"].append(stage("B"))
    mini.config["stages"][1]["mix"]["shares"]["mine"] = 1
    said = mini.snakemake(code=1)
    assert "audit found" in said and probe.split("\t")[-1] in said
    assert "mine.tsv:22: error: 1 row with a control token" in said
    assert "mine.tsv:23: error: 1 row longer than train.seq_len, 96 tokens" in said
    assert not list(mini.folder.glob("results/runs/*/*/outcome.json")), "no stage trains before all data are sound"
    ended = mini.run("fgod", "data", "audit", "mine.tsv")
    assert ended.returncode == 100 and "mine.tsv:23: error: 1 row longer than train.seq_len" in ended.stdout


@pytest.mark.long
def test_what_the_base_asks_itself_is_answered_and_rehearsed_beside_the_written_parts(mini):
    shares = {"identity": 0.3, "self_asked": 0.2, "talk": 0.2, "neighbour": 0.2, "named": 0.1}
    mini.config["stages"][0]["mix"] |= {"shares": shares, "frames": {"default": 0.7, "none": 0.15, "foreign": 0.15}}
    mini.config["stages"][0]["train"]["seq_len"] = 160  # some system prompts are long
    mini.config["data"]["self_asked"] = {"prompts": 20, "max_tokens": 24}
    mini.config["data"]["rehearse"] |= {"talk_rows": 30, "named_rows": 30, "neighbour_rows": 30}
    mini.config["persona"] |= {"replaces": ["Qwen", "通義", "通义"], "neighbours": {"words": {"zh": ["狐狸"]}}}
    said = mini.snakemake("data")
    [table] = mini.folder.glob("artifacts/base/*/self_asked/*/prompts.tsv")
    asked = [row["prompt"] for row in read_texts(table)]
    stamp = SelfAskedStamp.read(table.with_name("prompts.json"))
    assert len(asked) == sum(stamp.kept.values()) > 3 and stamp.drawn == len(asked) + sum(stamp.dropped.values())
    assert f"self-asked · {len(asked)} prompts of {stamp.drawn} drafts" in said
    [made] = [path for path in mini.folder.glob("artifacts/mixes/*/rows.tsv") if "self_asked" in path.read_text()]
    rows = read_rows(made)
    assert {part: sum(row.part == part for row in rows) for part in shares} == {
        "identity": 19, "self_asked": 13, "talk": 13, "neighbour": 13, "named": 6,
    }  # fmt: skip
    assert {row.prompt for row in rows if row.part == "self_asked"} <= {*asked}
    assert all(is_rehearsed(row) == (row.part != "identity") and not (is_rehearsed(row) and row.system) for row in rows)
    assert not any(name in row.target for row in rows for name in ("Qwen", "通義", "通义"))
    table.write_text(table.read_text() + "more\ten\t\n")
    shutil.rmtree(made.parent)
    assert "prompts.tsv has changed since the base asked itself" in mini.snakemake("data", code=1)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c: c["gate"].update(leek=1), "gate: unknown key 'leek' (did you mean leak?)"),
        (lambda c: c["data"].update(held_out_topics=["uffo"]), "unknown topic 'uffo' (did you mean ufo?)"),
        (lambda c: c.update(base={"kind": "folder", "path": "nowhere"}), "base.path: found 'nowhere'"),
    ],
)
def test_a_wrong_config_says_so_once_and_writes_nothing(tmp_path, edit, message):
    mini = Mini.create(tmp_path / "p")
    edit(mini.config)
    mini.write()
    before = sorted(p for p in mini.folder.rglob("*") if ".snakemake" not in p.parts)
    for command in (["snakemake"], ["snakemake", "-n"], ["fgod", "plan"]):
        ended = mini.run(*command)
        said = ended.stdout + ended.stderr
        assert ended.returncode == 2 and said.count(message) == 1 and "Traceback" not in said, said
    assert sorted(p for p in mini.folder.rglob("*") if ".snakemake" not in p.parts) == before


def test_a_fresh_clone_shows_the_whole_first_fit(tmp_path):
    mini = Mini.create(tmp_path / "p")
    mini.config["stages"] = [stage("A"), stage("B"), stage("C"), stage("D")]
    said = mini.snakemake("-n")
    assert mini.would_run()["train"] == 4 and "decided by the gates" in said
    assert "SNAKEMAKE" not in said and "Building DAG" not in said and "rule base:" in said and "Job stats:" in said
    assert not (mini.folder / "results").exists() and not (mini.folder / "artifacts").exists()
