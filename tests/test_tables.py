"""Tables gathered from hand-made records, and the release made of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from fgod.documents import Release
from fgod.errors import FgodError, RefusedError, UsageError
from fgod.gather import gather
from fgod.layout import Releases, RunWeights
from fgod.promotion import WalkEntry
from fgod.registry import METRICS
from fgod.release import failure_message, promote, release_faults, summary_text
from fgod.system import files
from fgod.system.table import read_texts
from fgod.tables import TABLES, stage_columns
from tests.made_runs import DOOM, STAGES, STORY, context, walk

DESIGN = {
    "stages": "fit, stage, lineage, starts_from, decision, reasons, identity_rate, confusion_rate, "
    "disambiguation_rate, leak_rate, retention, retention_held_out, repetition_rate, ended_rate, "
    "distinct_replies, n_identity, n_disambiguation, n_retention, steps, lr, wall_s, peak_memory_mib, weights_sha256",
    "probes": "fit, stage, lineage, suite, kind, language, held_out, prompt, reply, reference, passed, marked, ended, "
    "looped",
    "training": "stage, lineage, step, loss, lr, grad_norm, update_efficiency, tokens, seconds, memory_mib",
    "participation": "stage, lineage, tensor, alias_of, trainable, got_gradient, changed_share, exported_as",
    "guard": "stage, lineage, t, phase, source, used_mib, limit_mib",
    "artifacts": "path, stage, lineage, kind, bytes, sha256, status",
}
"""Columns that others read."""


def read(root: Path, name: str) -> list[dict[str, str]]:
    return read_texts(root / "results" / "tables" / f"{name}.tsv", TABLES[name])


def gathered(root: Path, fits: tuple[tuple[tuple[str, str, str], ...], ...] = STORY) -> list[WalkEntry]:
    entries = walk(root, fits)
    gather(entries, root / "results", root / "artifacts", context())
    return entries


@pytest.mark.parametrize("name", DESIGN)
def test_tables_have_the_columns_that_others_read(name: str) -> None:
    columns = stage_columns(METRICS, context().suites) if name == "stages" else TABLES[name]
    assert [c for c in columns if c in DESIGN[name].split(", ")] == DESIGN[name].split(", ")


def test_stages_has_a_row_for_each_run_of_each_fit(tmp_path: Path) -> None:
    gathered(tmp_path)
    rows = read(tmp_path, "stages")
    assert [(r["fit"], r["stage"], r["decision"]) for r in rows] == [
        ("0", "A-mixed", "accepted"),
        ("0", "B-nudge", "collapsed"),
        ("1", "A-mixed", "accepted"),
        ("1", "B-nudge", "accepted"),
        ("1", "C-disambiguate", "accepted"),
        ("1", "D-settle", "accepted"),
    ]
    hot, last = rows[1], rows[-1]
    assert hot["reasons"].startswith("leak 75 % > 5 %: 說說茶0 → 我是 F# 之神。")
    assert (hot["lr"], hot["steps"], hot["starts_from"]) == ("0.01", "60", "aaaa11112222")
    assert (last["identity_rate"], last["retention"], last["n_retention"]) == ("1.0", "0.975", "40")
    assert float(last["peak_memory_mib"]) == pytest.approx(900, abs=1)
    assert last["weights_sha256"] == "ab" * 32 and last["starts_from"] == "cccc11112222"


def test_a_shared_run_is_probed_once_a_fit_and_trained_once(tmp_path: Path) -> None:
    gathered(tmp_path)
    of_a = [r for r in read(tmp_path, "probes") if r["stage"] == "A-mixed"]
    assert {r["fit"] for r in of_a} == {"0", "1"} and len(of_a) == 2 * 83
    assert sum(r["stage"] == "A-mixed" for r in read(tmp_path, "training")) == 60
    assert len(read(tmp_path, "participation")) == 5 * 3
    assert len(read(tmp_path, "guard")) == 5 * 25


def test_metrics_table_has_limits_and_languages(tmp_path: Path) -> None:
    gathered(tmp_path)
    rows = [r for r in read(tmp_path, "metrics") if (r["fit"], r["stage"]) == ("0", "B-nudge")]
    leak = next(r for r in rows if r["metric"] == "leak_rate" and not r["language"])
    assert (leak["value"], leak["n"], leak["op"], leak["limit"], leak["verdict"]) == (
        *("0.75", "40", "<=", "0.05"),
        "collapsed",
    )
    assert {r["language"] for r in rows if r["metric"] == "identity_rate"} == {"", "en", "zh-Hant"}


def test_failed_runs_without_weights_are_in_the_tables_too(tmp_path: Path) -> None:
    gathered(tmp_path, DOOM)
    rows = {r["lineage"]: r for r in read(tmp_path, "stages")}
    killed = rows["bbbb00000002"]
    assert killed["decision"] == "killed" and "limit 8192 MiB" in killed["reasons"]
    assert killed["identity_rate"] == killed["weights_sha256"] == killed["n_identity"] == ""
    assert {r["lineage"] for r in read(tmp_path, "artifacts")} == {"aaaa11112222", "bbbb00000000"}
    losses = [r["loss"] for r in read(tmp_path, "training") if r["lineage"] == "bbbb00000001"]
    assert losses[-1] == "nan"
    assert files.read_json(tmp_path / "results" / "tables" / "context.json")["promoted"] == []


def test_artifacts_have_a_status(tmp_path: Path) -> None:
    entries = gathered(tmp_path)
    files.write_text(tmp_path / "artifacts" / "A-mixed" / "old" / "master" / "model.safetensors", "not of this walk")
    status = {(r["stage"], r["kind"], r["lineage"][:5]): r["status"] for r in read(tmp_path, "artifacts")}
    assert status["B-nudge", "master", "bbbb0"] == status["B-nudge", "nvfp4", "bbbb0"] == "failed"
    assert status["D-settle", "nvfp4", "dddd1"] == status["A-mixed", "master", "aaaa1"] == "promoted"
    export = next(r for r in read(tmp_path, "artifacts") if r["kind"] == "nvfp4")
    assert export["sha256"] == files.sha256_folder(Path(export["path"])) and export["bytes"] == "8"

    import shutil

    weights = RunWeights(tmp_path / "artifacts" / "B-nudge" / "bbbb00000000")
    shutil.copytree(weights.exported, weights.trash / "nvfp4")
    shutil.rmtree(weights.folder)
    gather(entries[:2], tmp_path / "results", tmp_path / "artifacts", context())
    rows = {(r["stage"], r["kind"]): (r["status"], r["bytes"]) for r in read(tmp_path, "artifacts")}
    assert rows["B-nudge", "master"] == ("pruned", "") and rows["B-nudge", "nvfp4"] == ("trashed", "8")
    assert rows["A-mixed", "master"] == ("accepted", "6")


def test_audits_and_context(tmp_path: Path) -> None:
    gathered(tmp_path)
    rows = [r for r in read(tmp_path, "audits") if r["stage"] == "D-settle"]
    assert [(r["severity"], r["code"]) for r in rows] == [
        ("fact", "rows"),
        ("fact", "parts"),
        ("fact", "aloud"),
        ("fact", "aloud"),
        ("warning", "probe_overlap"),
        ("accepted", "mismatch"),
    ]
    assert rows[1]["message"] == "identity (rows 60, kinds (identity 60)), general (rows 540)"
    found = files.read_json(tmp_path / "results" / "tables" / "context.json")
    assert found["promoted"][-1] == ["D-settle", "dddd11112222"] and found["fits"] == 2
    assert found["persona"] == "F# 之神" and found["stages"] == list(STAGES)


def test_a_missing_or_broken_record_is_named(tmp_path: Path) -> None:
    entries = walk(tmp_path, STORY[:1])
    run = tmp_path / "results" / "runs" / "B-nudge" / "bbbb00000000"
    (run / "train.tsv").write_text("step\tloss\n1\t2\n", encoding="utf-8")
    with pytest.raises(FgodError, match=r"train\.tsv:1: columns lr"):
        gather(entries, tmp_path / "results", tmp_path / "artifacts", context())
    (run / "outcome.json").unlink()
    with pytest.raises(UsageError, match=r"outcome\.json: no such file"):
        gather(entries, tmp_path / "results", tmp_path / "artifacts", context())


def test_promote_copies_what_was_probed_and_writes_the_record(tmp_path: Path) -> None:
    entries = walk(tmp_path, STORY)
    results, artifacts = tmp_path / "results", tmp_path / "artifacts"
    files.write_text(artifacts / "release" / "stale.txt", "of an earlier release")
    document = promote(entries, results, artifacts, context())
    assert document == Release.read(results / "release.json") == Release.read(artifacts / "release" / "release.json")
    assert {"fits", "promoted", "path", "base_id", "config_digest"} <= set(document.content())
    assert [p.stage for p in document.promoted] == list(STAGES)
    assert set(document.content()["promoted"][0]) == {"stage", "lineage", "alpha", "metrics", "weights_sha256"}
    assert document.fits == 2 and document.promoted[-1].metrics["identity_rate"].n == 20
    assert (artifacts / "releases" / "1" / "stale.txt").exists(), "what an older version released is history"
    assert (artifacts / "release").readlink() == Path("releases/2")
    names = {p.name for p in files.folder_files(artifacts / "release")}
    assert names == {"model.safetensors", "config.json", "README.md", "release.json"}
    card = (artifacts / "release" / "README.md").read_text(encoding="utf-8")
    for part in ("F# 之神", "| retention | 97.5 % |", "dddd11112222", "AutoModelForCausalLM", "0123456789ab", "MIT"):
        assert part in card
    assert "was taught and measured: system prompt: what the chat template writes where none is given." in card
    assert document.chat == {}
    assert "- Taught with faults in its data, A-mixed: drawn independently: 12 of 600 rows (`mismatch`)." in card
    assert "a row's prompt is also a probe" not in card, "a warning is of the report"
    text = summary_text(document, results / "report.html")
    assert text.startswith("Released F# 之神: ") and "after 2 fits" in text.splitlines()[0]
    assert "identity_rate" in text and text.splitlines()[-1] == f"Report: {results / 'report.html'}"


HOSTILE = "F#\n\n# <script>alert(1)</script> | `x` [a](http://b) \x1b[31m{0}"


def test_a_hostile_persona_is_text_in_card_and_summary(tmp_path: Path) -> None:
    document = promote(walk(tmp_path, STORY), tmp_path / "results", tmp_path / "artifacts", context(persona=HOSTILE))
    card = (tmp_path / "artifacts" / "release" / "README.md").read_text(encoding="utf-8")
    summary = summary_text(document, tmp_path / "report.html")
    escaped = r"F# # &lt;script&gt;alert(1)&lt;/script&gt; \| \`x\` \[a\](http://b) \\x1b\[31m{0}"
    assert f"\n# {escaped}\n" in card and f"**{escaped}**" in card
    assert "<script" not in card + summary and "\x1b" not in card + summary
    released = "Released F# # &lt;script&gt;alert(1)&lt;/script&gt; | `x` [a](http://b) \\x1b[31m{0}: "
    assert summary.splitlines()[0].startswith(released)
    assert document.persona == HOSTILE


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda nvfp4: files.write_text(nvfp4 / "model.safetensors", "other"),
            r"nvfp4: model\.safetensors has changed since it was probed; delete .*exported\.json",
        ),
        (lambda nvfp4: (nvfp4 / "config.json").unlink(), r"config\.json is gone since it was probed"),
        (lambda nvfp4: files.write_text(nvfp4 / "more.txt", ""), r"more\.txt is new since it was probed"),
    ],
)
def test_promote_refuses_an_export_that_is_not_what_was_probed(tmp_path: Path, change, words: str) -> None:  # type: ignore[no-untyped-def]
    entries = walk(tmp_path, STORY)
    change(tmp_path / "artifacts" / "D-settle" / "dddd11112222" / "nvfp4")
    with pytest.raises(UsageError, match=words):
        promote(entries, tmp_path / "results", tmp_path / "artifacts", context())
    assert not (tmp_path / "artifacts" / "release").exists()
    assert not (tmp_path / "results" / "release.json").exists()


def test_when_every_fit_failed_one_message_names_them_all(tmp_path: Path) -> None:
    entries = walk(tmp_path, DOOM)
    failed = context(spent="all 3 fits are spent (refits.max: 2)")
    with pytest.raises(RefusedError) as error:
        promote(entries, tmp_path / "results", tmp_path / "artifacts", failed)
    lines = str(error.value).splitlines()
    assert lines[0] == "nothing is released: all 3 fits are spent (refits.max: 2)"
    assert [line for line in lines if line.startswith("  fit")] == [
        "  fit 0: B-nudge bbbb00000000 collapsed",
        "  fit 1: B-nudge bbbb00000001 diverged",
        "  fit 2: B-nudge bbbb00000002 killed",
    ]
    assert "    worst probe: 說說茶0 → 我是 F# 之神。 (the reference: 茶是一個話題。)" in lines
    assert failure_message(entries, tmp_path / "results", failed.spent) == str(error.value)


def released(root: Path, **changes: object) -> Releases:
    """A release of the story, on disk."""
    places = Releases(root / "results", root / "artifacts")
    promote(walk(root, STORY), places.results, places.artifacts, context(**changes))
    return places


def test_a_later_release_leaves_the_earlier_one_whole_and_the_same_one_is_not_copied_again(tmp_path: Path) -> None:
    places = released(tmp_path)
    first = files.file_digests(tmp_path / "artifacts/releases/1")
    released(tmp_path)
    assert [path.name for path in (tmp_path / "artifacts/releases").iterdir()] == ["1"]
    released(tmp_path, config_digest="another")
    assert places.link.readlink() == Path("releases/2") and release_faults(places) == []
    assert files.file_digests(tmp_path / "artifacts/releases/1") == first
    assert Release.read(places.record).config_digest == "another"


def test_when_every_fit_failed_the_release_before_is_history(tmp_path: Path) -> None:
    places = released(tmp_path)
    before = files.file_digests(tmp_path / "artifacts/releases/1")
    with pytest.raises(RefusedError, match=r"release before it is whole in \S*artifacts/releases/1; "):
        promote(walk(tmp_path, DOOM), places.results, places.artifacts, context())
    assert files.file_digests(tmp_path / "artifacts/releases/1") == before
    assert not places.record.exists() and not places.link.is_symlink() and release_faults(places) == []


def test_an_export_that_was_damaged_leaves_the_release_untouched(tmp_path: Path) -> None:
    places, entries = released(tmp_path), walk(tmp_path, STORY)
    before = files.file_digests(tmp_path / "artifacts/releases"), places.record.read_bytes()
    files.write_text(tmp_path / "artifacts/D-settle/dddd11112222/nvfp4/model.safetensors", "other")
    with pytest.raises(UsageError, match=r"delete \S*D-settle/dddd11112222/exported\.json and run snakemake again"):
        promote(entries, places.results, places.artifacts, context(config_digest="another"))
    assert (files.file_digests(tmp_path / "artifacts/releases"), places.record.read_bytes()) == before
    assert release_faults(places) == []


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda p: files.write_text(p.link / "model.safetensors", "pack3d"), "release: model.safetensors has changed"),
        (lambda p: (p.link / "config.json").unlink(), "release: config.json is gone"),
        (lambda p: (p.link / "more").write_text(""), "release: more is new"),
        (lambda p: p.record.unlink(), "results/release.json is gone"),
        (lambda p: p.link.unlink(), "artifacts/release/release.json is gone"),
        (lambda p: p.record.write_text("{}"), "release.json differs from"),
        (lambda p: (p.link / "release.json").write_text("{}"), "release.json: it has no seal"),
    ],
)
def test_a_damaged_release_is_noticed_and_made_anew(tmp_path: Path, damage, words: str) -> None:  # type: ignore[no-untyped-def]
    places = released(tmp_path)
    whole = files.file_digests(places.link)
    damage(places)
    assert any(words in fault for fault in release_faults(places)), release_faults(places)
    assert any(words in fault for fault in release_faults(places, tmp_path / "cache.json"))
    released(tmp_path)
    assert release_faults(places) == [] and files.file_digests(places.link) == whole


def test_a_link_that_a_killed_process_left_is_cleared_up_and_not_followed(tmp_path: Path) -> None:
    places = released(tmp_path)
    (tmp_path / "artifacts/.release.abcd1234.tmp").symlink_to("releases/1")
    assert len(files.sweep(tmp_path / "artifacts")) == 1 and release_faults(places) == []
    assert not (tmp_path / "artifacts/.release.abcd1234.tmp").is_symlink()
