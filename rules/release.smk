# The end: the last stage of an accepted fit. Tables and report are inputs, so they stand also when every fit failed.


rule promote:
    input:
        exports=promoted("exported.json"),
        walk="results/walk.json",
        tables=TABLES,
        report="results/report.html",
    output:
        record="results/release.json",
        stamp="artifacts/release/release.json",
    shell:
        "{FGOD} promote --walk {input.walk:q} --out {output.record:q}"


# Only what runs alone here may clear up: snakemake has its lock by now.
onstart:
    with exit_on_fgod_error():
        ALONE.enter_context(held(layout.RUNNING))
    run_sigterm_handler_in_thread()
    for done in sweep(layout.ARTIFACTS, layout.RESULTS):
        logger.info(done)


onsuccess:
    shell("{FGOD} summary --walk {walk:q}", walk=recorded_walk(None))


onerror:
    shell("{FGOD} summary --stopped {walk:q}", walk=recorded_walk(None))
