# The sequence of fits and verdicts, and the records of all its runs, failed ones too, as tables.


def context(wildcards):
    """What is told of a chain besides its records."""
    chain = told(wildcards)
    return canonical_json(context_of(chain.config, CONFIG_NAME, chain.origin, chain.name))


rule walk:
    input:
        visited("verdict"),
    output:
        OF_CHAIN.walk,
    params:
        walk=lambda wildcards: recorded_walk(told(wildcards)),
        context=context,
    shell:
        "{FGOD} walk --json {params.walk:q} --context {params.context:q} --out {output:q}"


rule tables:
    input:
        visited("outcome"),
        walk=OF_CHAIN.walk,
        abilities=abilities_known,
        comparison=comparison_known,
        confirmation=confirmation,
        engines=engine_verdicts,
    output:
        TABLES,
    params:
        code=inputs.code_digest(
            "gather.py", "tables.py", *inputs.TABLES, "comparison.py", "promotion.py", "confirm", "evaluate"
        )
        + PLUGINS,
    shell:
        "{FGOD} tables --walk {input.walk:q} --out results{wildcards.of}/tables"
