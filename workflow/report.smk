# The report again from results/tables alone: `snakemake -s workflow/report.smk`. No rule here can train.


include: "../rules/shell.smk"
include: "../rules/report.smk"


rule all:
    default_target: True
    input:
        layout.REPORT,
