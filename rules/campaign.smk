# The experiments of the config: `snakemake campaign`. Each has its own tables, report and releases; runs that several
# share are made once.
NAMED = [chain for chain in CHAINS.values() if chain.name != OWN]


def reports(wildcards):
    """The report of each experiment."""
    return [chain.view.report for chain in NAMED]


def released(wildcards):
    """What says that an experiment is released, of those that are to be."""
    return [chain.releases.promoted for chain in NAMED if to_release(chain)]


def of_experiments(wildcards):
    """Of each experiment what its walk does not say, in JSON."""
    told = {chain.name: {"note": chain.note, "starts_from": chain.starts_from, "fault": chain.fault} for chain in NAMED}
    return canonical_json(told)


rule experiments:
    input:
        reports,
        released,
        walks=[chain.view.walk for chain in NAMED],  # files: a shell takes no argument as long as many walks are
    output:
        layout.CAMPAIGN,
    params:
        experiments=of_experiments,
        code=inputs.code_digest("campaign.py", *inputs.TABLES),
    shell:
        "{FGOD} campaign --experiments {params.experiments:q} --walks {input.walks:q} --out {output:q}"


@cache
def warn_of_faults():
    """Said once: which experiments have no start, and why."""
    for chain in NAMED:
        if chain.fault:
            logger.warning(f"The experiment {chain.name} has no run: {chain.fault}")


def campaign_audits(wildcards):
    """The data of all experiments, which is made before any of them trains."""
    if not NAMED:
        raise WorkflowError(
            f"{CONFIG_NAME}: experiments: found none, expected some (config.yaml says how they are written)"
        )
    warn_of_faults()
    return [audit_of(run) for chain in NAMED for run in EXPECTED[chain.name].runs]


# An input function for each experiment: each waits for gates of its own, and the others go on.
# Verdicts are named beside the reports: what is asked of a file that exists, snakemake would not notice.
rule campaign:
    input:
        campaign_audits,
        *[visited("verdict", chain) for chain in NAMED],
        reports,
        released,
        layout.CAMPAIGN,
        layout.CAMPAIGN_REPORT,
