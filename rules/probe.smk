# Probes and the gate. They may run again at will (other probes, limits, scoring code): nothing trains because of them.


def trained_on(wildcards):
    """The rows that a run and those before it were trained on."""
    run, mixes = run_of(wildcards), []
    while run:
        mixes.append(ancient(f"artifacts/mixes/{run.mix_id}/rows.tsv"))
        run = run.parent
    return list(dict.fromkeys(mixes))


rule probe:
    input:
        export=ancient("artifacts/{stage}/{lineage}/exported.json"),
        reference=ancient(f"{REFERENCE}/answers.tsv"),
        harness=f"{REFERENCE}/harness.json",
        rows=trained_on,
    output:
        replies="results/runs/{stage}/{lineage}/probes.tsv",
        metrics="results/runs/{stage}/{lineage}/metrics.json",
    params:
        base=BASE_SPEC,
        goal=GOAL,
        held_out=canonical_json(sorted(CONFIG["data"]["held_out_topics"])),
        settings=canonical_json(CONFIG["probe"]),
        code=inputs.code_digest("probe", "evaluate", *inputs.REPLIES) + PLUGINS,
    resources:
        gpu=gpus(CONFIG["probe"]["device"]),
    shell:
        "{FGOD} probe --export {input.export:q} --reference {input.reference:q} --probes {PROBES:q}"
        " {SOURCED} --base {params.base:q} --goal {params.goal:q} --held-out {params.held_out:q}"
        " --settings {params.settings:q} --chat {CHAT:q} --rows {input.rows:q} --out {output.metrics:q} {GUARD}"


def judged(wildcards):
    """What the gate reads. A failed run whose artifacts were pruned keeps its replies: it is not probed again."""
    run = run_of(wildcards)
    folder = f"results/runs/{run.stage}/{run.lineage}"
    fresh = [] if records.pruned(run) else [f"{folder}/metrics.json", f"{folder}/probes.tsv"]
    return [f"{folder}/outcome.json", *fresh]


checkpoint gate:
    input:
        judged,
    output:
        "results/runs/{stage}/{lineage}/verdict.json",
    params:
        limits=canonical_json(CONFIG["gate"]),
        require=lambda wildcards: records.requirements(CONFIG, wildcards.stage),
        code=inputs.code_digest("gate.py", "evaluate") + PLUGINS,
    shell:
        "{FGOD} gate --limits {params.limits:q} --require {params.require:q} --out {output:q}"
