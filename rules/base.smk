# The original weights: made or checked once, exported once, never written to afterwards.
from fgod.guard import options as guard_options

# In the shell line and no params: what the guard allows never trains anything again.
with exit_on_fgod_error():
    GUARD = guard_options(CONFIG["guard"])


wildcard_constraints:
    base="|".join(BASES),
    asked="|".join(SELF_ASKED) or "none",
    rehearsed="|".join(REHEARSALS),


rule base:
    output:
        layout.base("{base}").stamp,
    resources:  # no params: its path does not say all of it, and nothing of the rest makes weights
        base=lambda wildcards: canonical_json(BASES[wildcards.base]),
        mem_mb=asking_mb("cpu"),
    shell:
        "{FGOD} base --base {resources.base:q} {SOURCED} --chat {CHAT:q} --out {output:q} {GUARD}"


rule export_base:
    input:
        ancient(BASE.stamp),
    output:
        BASE_EXPORT.stamp,
    resources:
        gpu=gpus(records.device(EXPECTED[OWN].runs[0])),
        mem_mb=asking_mb(records.device(EXPECTED[OWN].runs[0])),
    shell:
        "{FGOD} export --weights {BASE_WEIGHTS:q} --stamp {input:q} --dtype {BASE_DTYPE} --gpus {resources.gpu}"
        " --out {output:q} {GUARD}"


# Prompts that the base asks of its own accord.
rule self_asked:
    input:
        ancient(BASE_EXPORT.stamp),
    output:
        BASE.self_asked("{asked}").table,
    priority: 1  # the reference can be asked while a mix is planned
    threads: processes(CONFIG["probe"]["device"])
    resources:
        gpu=gpus(CONFIG["probe"]["device"]),
        mem_mb=asking_mb(CONFIG["probe"]["device"]),
        settings=lambda wildcards: canonical_json(inputs.asking_settings(SELF_ASKED[wildcards.asked].config)),
    shell:
        "{FGOD} answers self-asked --export {input:q} --settings {resources.settings:q} --chat {CHAT:q} --out {output:q}"
        " --processes {threads} {GUARD}"


def asked_of(chain):
    """The prompts that the base asked itself for a chain's mixes, in a list; empty where it did not."""
    return [BASE.self_asked(chain.inputs.self_asked_id).table] if chain.inputs.self_asked_id else []


def asked_option(chain):
    return shlex.join(f"--asked={path}" for path in asked_of(chain))


# The base's own answers to the prompts that mixes rehearse.
rule rehearsal:
    input:
        export=ancient(BASE_EXPORT.stamp),
        asked=lambda wildcards: [ancient(path) for path in asked_of(REHEARSALS[wildcards.rehearsed])],
    output:
        BASE.answers("{rehearsed}").table,
    priority: 1
    threads: processes(CONFIG["probe"]["device"])
    resources:
        gpu=gpus(CONFIG["probe"]["device"]),
        mem_mb=asking_mb(CONFIG["probe"]["device"]),
        settings=lambda wildcards: canonical_json(inputs.rehearsal_settings(REHEARSALS[wildcards.rehearsed].asked)),
        asked=lambda wildcards: asked_option(REHEARSALS[wildcards.rehearsed]),
    shell:
        "{FGOD} answers rehearsal --export {input.export:q} {SOURCED} --settings {resources.settings:q} --chat {CHAT:q}"
        " {resources.asked} --out {output:q} --processes {threads} {GUARD}"


# The base's answers to the probes, against which every run is judged.
rule reference:
    input:
        ancient(BASE_EXPORT.stamp),  # and no file of probes: another set of inputs would ask anew
    output:
        REFERENCE.table,
    threads: processes(CONFIG["probe"]["device"])
    resources:
        gpu=gpus(CONFIG["probe"]["device"]),
        mem_mb=asking_mb(CONFIG["probe"]["device"]),
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
