# The whole pipeline: base → answers → (mix → train → export → probe → gate) per stage → confirm → tables → report → release.
#   snakemake          run what is missing          snakemake -n     show what would run
#   snakemake data     mixes and their audits only  snakemake -s workflow/report.smk     the report from tables alone
#   snakemake campaign the chains of the config's experiments
#   snakemake evaluate what the model can do beside the base, by the items of the config's key evaluate
#   snakemake placebo  what tuning costs beside a placebo: the same chain, taught the base's own answers


from pathlib import Path
from fgod.config import read_yaml
from fgod.system.stop import exit_on_fgod_error

if not workflow.configfiles:
    with exit_on_fgod_error():
        read_yaml(Path("config.yaml"))  # snakemake would not say in which line it is broken

    configfile: "config.yaml"


include: "rules/shell.smk"
include: "rules/common.smk"
include: "rules/base.smk"
include: "rules/data.smk"
include: "rules/train.smk"
include: "rules/probe.smk"
include: "rules/confirm.smk"
include: "rules/report.smk"
include: "rules/evaluate.smk"
include: "rules/tables.smk"
include: "rules/release.smk"
include: "rules/placebo.smk"
include: "rules/campaign.smk"


# Bookkeeping, which a cluster does where snakemake runs.
localrules:
    all,
    audit,
    campaign,
    comparison,
    confirm,
    data,
    evaluate,
    experiments,
    fold_harness,
    gate,
    harness,
    mix,
    placebo,
    promote,
    recipe,
    report,
    tables,
    walk,


# Without an output of its own, `all` asks for the walk itself: a target file that exists would go stale when a gate flips.
rule all:
    default_target: True
    input:
        rules.data.input,  # a mix that cannot be made is known before hours of training, and made beside it
        visited("verdict", CHAINS[OWN]),
        layout.view().report,
        layout.Releases().promoted,
