# The original weights: made or checked once, exported once, never written to afterwards.
from fgod.guard import options as guard_options

# In the shell line and no params: what the guard allows never trains anything again.
with exit_on_fgod_error():
    GUARD = guard_options(CONFIG["guard"])


rule base:
    output:
        BASE.stamp,
    shell:
        "{FGOD} base --base {BASE_SPEC:q} {SOURCED} --chat {CHAT:q} --out {output:q} {GUARD}"


rule export_base:
    input:
        ancient(BASE.stamp),
    output:
        BASE_EXPORT.stamp,
    resources:
        gpu=gpus(records.device(EXPECTED.runs[0])),
    shell:
        "{FGOD} export --weights {BASE_WEIGHTS:q} --stamp {input:q} --dtype {BASE_DTYPE} --gpus {resources.gpu}"
        " --out {output:q} {GUARD}"


# Prompts that the base asks of its own accord.
if SELF_ASKED:

    rule self_asked:
        input:
            ancient(BASE_EXPORT.stamp),
        output:
            SELF_ASKED.table,
        threads: processes(CONFIG["probe"]["device"])
        resources:
            gpu=gpus(CONFIG["probe"]["device"]),
        shell:
            "{FGOD} answers self-asked --export {input:q} --settings {ASKING:q} --chat {CHAT:q} --out {output:q}"
            " --processes {threads} {GUARD}"


# The base's own answers to the prompts that mixes rehearse.
rule rehearsal:
    input:
        export=ancient(BASE_EXPORT.stamp),
        asked=[ancient(SELF_ASKED.table)] if SELF_ASKED else [],
    output:
        REHEARSAL.table,
    threads: processes(CONFIG["probe"]["device"])
    resources:
        gpu=gpus(CONFIG["probe"]["device"]),
    shell:
        "{FGOD} answers rehearsal --export {input.export:q} {SOURCED} --settings {REHEARSED:q} --chat {CHAT:q} {ASKED}"
        " --out {output:q} --processes {threads} {GUARD}"


# The base's answers to the probes, against which every run is judged.
rule reference:
    input:
        ancient(BASE_EXPORT.stamp),  # and no file of probes: another set of inputs would ask anew
    output:
        REFERENCE.table,
    threads: processes(CONFIG["probe"]["device"])
    resources:
        gpu=gpus(CONFIG["probe"]["device"]),
    shell:
        "{FGOD} answers reference --export {input:q} --probes {PROBES:q} {SOURCED}"
        " --settings {PROBED:q} --chat {CHAT:q} --out {output:q} --processes {threads} {GUARD}"


# Fails where the base itself cannot answer the probes: they cannot judge a run then.
rule harness:
    input:
        ancient(REFERENCE.table),
    output:
        REFERENCE.harness,
    params:
        base=BASE_SPEC,
        goal=GOAL,
        code=inputs.code_digest("probe", "evaluate") + inputs.reply_words_digest(CONFIG),
    shell:
        "{FGOD} answers check --answers {input:q} --probes {PROBES:q} {SOURCED} --base {params.base:q}"
        " --goal {params.goal:q} --limits {LIMITS:q} --out {output:q}"
