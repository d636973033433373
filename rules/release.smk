from fgod.release import release_faults
from fgod.tables import made_by_another
from fgod.system.digests import CACHE

# The end: the last stage of an accepted fit. Tables and report are inputs, so they stand also when every fit failed.


rule promote:
    input:
        exports=candidate("stamp"),
        walk=layout.WALK,
        confirmation=confirmation,
        tables=TABLES,
        report=layout.REPORT,
    output:  # nothing of a release, which snakemake would delete before it promotes another
        str(layout.Releases().promoted),
    params:
        # What of the release is not as it was written: it is then made anew. Snakemake itself looks at times of files
        # only. The run after a repair promotes once more, as this is empty again; that changes nothing.
        damage=lambda wildcards: "; ".join(release_faults(layout.Releases(), CACHE)),
    shell:
        "{FGOD} promote --walk {input.walk:q} --out {output:q}"


# Only what runs alone here may clear up: snakemake has its lock by now.
onstart:
    with exit_on_fgod_error():
        ALONE.enter_context(held(layout.RUNNING))
    run_sigterm_handler_in_thread()
    if other := made_by_another(layout.RESULTS, CONFIG_NAME):
        logger.warning(other)
    for done in sweep(layout.ARTIFACTS, layout.RESULTS):
        logger.info(done)


onsuccess:
    shell("{FGOD} summary --walk {walk:q}", walk=recorded_walk(None))


onerror:
    shell("{FGOD} summary --stopped {walk:q}", walk=recorded_walk(None))
