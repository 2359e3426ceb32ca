"""What is wrong with a dataset: one fault is one line, and many are one report."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

LONGEST = 80  # letters of a name that a message shows
SHOWN = 20  # faults that the message lists; `faults.csv` has all of them


class DataError(ValueError):
    """A fault of a dataset: one line with the file, the patient (or case) and the reason, which are attributes too."""

    def __init__(self, path: Path, reason: str, patient: str | None = None):
        self.path, self.patient = path, patient
        self.reason = printable(reason)
        super().__init__(printable(": ".join(filter(None, (str(path), shortened(patient or ""), reason)))))


def printable(text: str) -> str:
    """Text on one line, without what moves a terminal's cursor or is no letter at all."""
    return "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))


def shortened(name: str) -> str:
    """A patient's name, which in a damaged list may be thousands of letters long."""
    return name if len(name) <= LONGEST else f"{name[:LONGEST]}..."


class DataFaults(DataError):
    """All faults of a dataset at once. The first line says how many there are, the next ones list them."""

    def __init__(self, path: Path, faults: Sequence[DataError]):
        patients = {fault.patient for fault in faults if fault.patient}
        super().__init__(path, f"{len(faults)} fault{'s' * (len(faults) != 1)} in {len(patients)} patient(s)")
        self.faults = list(faults)

    def __str__(self) -> str:
        lines = [self.args[0], *(f"  {fault}" for fault in self.faults[:SHOWN])]
        more = len(self.faults) - SHOWN
        return "\n".join(lines + [f"  and {more} more"] * (more > 0))

    def table(self) -> pd.DataFrame:
        """One row a fault: patient, file, reason."""
        return pd.DataFrame(records(self.faults), columns=["patient", "file", "reason"])


def records(faults: Sequence[DataError]) -> list[dict[str, str]]:
    """Faults as JSON-able records: patient (empty for one of the whole dataset), file, reason."""
    return [{"patient": f.patient or "", "file": str(f.path), "reason": f.reason} for f in faults]
