# Probes and the gate. They may run again at will (other probes, limits, scoring code): nothing trains because of them.


def trained_on(wildcards):
    """The rows that a run and those before it were trained on."""
    return rows_of(run_of(wildcards))


def rows_of(run):
    mixes = []
    while run:
        mixes.append(ancient(layout.mix(run.mix_id).rows))
        run = run.parent
    return list(dict.fromkeys(mixes))


rule probe:
    input:
        export=ancient(WEIGHTS.stamp),
        reference=ancient(REFERENCE.table),
        weights=ancient(BASE_EXPORT.stamp),
        harness=REFERENCE.harness,
        rows=trained_on,
    output:
        replies=RUN.probes,
        metrics=RUN.metrics,
    wildcard_constraints:
        lineage=unless_thrown(RUN.probes, RUN.metrics),
    params:
        base=BASE_SPEC,
        goal=GOAL,
        held_out=canonical_json(sorted(CONFIG["data"]["held_out_topics"])),
        settings=canonical_json(CONFIG["probe"]),
        code=inputs.code_digest("probe", "evaluate", *inputs.REPLIES) + PLUGINS + inputs.reply_words_digest(CONFIG),
    threads: processes(CONFIG["probe"]["device"])
    resources:
        gpu=gpus(CONFIG["probe"]["device"]),
    shell:
        "{FGOD} probe --export {input.export:q} --reference {input.reference:q}"
        " --reference-weights {input.weights:q} --probes {PROBES:q} {SOURCED} --base {params.base:q}"
        " --goal {params.goal:q} --held-out {params.held_out:q} --settings {params.settings:q} --chat {CHAT:q}"
        " --rows {input.rows:q} --out {output.metrics:q} --processes {threads} {GUARD}"


def judged(wildcards):
    """What the gate reads. A failed run whose artifacts were pruned keeps its replies: it is not probed again."""
    run = run_of(wildcards)
    of_run = records.records_of(run)
    fresh = [] if records.pruned(run) and not of_run.trashed.exists() else [of_run.metrics, of_run.probes]
    return [of_run.outcome, *fresh]


checkpoint gate:
    input:
        judged,
    output:
        RUN.verdict,
    params:
        limits=canonical_json(CONFIG["gate"]),
        require=lambda wildcards: records.requirements(CONFIG, wildcards.stage),
        code=inputs.code_digest("gate.py", "evaluate") + PLUGINS,
    shell:
        "{FGOD} gate --limits {params.limits:q} --require {params.require:q} --log {LOGGED:q} --out {output:q}"
