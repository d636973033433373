# Mixes and their audits. A mix never reads the probes: only its audit does. Probes that are added later are held
# against the rows by the rule probe.


def mix_chain(wildcards):
    """A chain that has the sources of a mix."""
    return KNOWN.mix_chains[wildcards.mix]


def rehearsal_of(wildcards):
    return ancient(BASE.answers(mix_chain(wildcards).inputs.rehearsal_id).table)


def files_of(wildcards):
    """The user's files of rows, for a mix or its audit. A resource: a file that was moved makes no mix again."""
    return canonical_json(mix_chain(wildcards).config["data"]["sources"])


rule mix:
    input:
        answers=rehearsal_of,
        asked=lambda wildcards: [ancient(path) for path in asked_of(mix_chain(wildcards))],
    output:
        MIX.rows,
    wildcard_constraints:
        mix=unless_rows_stand("[0-9a-f]{12}"),
    priority: 1  # all data before any training: a fault in the last stage's costs no hours
    resources:
        files=files_of,
        asked=lambda wildcards: asked_option(mix_chain(wildcards)),
    params:
        spec=lambda wildcards: KNOWN.mixes[wildcards.mix],
    shell:
        "{FGOD} data mix --spec {params.spec:q} {SOURCED} --files {resources.files:q} --answers {input.answers:q}"
        " {resources.asked} --out {output:q}"


rule audit:
    input:
        rows=ancient(MIX.rows),
        base=ancient(BASE.stamp),  # its tokenizer says how long the rows are
    output:
        MIX.audit("{seq_len}"),
    priority: 1
    resources:
        files=files_of,
    shell:
        "{FGOD} data audit {input.rows:q} --probes {PROBES:q} --goal {GOAL:q} {SOURCED}"
        " --files {resources.files:q} --weights {BASE_WEIGHTS:q} --seq-len {wildcards.seq_len} --chat {CHAT:q} --out {output:q}"


def teacher_start(wildcards):
    """The stamp of the base as it teaches: rounded, or as its folder has it."""
    rounded = KNOWN.teachers[wildcards.teacher]["teacher"] == "rounded"
    return ancient(BASE_EXPORT.stamp if rounded else BASE.stamp)


def teacher_weights(wildcards):
    return str(BASE_EXPORT.exported) if KNOWN.teachers[wildcards.teacher]["teacher"] == "rounded" else BASE_WEIGHTS


# The base's distributions at the labels of a mix's rehearsed rows, for stages with train.kl.
rule teacher:
    input:
        stamp=teacher_start,
        rows=ancient(MIX.rows),
    output:
        MIX.teacher("{teacher}").stamp,
    threads: lambda wildcards: processes(KNOWN.teachers[wildcards.teacher]["device"])
    resources:
        gpu=lambda wildcards: gpus(KNOWN.teachers[wildcards.teacher]["device"]),
        mem_mb=lambda wildcards: asking_mb(KNOWN.teachers[wildcards.teacher]["device"]),
        weights=lambda wildcards: teacher_weights(wildcards),
    params:
        settings=lambda wildcards: canonical_json(KNOWN.teachers[wildcards.teacher]),
    shell:
        "{FGOD} answers teacher --weights {resources.weights:q} --stamp {input.stamp:q} --rows {input.rows:q}"
        " --settings {params.settings:q} --disk-gb {CONFIG[data][teacher_gb]} --out {output:q}"
        " --processes {threads} {GUARD}"


rule data:
    input:
        [audit_of(run) for run in EXPECTED[OWN].runs],
