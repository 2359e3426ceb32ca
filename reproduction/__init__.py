"""The apparatus: how the paper's method (`echo`) is run, checked, compared and shown."""

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
RESULTS = REPOSITORY / "results"
README = REPOSITORY / "README.md"
FIGURES = REPOSITORY / "figures"
PAPER_RESULTS = REPOSITORY / "data" / "paper_results.csv"
