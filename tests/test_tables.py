import numpy as np
import pandas as pd
import pytest
from conftest import REPOSITORY

from echo import tables
from echo.labels import STRUCTURES


@pytest.fixture
def scores() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    rows = []
    for train, mean in (("real", 0.92), ("synthetic", 0.90)):
        for seed in (0, 1):
            values = rng.normal(mean, 0.02, (30, 3)).clip(0, 1)
            rows.append(pd.DataFrame(values, columns=list(STRUCTURES)).assign(train=train, seed=seed))
    return pd.concat(rows, ignore_index=True)


def test_dice_table_is_mean_and_sd_over_frames(scores):
    scores.loc[0, "LA"] = np.nan  # rightly absent: not counted
    table = tables.dice_table(scores)
    assert list(table.columns) == ["train", "structure", "seed", "n_frames", "dice_mean", "dice_sd"]
    assert len(table) == 2 * 2 * 3
    one = table.query("train == 'real' and structure == 'LA' and seed == 0").iloc[0]
    values = 100 * scores.query("train == 'real' and seed == 0")["LA"].dropna()
    assert one["n_frames"] == 29
    assert one["dice_mean"] == round(values.mean(), 2)
    assert one["dice_sd"] == round(values.std(), 2)


def test_comparison_stands_beside_the_paper(scores):
    dice = tables.dice_table(scores)
    comparison = tables.comparison(dice)
    assert list(comparison.columns) == ["paper", "real-only", "synthetic-only", "difference"]
    assert comparison["paper"].tolist() == ["88.6 ± 4.9", "91.9 ± 4.2", "85.2 ± 4.8"]
    means = dice.groupby(["structure", "train"])["dice_mean"].mean()
    for structure in STRUCTURES:
        gap = means[structure, "synthetic"] - means[structure, "real"]
        assert comparison.loc[structure, "difference"] == f"{gap:+.1f}"
        assert tables.ratios(dice)[structure] == pytest.approx(0.9 / 0.92, abs=0.01)
    assert tables.markdown(comparison).splitlines()[2].startswith("| LV endo | 88.6 ± 4.9 |")


def test_readme_and_results_agree():
    readme = (REPOSITORY / "README.md").read_text()
    runs = sorted((REPOSITORY / "results").glob("*/dice.csv"))
    assert {path.parent.name for path in runs} >= {"laptop-phantom", "cpu-camus"}
    for path in runs:
        comparison = tables.markdown(tables.comparison(pd.read_csv(path)))
        assert comparison == (path.parent / "comparison.md").read_text().strip()
        assert comparison in readme
        # The table follows from the frames beside it.
        frames = pd.read_csv(path.parent / "dice_frames.csv")
        again = tables.dice_table(frames)
        pd.testing.assert_frame_equal(again, pd.read_csv(path), atol=0.011)


def test_synthetic_only_comes_close_to_real_only_on_the_phantom():
    ratios = tables.ratios(pd.read_csv(REPOSITORY / "results" / "laptop-phantom" / "dice.csv"))
    assert min(ratios.values()) >= 0.95


def test_paper_results_are_both_versions():
    assert tables.paper_results().loc["LA", "dice_mean"] == 85.2
    assert tables.paper_results("arXiv v1").loc["LA", "dice_sd"] == 10.7
