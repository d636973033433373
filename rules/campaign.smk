# The experiments of the config: `snakemake campaign`. Each has its own tables, report and releases; runs that several
# share are made once.
NAMED = [chain for chain in CHAINS.values() if chain.name != OWN]


def released(wildcards):
    """What says that an experiment is released, of those that are to be."""
    return [chain.releases.promoted for chain in NAMED if to_release(chain)]


def walks(wildcards):
    """The walk of each experiment, in JSON."""
    return canonical_json(
        {
            chain.name: {"note": chain.note, "starts_from": chain.starts_from, "walk": json.loads(recorded_walk(chain))}
            for chain in NAMED
        }
    )


rule experiments:
    input:
        [chain.view.report for chain in NAMED],
        released,
    output:
        layout.CAMPAIGN,
    params:
        walks=walks,
    shell:
        "{FGOD} campaign --walks {params.walks:q} --out {output:q}"


def campaign_inputs(wildcards):
    """All data before any training, then everything."""
    if not NAMED:
        raise WorkflowError(f"{CONFIG_NAME}: experiments: found none, expected some (config.yaml says how they are written)")
    return [*(audit_of(run) for chain in NAMED for run in EXPECTED[chain.name].runs), layout.CAMPAIGN]


rule campaign:
    input:
        campaign_inputs,
