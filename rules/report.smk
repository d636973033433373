# The report, from the tables alone. Shared by the pipeline and by workflow/report.smk, which knows no training rule.

from fgod import layout
from fgod.inputs import code_digest
from fgod.tables import TABLES as COLUMNS

TABLES = [*(layout.TABLES / f"{name}.tsv" for name in COLUMNS), layout.TABLES / "context.json"]


rule report:
    input:
        tables=TABLES,
    output:
        layout.REPORT,
    params:
        code=code_digest("report", "comparison.py"),
    shell:
        "fgod report --tables {layout.TABLES} --out {output:q}"
