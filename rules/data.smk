# Mixes and their audits. A mix never reads the probes: only its audit does. Probes that are added later are held
# against the rows by the rule probe.


rule mix:
    input:
        ancient(f"{REHEARSAL}/answers.tsv"),
    output:
        "artifacts/mixes/{mix}/rows.tsv",
    params:
        spec=lambda wildcards: MIXES[wildcards.mix],
    priority: 1  # all data before any training: a fault in the last stage's costs no hours
    shell:
        "{FGOD} data mix --spec {params.spec:q} --sources {SOURCES:q} --files {FILES:q} --answers {input:q} --out {output:q}"


rule audit:
    input:
        rows=ancient("artifacts/mixes/{mix}/rows.tsv"),
        base=ancient(f"{BASE}/base.json"),  # its tokenizer says how long the rows are
        probes=ancient(PROBES),
    output:
        "artifacts/mixes/{mix}/audit-{seq_len}.json",
    priority: 1
    shell:
        "{FGOD} data audit {input.rows:q} --probes {input.probes:q} --goal {GOAL:q} --sources {SOURCES:q}"
        " --files {FILES:q} --weights {BASE_WEIGHTS:q} --seq-len {wildcards.seq_len} --chat {CHAT:q} --out {output:q}"


rule data:
    input:
        [audit_of(run) for run in EXPECTED.runs],
