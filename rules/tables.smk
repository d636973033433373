# The sequence of fits and verdicts, and the records of all its runs, failed ones too, as tables.


rule walk:
    input:
        visited("verdict"),
    output:
        layout.WALK,
    params:
        walk=recorded_walk,
        context=CONTEXT,
    shell:
        "{FGOD} walk --json {params.walk:q} --context {params.context:q} --out {output:q}"


rule tables:
    input:
        visited("outcome"),
        walk=layout.WALK,
        abilities=abilities_known,
        comparison=comparison_known,
        confirmation=confirmation,
        engines=engine_verdicts,
    output:
        TABLES,
    params:
        code=inputs.code_digest("tables.py", "comparison.py", "promotion.py", "confirm", "evaluate") + PLUGINS,
    shell:
        "{FGOD} tables --walk {input.walk:q} --out {layout.TABLES}"
