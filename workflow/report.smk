# The report again, and those of experiments, from their tables alone: `snakemake -s workflow/report.smk`. No rule here can train.


include: "../rules/shell.smk"
include: "../rules/report.smk"


rule all:
    default_target: True
    input:
        [told.report for told in layout.views() if told.context.exists()] or layout.view().report,
