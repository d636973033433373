import re

from fgod.config import further_formats
from fgod.release import release_faults
from fgod.session import after_gates, visits_of
from fgod.system.clear import cleared
from fgod.tables import made_by_another
from fgod.system.digests import CACHE

# The end: the last stage of an accepted fit. Tables and report are inputs, so they stand also when every fit failed.
FORMATS = further_formats(CONFIG)


wildcard_constraints:
    format="|".join(map(re.escape, FORMATS)) or "none",
    engine="|".join(re.escape(name) for name, _ in ENGINES) or "none",


rule export_as:
    input:
        ancient(WEIGHTS.trained),
    output:
        WEIGHTS.stamp_of("{format}"),
    resources:
        gpu=lambda wildcards: gpus(records.device(run_of(wildcards))),
        mem_mb=lambda wildcards: asking_mb(records.device(run_of(wildcards))),
    params:
        dtype=lambda wildcards: records.compute_dtype(run_of(wildcards)),
        plugins=PLUGINS,
    shell:
        "{FGOD} export --weights artifacts/{wildcards.stage}/{wildcards.lineage}/master --stamp {input:q}"
        " --dtype {params.dtype} --format {wildcards.format:q} --gpus {resources.gpu} --out {output:q} {GUARD}"


# Others compute from the export what fgod does. On a CPU, whatever trained.
rule served:
    input:
        export=ancient(WEIGHTS.stamp),
        replies=ancient(RUN.probes),
    output:
        RUN.served,
    wildcard_constraints:
        lineage=unless_thrown(RUN.served),
    resources:
        mem_mb=asking_mb("cpu"),
    shell:
        "{FGOD} served --export {input.export:q} --chat {CHAT:q} --out {output:q} {GUARD}"


# An engine is asked what was probed, with one of the further formats. On a CPU, whatever trained.
rule engine:
    input:
        stamp=ancient(WEIGHTS.stamp_of("{format}")),
        export=ancient(WEIGHTS.stamp),
        replies=RUN.probes,
        reference=ancient(REFERENCE.table),
    output:
        verdict=RUN.engine("{engine}", "{format}"),
        replies=RUN.engine_probes("{engine}", "{format}"),
    wildcard_constraints:
        lineage=unless_thrown(
            RUN.engine("{engine}", "{format}"),
            RUN.engine_probes("{engine}", "{format}"),
            each=[{"engine": engine, "format": format} for engine, format in ENGINES],
        ),
    threads: processes("cpu")
    resources:
        mem_mb=asking_mb("cpu"),
    params:
        base=BASE_SPEC,
        goal=GOAL,
        held_out=canonical_json(sorted(CONFIG["data"]["held_out_topics"])),
        settings=canonical_json(CONFIG["probe"]),
        limits=canonical_json(CONFIG["gate"]),
        require=requirements,
        some=f"--count {number}" if (number := CONFIG.get("release", {}).get("engine_probes")) else "",
        code=inputs.code_digest("engines", "probe", "evaluate", "gate.py", *inputs.REPLIES) + PLUGINS,
    shell:
        "{FGOD} engine --engine {wildcards.engine:q} --format {wildcards.format:q} --stamp {input.stamp:q}"
        " --export {input.export:q} --reference {input.reference:q} --probes {PROBES:q} {SOURCED}"
        " --base {params.base:q} --goal {params.goal:q} --held-out {params.held_out:q} --settings {params.settings:q}"
        " --limits {params.limits:q} --require {params.require:q} {params.some} --chat {CHAT:q}"
        " --threads {threads} --out {output.verdict:q} {GUARD}"


def needed_to_release(wildcards):
    """Of what is to be released: its weights in further formats, and what engines say with them."""
    formats = [records.weights_of(run).stamp_of(name) for run in to_release(told(wildcards)) for name in FORMATS]
    return [*formats, *engine_verdicts(wildcards)]


def served_elsewhere(wildcards):
    """That an accepted run loads elsewhere: looked at on a CPU while the held-back wordings are asked, unless these
    have refused it."""
    chain = told(wildcards)
    return [records.records_of(run).served for run in accepted(chain) if not refused(chain, run)]


rule promote:
    input:
        needed_to_release,
        served=served_elsewhere,
        exports=candidate("stamp"),
        walk=OF_CHAIN.walk,
        confirmation=confirmation,
        tables=TABLES,
        report=OF_CHAIN.report,
    output:  # nothing of a release, which snakemake would delete before it promotes another
        "results{of}/promoted.json",
    params:
        # What of the release is not as it was written: it is then made anew. Snakemake itself looks at times of files
        # only. The run after a repair promotes once more, as this is empty again; that changes nothing.
        damage=lambda wildcards: "; ".join(release_faults(told(wildcards).releases, CACHE)),
        formats=shlex.join(["--formats", *FORMATS]) if FORMATS else "",
    shell:
        "{FGOD} promote --walk {input.walk:q} {params.formats} --out {output:q}"


# Only what runs alone here may clear up: snakemake has its lock by now.
onstart:
    with exit_on_fgod_error():
        ALONE.enter_context(held(layout.RUNNING))
        RESERVED.keep()
        SESSION.begin(
            CONFIG_NAME,
            expected_visits(lambda run: standing(run).decision or ACCEPTED),
            after_gates(bool(FOLDS), bool(FORMATS), bool(ENGINES)),
        )
    run_sigterm_handler_in_thread()
    if other := made_by_another(layout.RESULTS, CONFIG_NAME):
        logger.warning(other)
    for done in cleared(layout.AT_WORK, layout.ARTIFACTS, layout.RESULTS):
        logger.info(done)


def of_own_chain(option):
    """Options of the summary: the walk of the config's own chain, where this snakemake walked it."""
    asked = [option, recorded_walk(CHAINS[OWN])] if CHAINS[OWN] in active() else ["--experiments"]
    return shlex.join(asked)


onsuccess:
    SESSION.end("done")
    shell("{FGOD} summary {options}", options=of_own_chain("--walk"))


onerror:
    SESSION.end("failed")
    say_what_is_finished()
    shell("{FGOD} summary {options}", options=of_own_chain("--stopped"))
