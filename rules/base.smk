# The original weights: made or checked once, exported once, never written to afterwards.
from fgod.guard import options as guard_options

# In the shell line and no params: what the guard allows never trains anything again.
with settings.explained():
    GUARD = guard_options(CONFIG["guard"])
    GUARD_BASE = guard_options(CONFIG["guard"], trainer=False)  # its command gives no heartbeats


rule base:
    output:
        f"{BASE}/base.json",
    params:
        base=canonical_json(CONFIG["base"]),
        folder=CONFIG["data"]["folder"],
    resources:
        gpu=GPU,
    shell:
        "fgod guard {GUARD_BASE} --record --"
        " fgod base --base {params.base:q} --sources {params.folder:q} --out {output:q}"


rule export_base:
    input:
        ancient(f"{BASE}/base.json"),
    output:
        f"{BASE}/exported.json",
    params:
        weights=BASE_WEIGHTS,
        dtype=CONFIG["stages"][0]["train"]["compute_dtype"],
    shell:
        "fgod export --weights {params.weights:q} --stamp {input:q} --dtype {params.dtype} --out {output:q}"


# The base's own answers to the prompts that mixes rehearse.
rule rehearsal:
    input:
        ancient(f"{BASE}/exported.json"),
    output:
        f"{REHEARSAL}/answers.tsv",
    params:
        folder=CONFIG["data"]["folder"],
        settings=canonical_json(inputs.rehearsal_settings(CONFIG)),
        goal=GOAL,
    resources:
        gpu=GPU,
    shell:
        "fgod answers rehearsal --export {input:q} --sources {params.folder:q} --settings {params.settings:q}"
        " --goal {params.goal:q} --out {output:q}"


# The base's answers to the probes, against which every run is judged; fails where the base itself cannot answer them.
rule reference:
    input:
        export=ancient(f"{BASE}/exported.json"),
        probes=ancient(PROBES),
    output:
        f"{REFERENCE}/answers.tsv",
    params:
        folder=CONFIG["data"]["folder"],
        base=canonical_json(CONFIG["base"]),
        goal=GOAL,
        settings=canonical_json(CONFIG["probe"]),
    resources:
        gpu=GPU,
    shell:
        "fgod answers reference --export {input.export:q} --probes {input.probes:q} --sources {params.folder:q}"
        " --base {params.base:q} --goal {params.goal:q} --settings {params.settings:q} --out {output:q}"
