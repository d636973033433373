# Mixes and their audits. A mix never reads the probes: only its audit does. Probes that are added later are held
# against the rows by the rule probe.


rule mix:
    input:
        ancient(f"{REHEARSAL}/answers.tsv"),
    output:
        "artifacts/mixes/{mix}/rows.tsv",
    params:
        spec=lambda wildcards: MIXES[wildcards.mix],
    priority: 1  # all data before any training: a fault in the last stage's costs no hours
    shell:
        "{FGOD} data mix --spec {params.spec:q} {SOURCED} --files {FILES:q} --answers {input:q} --out {output:q}"


rule audit:
    input:
        rows=ancient("artifacts/mixes/{mix}/rows.tsv"),
        base=ancient(f"{BASE}/base.json"),  # its tokenizer says how long the rows are
        probes=ancient(PROBES),
    output:
        "artifacts/mixes/{mix}/audit-{seq_len}.json",
    priority: 1
    shell:
        "{FGOD} data audit {input.rows:q} --probes {input.probes:q} --goal {GOAL:q} {SOURCED}"
        " --files {FILES:q} --weights {BASE_WEIGHTS:q} --seq-len {wildcards.seq_len} --chat {CHAT:q} --out {output:q}"


def teacher_start(wildcards):
    """The stamp of the base as it teaches: rounded, or as its folder has it."""
    rounded = TEACHERS[wildcards.teacher]["teacher"] == "rounded"
    return ancient(f"{BASE_EXPORT}/exported.json" if rounded else f"{BASE}/base.json")


def teacher_weights(wildcards):
    return f"{BASE_EXPORT}/nvfp4" if TEACHERS[wildcards.teacher]["teacher"] == "rounded" else BASE_WEIGHTS


# The base's distributions at the labels of a mix's rehearsed rows, for stages with train.kl.
rule teacher:
    input:
        stamp=teacher_start,
        rows=ancient("artifacts/mixes/{mix}/rows.tsv"),
    output:
        "artifacts/mixes/{mix}/teacher-{teacher}/teacher.json",
    params:
        settings=lambda wildcards: canonical_json(TEACHERS[wildcards.teacher]),
    resources:
        gpu=lambda wildcards: gpus(TEACHERS[wildcards.teacher]["device"]),
        weights=lambda wildcards: teacher_weights(wildcards),
    shell:
        "{FGOD} answers teacher --weights {resources.weights:q} --stamp {input.stamp:q} --rows {input.rows:q}"
        " --settings {params.settings:q} --disk-gb {CONFIG[data][teacher_gb]} --out {output:q} {GUARD}"


rule data:
    input:
        [audit_of(run) for run in EXPECTED.runs],
