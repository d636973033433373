"""One miniature workflow for each branch of the gate, through the real commands."""

import json
import os
import shutil

import pytest

from fgod.files import file_digests, read_table
from tests.mini import Mini, stage


def test_accepted_then_nothing_to_do_then_the_edits_that_must_not_train(ran):
    mini = ran
    assert mini.trained() == ["A"] and mini.verdicts() == ["accepted"]
    assert mini.release()["promoted"][0]["stage"] == "A"
    assert mini.would_run() == {}

    mini.config["gate"]["leak"] = 0.99
    assert set(mini.would_run()) <= {"all", "gate", "walk", "tables", "report", "promote"}
    mini.config["gate"]["leak"] = 1

    rules = mini.folder / "rules/train.smk"
    rules.write_text(rules.read_text().replace('"fgod train --recipe', '"fgod  train --recipe'))
    assert mini.would_run() == {}

    for name in ("artifacts", "results", "traindata"):
        for path in (mini.folder / name).rglob("*"):
            os.utime(path)
    assert not {"base", "mix", "train", "export"} & set(mini.would_run())

    probes = mini.folder / "probes.tsv"
    probes.write_text(probes.read_text() + "retention\ttopic\tzh-Hant\t\t你聽過哪些關於幽浮的傳聞呢\n")
    assert "probe" in mini.would_run() and not {"base", "mix", "train", "export"} & set(mini.would_run())
    mini.snakemake()
    assert mini.trained() == ["A"]

    moved = mini.folder.parent / "a copy 複本"
    shutil.copytree(mini.folder, moved, symlinks=True)
    assert "train" not in Mini(moved).would_run()


def test_collapse_then_refit_from_the_base_then_back_and_forth_by_config_edits(mini):
    mini.config["gate"]["kl"] = 1.5
    mini.config["stages"] = [stage("A", lr=2e-1), stage("B")]
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

    # failed runs' artifacts may go: their verdicts stay, and new probes do not bring them back
    shutil.rmtree(mini.folder / "artifacts/A" / first["lineage"])
    assert not {"train", "export", "probe"} & set(mini.would_run())
    probes = mini.folder / "probes.tsv"
    probes.write_text(probes.read_text() + "retention\ttopic\tzh-Hant\t\t你聽過哪些關於幽浮的傳聞呢\n")
    assert "train" not in mini.would_run()
    mini.snakemake()
    assert mini.trained() == ["A", "A", "B", "B"]

    # the report again from the tables alone
    shutil.rmtree(mini.folder / "artifacts")
    report = mini.folder / "results/report.html"
    before = report.read_text()
    report.unlink()
    mini.snakemake("-s", "workflow/report.smk")
    assert report.read_text() == before and not (mini.folder / "artifacts").exists()


def test_missed_then_stronger(mini):
    mini.config["stages"] = [stage("A", lr=1e-6, require={"identity_rate": ">=0.2"})]
    mini.config["refits"] = {"max": 1, "rules": [{"when": ["missed"], "set": {"train.lr": "*3000"}}]}
    mini.snakemake()
    assert [s["decision"] for s in mini.stages()] == ["missed", "accepted"]
    assert float(mini.stages()[0]["identity_rate"]) < 0.2 <= float(mini.stages()[1]["identity_rate"])


def test_damaged(mini):
    mini.config["stages"] = [stage("A", lr=3e-2, require={"retention": ">=0.99"})]
    mini.config["refits"] = {"max": 1, "rules": [{"when": ["damaged"], "set": {"train.lr": "*0.0001"}}]}
    mini.snakemake()
    assert [s["decision"] for s in mini.stages()] == ["damaged", "accepted"]
    assert "retention" in mini.stages()[0]["reasons"]


def test_diverged(mini):
    mini.config["stages"] = [stage("A", lr=1e30)]
    mini.config["refits"] = {"max": 1, "rules": [{"when": ["diverged"], "set": {"train.lr": "*1e-34"}}]}
    mini.snakemake()
    assert [s["decision"] for s in mini.stages()] == ["diverged", "accepted"]
    failed = mini.stages()[0]
    assert not (mini.folder / "artifacts/A" / failed["lineage"] / "master").exists()
    assert mini.would_run() == {}


def test_killed_by_the_guard_then_retry(mini):
    """Here not even the imports fit, so the refit that the rule makes is killed as well, and all is spent."""
    mini.config["guard"] = {"limit_gb": 0.05, "poll_secs": 0.05}
    smaller = {"micro_batch": "*0.5", "seq_len": "*0.75", "step_chunk_rows": 64, "m_dtype": "int8", "v_dtype": "uint8"}
    rule = {"when": ["killed"], "set": {f"train.{key}": value for key, value in smaller.items()}}
    mini.config["refits"] = {"max": 1, "rules": [rule]}
    said = mini.snakemake(code=1)
    assert [(s["fit"], s["decision"]) for s in mini.stages()] == [("0", "killed"), ("1", "killed")]
    assert "all 2 fits are spent" in said and "above the limit of 51 MiB" in said
    outcomes = [json.loads(f.read_text()) for f in mini.folder.glob("results/runs/A/*/outcome.json")]
    assert len(outcomes) == 2
    for outcome in outcomes:
        assert outcome["status"] == "killed" and outcome["peak_memory_mib"] > 51.2 and outcome["limit_mib"] == 51.2
    recipe = mini.folder / "results/runs/A" / mini.stages()[1]["lineage"] / "recipe.json"
    refit = json.loads(recipe.read_text())["train"]
    assert {key: refit[key] for key in smaller} == {**smaller, "micro_batch": 4, "seq_len": 72}
    mini.config["guard"] = {"limit_gb": 8}
    assert "train" not in mini.would_run(), "a kill stays on record until it is retried"
    assert mini.run("fgod", "retry", "A").returncode == 0
    mini.snakemake()
    assert mini.trained() == ["A", "A", "A"] and [s["decision"] for s in mini.stages()] == ["accepted"]


def test_what_is_too_large_is_refused_or_killed_and_then_made_smaller(mini, based):
    """The limit lies between what 256 rows at once really use and what 32 do."""
    outcome = json.loads(next(based.glob("results/runs/A/*/outcome.json")).read_text())
    mini.config["guard"] = {"limit_gb": (outcome["memory_predicted_mib"]["process"] + 240) / 1024, "poll_secs": 0.05}
    mini.config["stages"][0]["train"].update(steps=1, batch=256)
    mini.config["refits"] = {"max": 1, "rules": [{"when": ["killed"], "set": {"train.micro_batch": "*0.125"}}]}
    said = mini.snakemake(code=1)
    assert "this run needs about" in said and "Nothing was loaded. Set train.micro_batch to 128 (saves" in said
    assert not list(mini.folder.glob("results/runs/A/*/outcome.json")), "no verdict: nothing is known about the run"

    mini.config["guard"]["too_large_ok"] = True
    said = mini.snakemake()
    assert "It is tried all the same (guard.too_large_ok)." in said
    assert [(s["fit"], s["decision"]) for s in mini.stages()] == [("0", "killed"), ("1", "accepted")]
    killed, accepted = (
        json.loads((mini.folder / "results/runs/A" / s["lineage"] / "outcome.json").read_text()) for s in mini.stages()
    )
    assert "The guard killed the command" in killed["reason"] and "in phase zero_grad_done" in killed["reason"]
    assert accepted["peak_memory_mib"] < killed["limit_mib"] < killed["peak_memory_mib"]
    refit = mini.folder / "results/runs/A" / mini.stages()[1]["lineage"] / "recipe.json"
    assert json.loads(refit.read_text())["train"]["micro_batch"] == 32 and mini.release()["fits"] == 2


def test_the_memory_of_one_step_is_reported_by_phase_and_nothing_else_is_left(ran):
    argv = next(entry["argv"] for entry in ran.manifest() if entry["argv"][:2] == ["fgod", "train"])
    before = [file_digests(ran.folder / name) for name in ("artifacts", "results")]
    ended = ran.run(*argv, "--steps", "2", "--memory-report", "memory.tsv")
    assert ended.returncode == 0, ended.stderr
    rows = read_table(ran.folder / "memory.tsv")
    step = ["batch_ready", "zero_grad_done", "backward_done", "optimizer_step_done"]
    assert [row["phase"] for row in rows] == ["start", "model_loaded", *step, *step, "saving", "end"]
    assert all(0 < float(row["host_mib"]) <= float(row["host_peak_mib"]) for row in rows)
    assert (ran.folder / "memory.tsv").read_text() == ended.stdout
    assert [file_digests(ran.folder / name) for name in ("artifacts", "results")] == before


def test_a_row_of_a_users_file_is_part_of_what_uses_it(mini):
    rows = mini.folder / "mine.tsv"
    rows.write_text(
        "# 我的資料\n".encode().decode() + "".join(f"第{i}號機器人叫什麼\t第{i}號叫阿{i}。\n" for i in range(10, 30))
    )
    mini.config["data"]["sources"] = {"mine": "mine.tsv"}
    mini.config["stages"] = [stage("A"), stage("B", steps=4)]
    mini.config["stages"][1]["mix"]["shares"]["mine"] = 0.2
    mini.snakemake()
    assert mini.trained() == ["A", "B"]
    rows.write_text(rows.read_text().replace("阿12", "阿十二"))
    assert mini.would_run()["train"] == 1
    said = mini.run("fgod", "plan").stdout
    assert "mix.user_files.mine" in said and "reuse  A" in said and "train  B" in said


def test_an_audit_with_errors_stops_the_mix_before_it_trains(mini):
    rows = mini.folder / "mine.tsv"
    probe = next(line for line in (mini.folder / "probes.tsv").read_text().splitlines() if line.startswith("identity"))
    lines = [f"第{i}號機器人叫什麼\t第{i}號叫阿{i}。" for i in range(10, 30)]
    rows.write_text("\n".join([*lines, probe.split("\t")[-1] + "\t我是 F# 之神。"]) + "\n")
    mini.config["data"]["sources"] = {"mine": "mine.tsv"}
    mini.config["stages"][0]["mix"]["shares"]["mine"] = 1
    said = mini.snakemake(code=1)
    assert "audit found" in said and probe.split("\t")[-1] in said
    assert not list(mini.folder.glob("results/runs/A/*/outcome.json"))


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
    assert not (mini.folder / "results").exists() and not (mini.folder / "artifacts").exists()
