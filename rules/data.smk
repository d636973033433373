# Mixes and their audits. A mix never reads the probes: only its audit does.


rule mix:
    input:
        answers=ancient(f"{REHEARSAL}/answers.tsv"),
        files=ancient(list(CONFIG["data"]["sources"].values())),
    output:
        "artifacts/mixes/{mix}/rows.tsv",
    params:
        spec=lambda wildcards: MIXES[wildcards.mix],
        folder=CONFIG["data"]["folder"],
        files=canonical_json(CONFIG["data"]["sources"]),
    shell:
        "fgod data mix --spec {params.spec:q} --sources {params.folder:q} --files {params.files:q}"
        " --answers {input.answers:q} --out {output:q}"


rule audit:
    input:
        rows=ancient("artifacts/mixes/{mix}/rows.tsv"),
        probes=PROBES,
    output:
        "artifacts/mixes/{mix}/audit.json",
    params:
        goal=GOAL,
    shell:
        "fgod data audit {input.rows:q} --probes {input.probes:q} --goal {params.goal:q} --out {output:q}"


rule data:
    input:
        [f"artifacts/mixes/{mix}/audit.json" for mix in MIXES],
