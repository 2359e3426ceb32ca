"""Text files of a dataset: what `Info_<view>.cfg` states of a patient, and lists of patients.

Nothing that is computed needs these facts, so none of them can end a run: one that is absent, or that is no value in
its range ("NA", -1, "see report"), is None.
"""

import codecs
import re
from pathlib import Path

QUALITIES = {"good": "Good", "medium": "Medium", "poor": "Poor"}
MARKED = dict.fromkeys((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE), "utf-32")  # first: UTF-16 begins alike
MARKED |= dict.fromkeys((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE), "utf-16")
NOT_TOLD = {"", "na", "n/a", "n.a.", "nan", "none", "null", "unknown", "-", "--", "?"}


def read_text(path: Path) -> str:
    """A text file as editors leave it: UTF-8 or UTF-16, either with or without a byte order mark, UTF-32 or Latin-1."""
    content = path.read_bytes()
    encoding = next((name for mark, name in MARKED.items() if content.startswith(mark)), None)
    if encoding is None:  # every other byte of plain UTF-16 is 0
        empty = [content[first::2].count(0) > len(content) / 4 for first in (0, 1)]
        encoding = {(True, False): "utf-16-be", (False, True): "utf-16-le"}.get(tuple(empty))
    if encoding:
        return content.decode(encoding, errors="replace")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("latin-1")


def read_names(path: Path) -> list[str]:
    """The names in a list: between spaces, line ends, commas, semicolons or quotes; `#` begins a comment."""
    lines = (line.partition("#")[0] for line in read_text(path).splitlines())
    return re.findall(r"[^\s,;\"'\u200b\ufeff]+", "\n".join(lines))


def read_info(path: Path) -> dict[str, str | float | None]:
    """quality, ef (%), sex and age (years) from the lines `key: value` of a cfg; None for what is not told.

    An ejection fraction below 1 without a percent sign is a fraction (0.54 is 54 %); a comma is a decimal point.
    A quality is Good, Medium or Poor whatever its case, and any other word as it is written.
    """
    pairs = (re.split(r"[:=]", line.partition("#")[0], maxsplit=1) for line in read_text(path).splitlines())
    facts = {re.sub(r"[\s_]", "", pair[0]).lower(): pair[1].strip(" \t;\"'") for pair in pairs if len(pair) == 2}
    facts = {key: value for key, value in facts.items() if value.lower() not in NOT_TOLD}
    quality, stated = facts.get("imagequality"), facts.get("ef", facts.get("lvef", ""))
    ef, age = _number(stated, 100), _number(facts.get("age", ""), 130)
    if ef is not None and 0 < ef < 1 and "%" not in stated:
        ef = round(100 * ef, 6)
    return {
        "quality": quality and QUALITIES.get(quality.lower(), quality),
        "sex": facts.get("sex"),
        "ef": ef,
        "age": None if age is None else int(age),
    }


def _number(text: str, top: float) -> float | None:
    """The number from 0 to `top` that `text` is, with or without a unit; else None."""
    match = re.fullmatch(r"(\d+(?:[.,]\d*)?|[.,]\d+)\s*(?:%|y|years?)?", text, re.IGNORECASE | re.ASCII)
    value = float(match[1].replace(",", ".")) if match else None
    return value if value is not None and value <= top else None
