# Probes and the gate. They may run again at will (other probes, limits, scoring code): nothing trains because of them.


def trained_on(wildcards):
    """The rows that a run and those before it were trained on."""
    return rows_of(run_of(wildcards))


def rows_of(run):
    return [ancient(layout.mix(one.mix_id).rows) for one in with_those_before(run)]


def with_those_before(run):
    """A run and those before it, one for each mix."""
    found = {}
    while run:
        found.setdefault(run.mix_id, run)
        run = run.parent
    return found.values()


def all_rows(wildcards):
    """The rows of all of them."""
    return shlex.join(str(layout.mix(one.mix_id).rows) for one in with_those_before(run_of(wildcards)))


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
    group:
        OF_RUN
    threads: processes(CONFIG["probe"]["device"])
    resources:
        gpu=gpus(CONFIG["probe"]["device"]),
        mem_mb=asking_mb(CONFIG["probe"]["device"]),
        rows=all_rows,
    params:
        base=BASE_SPEC,
        goal=GOAL,
        held_out=canonical_json(sorted(CONFIG["data"]["held_out_topics"])),
        settings=canonical_json(CONFIG["probe"]),
        code=inputs.code_digest("probe", "evaluate", *inputs.REPLIES) + PLUGINS + inputs.reply_words_digest(CONFIG),
    shell:
        "{FGOD} probe --export {input.export:q} --reference {input.reference:q}"
        " --reference-weights {input.weights:q} --probes {PROBES:q} {SOURCED} --base {params.base:q}"
        " --goal {params.goal:q} --held-out {params.held_out:q} --settings {params.settings:q} --chat {CHAT:q}"
        " --rows {resources.rows} --out {output.metrics:q} --processes {threads} {GUARD}"


def judged(wildcards):
    """What the gate reads. A failed run whose artifacts were pruned keeps its replies: it is not probed again."""
    run = run_of(wildcards)
    of_run = records.records_of(run)
    fresh = [] if records.pruned(run) and not of_run.trashed.exists() else [of_run.metrics, of_run.probes]
    return [of_run.outcome, *fresh]


def requirements(wildcards):
    """What a run's stage requires of its metrics."""
    return run_of(wildcards).require


def log_settings(wildcards):
    """What the DevLog needs of the chain that first came by a run."""
    chain = KNOWN.chain_of(run_of(wildcards))
    return canonical_json(LogSettings.of_config(chain.config, chain.name, chain.note).to_dict())


checkpoint gate:
    input:
        judged,
    output:
        RUN.verdict,
    resources:
        log=log_settings,  # of what the DevLog says, which judges nothing
    params:
        limits=canonical_json(CONFIG["gate"]),
        require=requirements,
        code=inputs.code_digest("gate.py", "evaluate") + PLUGINS,
    shell:
        "{FGOD} gate --limits {params.limits:q} --require {params.require:q} --log {resources.log:q} --out {output:q}"
