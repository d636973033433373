# Mixes and their audits. A mix never reads the probes: only its audit does. Probes that are added later are held
# against the rows by the rule probe.


rule mix:
    input:
        ancient(f"{REHEARSAL}/answers.tsv"),
    output:
        "artifacts/mixes/{mix}/rows.tsv",
    params:
        spec=lambda wildcards: MIXES[wildcards.mix],
    shell:
        "fgod data mix --spec {params.spec:q} --sources {SOURCES:q} --files {FILES:q} --answers {input:q} --out {output:q}"


rule audit:
    input:
        rows=ancient("artifacts/mixes/{mix}/rows.tsv"),
        probes=ancient(PROBES),
    output:
        "artifacts/mixes/{mix}/audit.json",
    shell:
        "fgod data audit {input.rows:q} --probes {input.probes:q} --goal {GOAL:q} --sources {SOURCES:q} --out {output:q}"


rule data:
    input:
        [f"artifacts/mixes/{mix}/audit.json" for mix in MIXES],
