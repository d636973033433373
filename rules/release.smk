# The end: the last stage of an accepted fit. Tables and report are inputs, so they stand also when every fit failed.


rule promote:
    input:
        verdicts=visited("verdict.json"),
        exports=promoted("exported.json"),
        tables=TABLES,
        report="results/report.html",
    output:
        record="results/release.json",
        stamp="artifacts/release/release.json",
    params:
        walk=recorded_walk,
        context=CONTEXT,
    shell:
        "fgod promote --walk {params.walk:q} --context {params.context:q} --out {output.record:q}"


onsuccess:
    shell("fgod summary")


onerror:
    shell("fgod summary --failed")
