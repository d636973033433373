# The records of every run of the walk, failed ones too, as tables.


rule tables:
    input:
        visited("verdict.json"),
        visited("outcome.json"),
    output:
        TABLES,
    params:
        walk=recorded_walk,
        context=CONTEXT,
        code=inputs.code_digest("tables.py"),
    shell:
        "fgod tables --walk {params.walk:q} --context {params.context:q} --out results/tables"
