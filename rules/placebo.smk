# The placebo: the chain of the accepted fit once more, with the base's own answer as the target of every taught row.
# `snakemake placebo`, no part of every run. Its runs are runs like others (recipe, train, export, probe); no gate judges
# them.
from fgod.placebo import compared_runs, placebo_runs, tuned_mix

OF_BASE = layout.base_records(INPUTS.base_id, "{form}")


def with_placebos(runs):
    """The placebo of each run by the run; those that are met for the first time become known to the rules."""
    found = placebo_runs(runs, inputs.placebo_settings(CONFIG, INPUTS.base_id))
    for run in found.values():
        KNOWN.meet(run, CHAINS[OWN])
    return found


def placebos(name):
    """Input function: one file of the records of every placebo run."""
    return lambda wildcards: [
        getattr(records.records_of(run), name) for run in with_placebos(compared_runs(walk(CHAINS[OWN]))).values()
    ]


def taught_rows(wildcards):
    """The rows of the mix that a placebo's mix stands for."""
    return ancient(layout.mix(tuned_mix(json.loads(KNOWN.mixes[wildcards.mix]))).rows)


rule placebo_mix:
    input:
        rows=taught_rows,
        export=ancient(BASE_EXPORT.stamp),
    output:
        MIX.rows,
    wildcard_constraints:
        mix=unless_rows_stand(f"[0-9a-f]{{12}}{layout.PLACEBO}"),
    threads: processes(CONFIG["probe"]["device"])
    resources:
        gpu=gpus(CONFIG["probe"]["device"]),
        mem_mb=asking_mb(CONFIG["probe"]["device"]),
    params:
        spec=lambda wildcards: KNOWN.mixes[wildcards.mix],
    shell:
        "{FGOD} data placebo --rows {input.rows:q} --export {input.export:q} --spec {params.spec:q} --chat {CHAT:q}"
        " --out {output:q} --processes {threads} {GUARD}"


def tuned(wildcards):
    """The run that the placebo is compared with: the last of its fit."""
    return compared_runs(walk(CHAINS[OWN]))[-1]


def base_stamp(wildcards):
    return ancient(BASE.stamp if wildcards.form == "plain" else BASE_EXPORT.stamp)


def base_folder(wildcards):
    return BASE_WEIGHTS if wildcards.form == "plain" else str(BASE_EXPORT.exported)


# The base itself on the same probes: in its own number format, and rounded.
rule base_probe:
    input:
        export=base_stamp,
        reference=ancient(REFERENCE.table),
        weights=ancient(BASE_EXPORT.stamp),
        harness=REFERENCE.harness,
        rows=lambda wildcards: rows_of(tuned(wildcards)),  # whose prompts are not asked
    output:
        replies=OF_BASE.probes,
        metrics=OF_BASE.metrics,
    wildcard_constraints:
        form="plain|rounded",
    threads: processes(CONFIG["probe"]["device"])
    resources:
        gpu=gpus(CONFIG["probe"]["device"]),
        mem_mb=asking_mb(CONFIG["probe"]["device"]),
        model=base_folder,
    params:
        base=BASE_SPEC,
        goal=GOAL,
        held_out=canonical_json(sorted(CONFIG["data"]["held_out_topics"])),
        settings=canonical_json(CONFIG["probe"]),
        code=inputs.code_digest("probe", "evaluate", *inputs.REPLIES) + PLUGINS + inputs.reply_words_digest(CONFIG),
    shell:
        "{FGOD} probe --export {input.export:q} --model {resources.model:q} --reference {input.reference:q}"
        " --reference-weights {input.weights:q} --probes {PROBES:q} {SOURCED} --base {params.base:q}"
        " --goal {params.goal:q} --held-out {params.held_out:q} --settings {params.settings:q} --chat {CHAT:q}"
        " --rows {input.rows:q} --out {output.metrics:q} --processes {threads} {GUARD}"


rule comparison:
    input:
        base=layout.base_records(INPUTS.base_id, "plain").metrics,
        rounded=layout.base_records(INPUTS.base_id, "rounded").metrics,
        placebo=lambda wildcards: records.records_of(
            with_placebos(compared_runs(walk(CHAINS[OWN])))[tuned(wildcards)]
        ).metrics,
        tuned=lambda wildcards: records.records_of(tuned(wildcards)).metrics,
    output:
        layout.view().comparison,
    params:
        code=inputs.code_digest("comparison.py", *inputs.TABLES, "evaluate") + PLUGINS,
    shell:
        "{FGOD} comparison --base {input.base:q} --rounded {input.rounded:q} --placebo {input.placebo:q}"
        " --tuned {input.tuned:q} --out {output:q}"


rule placebo:
    input:
        placebos("metrics"),
        layout.view().comparison,
        layout.view().report,
