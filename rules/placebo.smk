# The placebo: the chain of the accepted fit once more, with the base's own answer as the target of every taught row.
# `snakemake placebo`, no part of every run. Its runs are runs like others (recipe, train, export, probe); no gate judges
# them.
from fgod.placebo import compared_runs, placebo_runs, tuned_mix


def with_placebos(runs):
    """The placebo of each run by the run; those that are met for the first time become known to the rules."""
    found = placebo_runs(runs, inputs.placebo_settings(CONFIG, INPUTS.base_id))
    for run in found.values():
        RUNS[run.stage, run.lineage] = run
        MIXES[run.mix_id] = run.mix_spec
        teacher_of(run)
    return found


def placebos(name):
    """Input function: one file of the records of every placebo run."""
    return lambda wildcards: [
        getattr(records.records_of(run), name) for run in with_placebos(compared_runs(walk())).values()
    ]


def taught_rows(wildcards):
    """The rows of the mix that a placebo's mix stands for."""
    return ancient(layout.mix(tuned_mix(json.loads(MIXES[wildcards.mix]))).rows)


rule placebo_mix:
    input:
        rows=taught_rows,
        export=ancient(BASE_EXPORT.stamp),
    output:
        MIX.rows,
    wildcard_constraints:
        mix=f"[0-9a-f]{{12}}{layout.PLACEBO}",
    params:
        spec=lambda wildcards: MIXES[wildcards.mix],
    resources:
        gpu=gpus(CONFIG["probe"]["device"]),
    shell:
        "{FGOD} data placebo --rows {input.rows:q} --export {input.export:q} --spec {params.spec:q} --chat {CHAT:q}"
        " --out {output:q} {GUARD}"


rule placebo:
    input:
        placebos("metrics"),
