"""What is wrong with a dataset: one fault is one line, and many are one report."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

SHOWN = 20  # faults that the message lists; `faults.csv` has all of them


class DataError(ValueError):
    """A fault of a dataset: one line with the file, the patient (or case) and the reason, which are attributes too."""

    def __init__(self, path: Path, reason: str, patient: str | None = None):
        self.path, self.patient = path, patient
        self.reason = " ".join(reason.split())
        super().__init__(" ".join(": ".join(filter(None, (str(path), patient, reason))).split()))


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
