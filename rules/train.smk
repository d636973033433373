# One stage: its recipe, its training under the guard (or an interpolation of one), its export. A killed or diverged
# training is a result: it leaves outcome.json and exits 0; the gate makes a verdict of it. All that feeds training is
# ancient(): a run's path already says what it is made of, so no touched file ever trains again.


def starts_from(wildcards):
    """The stamp of the weights that a run starts from."""
    return ancient(start_stamp(run_of(wildcards)))


def start_stamp(run):
    """The same as a path."""
    return str(records.weights_of(run.parent).trained if run.parent else layout.base(base_of(run)).stamp)


def base_of(run):
    """The base_id of what a first run starts from."""
    return json.loads(run.recipe)["starts_from"]


def starting_weights(wildcards):
    run = run_of(wildcards)
    if run.parent:
        return str(records.weights_of(run.parent).master)
    return str(inputs.own_weights(BASES[base_of(run)]) or layout.base(base_of(run)).master)


def tokens_of(wildcards):
    """The option by which weights that come from others than the base are compared with its tokenizer."""
    first = run_of(wildcards)
    while first.parent:
        first = first.parent
    return "" if base_of(first) == INPUTS.base_id else shlex.join(["--tokens-of", BASE_WEIGHTS])


def mix_rows(wildcards):
    return ancient(layout.mix(run_of(wildcards).mix_id).rows)


def teacher(wildcards):
    """The base's distributions over a run's rehearsed rows, where it is taught by them."""
    run = run_of(wildcards)
    settings = KNOWN.teacher_of(run)
    return ancient(layout.mix(run.mix_id).teacher(settings).stamp) if settings else []


def mix_audit(wildcards):
    return ancient(audit_of(run_of(wildcards)))


def first_fit(wildcards):
    """The fit in which the walk first came by a run: shown, and no part of what the run is made of."""
    run = run_of(wildcards)
    return next((v.fit for v in KNOWN.chain_of(run).chain.walk(records.decision).visits if v.run == run), 0)


rule recipe:
    output:
        RUN.recipe,
    params:
        recipe=lambda wildcards: run_of(wildcards).recipe,
    shell:
        "{FGOD} recipe --json {params.recipe:q} --out {output:q}"


MADE = [RUN.outcome, RUN.training, RUN.guard, RUN.participation, RUN.mix_audit, WEIGHTS.trained]


rule train:
    input:
        recipe=ancient(RUN.recipe),
        start=starts_from,
        rows=mix_rows,
        audit=mix_audit,
        teacher=teacher,
    output:
        outcome=RUN.outcome,
        log=RUN.training,
        guard=RUN.guard,
        participation=RUN.participation,
        audit=RUN.mix_audit,
        stamp=WEIGHTS.trained,
    wildcard_constraints:
        lineage=unless_recorded(TRAINED, *MADE),
    group:
        OF_RUN
    threads: lambda wildcards: records.threads(run_of(wildcards))
    resources:
        gpu=lambda wildcards: shared_gpus(run_of(wildcards)),
        mem_mb=lambda wildcards, attempt: training_mb(run_of(wildcards), attempt),
        runtime=lambda wildcards, attempt: training_minutes(run_of(wildcards), attempt),
        # Of no consequence for the weights, hence no params: where the start lies today, and the fit that is shown.
        weights=lambda wildcards: starting_weights(wildcards),
        start=lambda wildcards: start_stamp(run_of(wildcards)),
        fit=lambda wildcards: first_fit(wildcards),
        teacher=lambda wildcards, input: f"--teacher {input.teacher}" if input.teacher else "",
        tokens=tokens_of,
        check=lambda wildcards: CHECKED if "check" in json.loads(run_of(wildcards).recipe)["train"] else "",
    shell:
        "{FGOD} train --recipe {input.recipe:q} --weights {resources.weights:q} --start {resources.start:q} --rows {input.rows:q}"
        " --audit {input.audit:q} --outcome {output.outcome:q} --stamp {output.stamp:q}"
        " {resources.teacher} {resources.tokens} {resources.check} {GUARD} --fit {resources.fit}"
        " --checkpoint-secs {CONFIG[checkpoint][secs]} --checkpoint-steps {CONFIG[checkpoint][steps]}"
        " --rank-secs {CONFIG[guard][rank_secs]}"


def end_of_training(wildcards):
    """The stamp and the outcome of the trained run between whose start and end an interpolated one lies."""
    trained = run_of(wildcards).trained
    return {
        "end": ancient(records.weights_of(trained).trained),
        "trained": ancient(records.records_of(trained).outcome),
    }


# Weights between the start and the end of a stage that is damaged: nothing is trained.
rule interpolate:
    input:
        unpack(end_of_training),
        recipe=ancient(RUN.recipe),
        start=starts_from,
        audit=mix_audit,
    output:
        outcome=RUN.outcome,
        log=RUN.training,
        guard=RUN.guard,
        participation=RUN.participation,
        audit=RUN.mix_audit,
        stamp=WEIGHTS.trained,
    wildcard_constraints:
        lineage=unless_recorded(INTERPOLATED, *MADE),
    group:
        OF_RUN
    resources:
        gpu=lambda wildcards: gpus(records.device(run_of(wildcards))),
        mem_mb=lambda wildcards: asking_mb(records.device(run_of(wildcards))),
        weights=lambda wildcards: starting_weights(wildcards),
        start=lambda wildcards: start_stamp(run_of(wildcards)),
    shell:
        "{FGOD} interpolate --recipe {input.recipe:q} --weights {resources.weights:q} --start {resources.start:q}"
        " --end {input.end:q} --trained {input.trained:q} --audit {input.audit:q} --outcome {output.outcome:q}"
        " --stamp {output.stamp:q} --gpus {resources.gpu} {GUARD}"


rule export:
    input:
        ancient(WEIGHTS.trained),
    output:
        WEIGHTS.stamp,
    group:
        OF_RUN
    resources:
        gpu=lambda wildcards: gpus(records.device(run_of(wildcards))),
        mem_mb=lambda wildcards: asking_mb(records.device(run_of(wildcards))),
    params:
        dtype=lambda wildcards: records.compute_dtype(run_of(wildcards)),
    shell:
        "{FGOD} export --weights artifacts/{wildcards.stage}/{wildcards.lineage}/master --stamp {input:q}"
        " --dtype {params.dtype} --gpus {resources.gpu} --out {output:q} {GUARD}"
