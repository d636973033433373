# The report, from the tables alone. Shared by the pipeline and by workflow/report.smk, which knows no training rule.

from fgod.inputs import code_digest
from fgod.tables import TABLES as COLUMNS

TABLES = [*(f"results/tables/{name}.tsv" for name in COLUMNS), "results/tables/context.json"]


rule report:
    input:
        tables=TABLES,
    output:
        "results/report.html",
    params:
        code=code_digest("report"),
    shell:
        "fgod report --tables results/tables --out {output:q}"
