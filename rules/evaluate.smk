# What the last accepted run can do beside what the base can: `snakemake evaluate`, no part of every run.
from fgod.abilities.items import options as evaluate_options, path_of

ABILITIES = layout.abilities("{stage}", "{lineage}")


def abilities_known(wildcards):
    """What is on record of the walk's runs, or will be, where it is asked for: the tables hold it. A config without items
    cannot make it again, so there it is no input: the command reads what is on record by itself."""
    if not CONFIG["evaluate"]["items"]:
        return []
    found = [layout.abilities(run.stage, run.lineage) for run in walk(told(wildcards)).runs]
    asked = last_abilities(wildcards) if is_target("evaluate") and told(wildcards).name == OWN else []
    return list(dict.fromkeys([*asked, *(path for path in found if path.exists())]))


def comparison_known(wildcards):
    """The comparison with the placebo, where it is on record or asked for: the tables hold it."""
    chain = told(wildcards)
    known = (is_target("placebo") and chain.name == OWN) or chain.view.comparison.exists()
    return [chain.view.comparison] if known else []


def last_abilities(wildcards):
    """Of the last accepted run: what is released, where something is."""
    if not CONFIG["evaluate"]["items"]:
        raise WorkflowError(f"{CONFIG_NAME}: evaluate.items: found none, expected files of items to evaluate by")
    accepted = [visit.run for visit in walk(CHAINS[OWN]).visits if visit.decision == ACCEPTED]
    if not accepted:
        raise WorkflowError("no run was accepted, so there is nothing to evaluate")
    return [layout.abilities(accepted[-1].stage, accepted[-1].lineage)]


rule abilities:
    input:
        export=ancient(WEIGHTS.stamp),
        base=ancient(BASE_EXPORT.stamp),
        tested=[str(path_of(source)) for source in CONFIG["evaluate"]["items"]],
    output:
        ABILITIES,
        ABILITIES.with_suffix(".tsv"),
    wildcard_constraints:
        lineage=unless_thrown(ABILITIES, ABILITIES.with_suffix(".tsv")),
    resources:
        gpu=gpus(CONFIG["probe"]["device"]),
        mem_mb=asking_mb(CONFIG["probe"]["device"]),
        weights=lambda wildcards: str(layout.run_weights(wildcards.stage, wildcards.lineage).exported),
    params:
        options=shlex.join(evaluate_options(CONFIG["evaluate"])),
        code=inputs.code_digest("abilities", "cli/work/evaluate.py", *inputs.REPLIES),
    shell:
        "{FGOD} evaluate {BASE_EXPORT.exported} {resources.weights:q} {params.options}"
        " --device {CONFIG[probe][device]} --chat {CHAT:q} --out {output[0]:q} {GUARD}"


rule evaluate:
    input:
        last_abilities,
        layout.view().report,
