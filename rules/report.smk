# The report, from the tables alone. Shared by the pipeline and by workflow/report.smk, which knows no training rule.

from pathlib import Path

from fgod import inputs, layout
from fgod.tables import TABLES as COLUMNS

# What is told of a chain. `of` is empty for the config's own, /experiments/NAME for an experiment.
OF_CHAIN = layout.View(Path("results{of}"))
TABLES = [*(OF_CHAIN.tables / f"{name}.tsv" for name in COLUMNS), OF_CHAIN.context]


rule report:
    input:
        tables=TABLES,
    output:
        OF_CHAIN.report,
    wildcard_constraints:
        of="(?:/experiments/[A-Za-z][A-Za-z0-9._-]*)?",
    params:
        code=inputs.code_digest("report", "comparison.py", *inputs.TABLES),
    shell:
        "fgod report --tables results{wildcards.of}/tables --out {output:q}"


rule campaign_report:
    input:
        layout.CAMPAIGN,
    output:
        layout.CAMPAIGN_REPORT,
    params:
        code=inputs.code_digest("report", "comparison.py", *inputs.TABLES),
    shell:
        "fgod campaign-report --table {input:q} --out {output:q}"
