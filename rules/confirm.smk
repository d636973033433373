# Confirmation: the last run of an accepted fit is asked one fold of the wordings that were held back. Its figures refit
# nothing, so no rule before it depends on them.
CONFIRMATION = layout.confirmation_records("{stage}", "{lineage}")
OF_FOLD = BASE.answers("{fold}")


wildcard_constraints:
    fold="|".join(FOLDS) or "none",


def fold_answers(name):
    """Input function: one file of the base's answers to the fold that a candidate is asked."""
    answers = {fold: digest for digest, fold in FOLDS.items()}
    return lambda wildcards: getattr(BASE.answers(answers[fold_for(wildcards)]), name)


def fold_for(wildcards):
    return RESERVED.of(wildcards.stage, wildcards.lineage).fold


rule fold_reference:
    input:
        ancient(BASE_EXPORT.stamp),
    output:
        OF_FOLD.table,
    threads: processes(CONFIG["probe"]["device"])
    resources:
        gpu=gpus(CONFIG["probe"]["device"]),
        mem_mb=asking_mb(CONFIG["probe"]["device"]),
    params:
        number=lambda wildcards: FOLDS[wildcards.fold],
    shell:
        "{FGOD} answers reference --export {input:q} --probes {PROBES:q} --fold {params.number} {SOURCED}"
        " --settings {PROBED:q} --chat {CHAT:q} --out {output:q} --processes {threads} {GUARD}"


rule fold_harness:
    input:
        ancient(OF_FOLD.table),
    output:
        OF_FOLD.harness,
    params:
        number=lambda wildcards: FOLDS[wildcards.fold],
        base=BASE_SPEC,
        goal=GOAL,
        code=inputs.code_digest("probe", "evaluate") + inputs.reply_words_digest(CONFIG),
    shell:
        "{FGOD} answers check --answers {input:q} --probes {PROBES:q} --fold {params.number} {SOURCED}"
        " --base {params.base:q} --goal {params.goal:q} --out {output:q}"


# Records the fold before it asks (results/confirmations/folds.json, which is no output: it outlives its figures).
rule fold_probe:
    input:
        export=ancient(WEIGHTS.stamp),
        reference=lambda wildcards: ancient(fold_answers("table")(wildcards)),
        weights=ancient(BASE_EXPORT.stamp),
        harness=fold_answers("harness"),
        rows=trained_on,
    output:
        replies=CONFIRMATION.probes,
        metrics=CONFIRMATION.metrics,
    wildcard_constraints:
        lineage=unless_thrown(CONFIRMATION.probes, CONFIRMATION.metrics),
    threads: processes(CONFIG["probe"]["device"])
    resources:
        gpu=gpus(CONFIG["probe"]["device"]),
        mem_mb=asking_mb(CONFIG["probe"]["device"]),
        rows=all_rows,
    params:
        number=fold_for,
        base=BASE_SPEC,
        goal=GOAL,
        held_out=canonical_json(sorted(CONFIG["data"]["held_out_topics"])),
        settings=canonical_json(CONFIG["probe"]),
        code=inputs.code_digest("probe", "evaluate", *inputs.REPLIES) + PLUGINS + inputs.reply_words_digest(CONFIG),
    shell:
        "{FGOD} probe --fold {params.number} --export {input.export:q} --reference {input.reference:q}"
        " --reference-weights {input.weights:q} --probes {PROBES:q} {SOURCED} --base {params.base:q}"
        " --goal {params.goal:q} --held-out {params.held_out:q} --settings {params.settings:q} --chat {CHAT:q}"
        " --rows {resources.rows} --out {output.metrics:q} --processes {threads} {GUARD}"


# Apart from the asking: other limits judge again what is on record, and ask nothing anew. A checkpoint: no further work is
# done for a candidate that it refuses.
checkpoint confirm:
    input:
        CONFIRMATION.metrics,
        CONFIRMATION.probes,
        RUN.metrics,
    output:
        CONFIRMATION.confirmation,
    params:
        number=fold_for,
        limits=canonical_json(CONFIG["gate"]),
        require=requirements,
        own=canonical_json(CONFIG.get("confirm", {})),
        code=inputs.code_digest("gate.py", "confirm", "evaluate") + PLUGINS,
    shell:
        "{FGOD} confirm --fold {params.number} --limits {params.limits:q} --require {params.require:q}"
        " --own {params.own:q} --out {output:q}"
