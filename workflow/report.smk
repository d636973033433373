# The report again, those of experiments and their page, from the tables alone: `snakemake -s workflow/report.smk`. No rule here can train.


include: "../rules/shell.smk"
include: "../rules/report.smk"


rule all:
    default_target: True
    input:
        [told.report for told in layout.views() if told.context.exists()] or layout.view().report,
        [layout.CAMPAIGN_REPORT] if layout.CAMPAIGN.exists() else [],
