"""What others report on the same task, beside which our numbers may be read: quoted, not measured here."""

import pandas as pd

from echo.labels import STRUCTURES
from echo.resume import read_csv
from reproduction import RESULTS
from reproduction.evaluation.tables import paper_results, spread, with_dashes

PAPER = {  # version: what the table calls it, and where it is
    "published abstract": ("the paper, as published", "doi 10.1007/978-3-031-44521-7_4"),
    "arXiv v1": ("the paper, first version", "arXiv 2305.05424v1, and the released code's README"),
}


def context() -> pd.DataFrame:
    """Published numbers, as text: the paper's two versions, then the rows of `results/context.csv`.

    Returns:
        Indexed by `result`; measure (what the numbers are, and their unit), frames, a column for each structure and
        their mean, patients (whom it was measured on) and source (where we read it).
    """
    rows = []
    for version, (result, source) in PAPER.items():
        dice = {name: spread(row) for name, row in paper_results(version).iterrows()}
        facts = {"result": result, "measure": "Dice, %, mean ± sd over frames", "frames": "ED and ES", "mean": None}
        rows.append(facts | dice | {"patients": "CAMUS, 50 other than ours", "source": source})
    table = pd.concat([pd.DataFrame(rows), read_csv(RESULTS / "context.csv", dtype=str)])
    columns = ["measure", "frames", *STRUCTURES, "mean", "patients", "source"]
    return with_dashes(table.set_index("result")[columns])
