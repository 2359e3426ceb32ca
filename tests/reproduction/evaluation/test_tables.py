import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from conftest import REPOSITORY

from echo.config import VIEW_PHASES
from echo.labels import STRUCTURES
from echo.resume import write_json
from reproduction.evaluation import logs, tables
from reproduction.evaluation.context import context
from reproduction.evaluation.statistics import bootstrap_interval
from reproduction.runs import publish, trace

MEANS = {"synthetic": 0.90, "real": 0.92, "both": 0.93}
PATIENTS, SEEDS = 8, (3, 4)


@pytest.fixture
def scores() -> pd.DataFrame:
    """Tidy scores of eight patients, two seeds and three rows; the quality of the first patient is not known."""
    rng = np.random.default_rng(0)
    rows = []
    for train, mean in MEANS.items():
        for seed in SEEDS:
            for patient in range(PATIENTS):
                for view, phase in VIEW_PHASES:
                    facts = {"train": train, "seed": seed, "patient": f"patient{patient:04d}", "view": view}
                    facts |= {"phase": phase, "quality": ["Good", "Medium"][patient % 2] if patient else None}
                    for structure in STRUCTURES:
                        dice, hd95, assd = rng.normal((mean, 5, 2), (0.02, 1, 0.3))
                        values = {"structure": structure, "dice": min(dice, 1), "hd95_mm": hd95, "assd_mm": assd}
                        rows += [facts | {"processing": p} | values for p in ("raw", "largest component")]
    return pd.DataFrame(rows)


@pytest.fixture
def volumes() -> pd.DataFrame:
    rng = np.random.default_rng(1)
    rows = []
    for train in MEANS:
        for seed in SEEDS:
            for patient in range(PATIENTS):
                edv, ef = 80 + 10 * patient, 40 + 3 * patient
                expert = {"expert_edv_ml": edv, "expert_esv_ml": edv * (1 - ef / 100), "expert_ef": ef}
                found = {"edv_ml": edv + rng.normal(2, 4), "esv_ml": edv / 2, "ef": ef + rng.normal(-3, 5)}
                facts = {"train": train, "seed": seed, "patient": f"patient{patient:04d}"}
                rows.append(facts | found | expert | {"release_ef": ef - 8})
    return pd.DataFrame(rows)


@pytest.fixture
def run(scores, volumes, tmp_path):
    """A run's folder with its tables and manifest."""
    folder = tmp_path / "laptop-phantom"
    tables.write_tables(scores, volumes, folder / "tables", seed=7)
    stages = {"tables": {"revision": "abc123", "seconds": 1.5, "finished": True}}
    facts = {"profile": {"name": "laptop"}, "data": {"source": "phantom"}, "seed": 7, "device": "CPU", "stages": stages}
    write_json(folder / "manifest.json", facts)
    return folder


@pytest.fixture
def frames(scores) -> pd.DataFrame:
    return tables.dice_frames(scores)


def test_dice_frames_are_the_raw_scores(scores, frames):
    scores.loc[scores["processing"] != "raw", "dice"] = 0
    assert tables.dice_frames(scores).equals(frames)
    assert len(frames) == 3 * 2 * PATIENTS * 4
    assert list(frames.columns) == ["train", "seed", "patient", "view", "phase", "quality", *STRUCTURES]
    row = frames.iloc[50]
    same = (scores[["train", "seed", "patient", "view", "phase"]] == row.iloc[:5]).all(axis=1)
    same &= (scores["processing"] == "raw") & (scores["structure"] == "LA")
    assert row["LA"] == scores.loc[same, "dice"].item()


def test_dice_table_is_mean_and_sd_over_frames(frames):
    frames.loc[(frames["train"] == "real").idxmax(), "LA"] = np.nan  # rightly absent: not counted
    table = tables.dice_table(frames)
    assert list(table.columns) == ["train", "structure", "seed", "n_frames", "dice_mean", "dice_sd"]
    assert len(table) == 3 * 2 * 3
    one = table.query("train == 'real' and structure == 'LA' and seed == 3").iloc[0]
    values = 100 * frames.query("train == 'real' and seed == 3")["LA"].dropna()
    assert one["n_frames"] == 31
    assert one["dice_mean"] == round(values.mean(), 4)
    assert one["dice_sd"] == round(values.std(), 4)


def test_comparison_stands_beside_the_paper(frames):
    dice = tables.dice_table(frames)
    comparison = tables.comparison(dice)
    assert list(comparison.columns) == ["paper", "real-only", "synthetic-only", "real + synthetic", "difference"]
    assert comparison["paper"].tolist() == ["88.6 ± 4.9", "91.9 ± 4.2", "85.2 ± 4.8"]
    means = dice.groupby(["structure", "train"])["dice_mean"].mean()
    for structure in STRUCTURES:
        gap = means[structure, "synthetic"] - means[structure, "real"]
        assert comparison.loc[structure, "difference"] == f"{gap:+.1f}"
        assert tables.ratios(dice)[structure] == pytest.approx(0.9 / 0.92, abs=0.01)
    assert tables.markdown(comparison).splitlines()[2].startswith("| LV endo | 88.6 ± 4.9 |")


def test_table_1_is_the_papers_row_and_ours(scores, volumes):
    table = tables.table(1, scores, volumes, seed=0)
    ours = ["real-only", "synthetic-only", "real + synthetic"]
    assert list(table.columns) == ["paper", "previous (implied)", *ours]
    assert table["previous (implied)"].tolist() == ["81.1", "89.0", "74.8"]
    raw = scores.query("train == 'real' and structure == 'LA' and processing == 'raw'")
    by_seed = 100 * raw.groupby("seed")["dice"].agg(["mean", "std"])
    low, high = (100 * end for end in bootstrap_interval(raw["dice"], raw["patient"], seed=0))
    text = f"{by_seed['mean'].mean():.1f} ± {by_seed['std'].mean():.1f} [{low:.1f}, {high:.1f}]"
    assert table.loc["LA", "real-only"] == f"{text}, seeds ± {by_seed['mean'].std():.1f}"
    one_seed = tables.table(1, scores[scores["seed"] == 3], volumes, seed=0)
    assert "seeds" not in one_seed.loc["LA", "real-only"]


def test_table_2_selects_view_phase_and_quality(scores, volumes):
    table = tables.table(2, scores, volumes, seed=0)
    assert len(table) == 3 * (4 + 2)  # no patient's quality is Poor, and no row says so
    for row, where in (("LV epi, 2CH ES", "view == '2CH' and phase == 'ES'"), ("LV epi, Good", "quality == 'Good'")):
        raw = scores.query(f"train == 'both' and structure == 'LV epi' and processing == 'raw' and {where}")
        assert table.loc[row, "real + synthetic"].startswith(f"{100 * raw['dice'].mean():.1f} ± ")
    other = scores.assign(quality=scores["quality"].replace({"Good": "good", "Medium": "blurred"}))
    again = tables.table(2, other, volumes, seed=0)
    assert again.loc["LA, Good"].equals(table.loc["LA, Good"])
    assert again.loc["LA, blurred"].equals(table.loc["LA, Medium"].rename("LA, blurred"))  # shown as it is spelt
    one_view = tables.table(2, scores[(scores["view"] == "4CH") & (scores["phase"] == "ED")], volumes, seed=0)
    assert list(one_view.index[:3]) == ["LV endo, 4CH ED", "LV endo, Good", "LV endo, Medium"]


def test_a_structure_that_no_label_has_is_absent(scores, volumes):
    la = scores["structure"] == "LA"
    scores = scores.assign(labelled=~la)
    scores.loc[la, ["dice", "hd95_mm", "assd_mm"]] = 0, np.nan, np.nan  # a network finds some all the same
    assert (tables.table(1, scores, volumes, seed=0).loc["LA"].iloc[2:] == "absent").all()
    third = tables.table(3, scores, volumes, seed=0)
    assert (third.loc[["LA, missing", "LA, HD95, mm"]] == "absent").all(axis=None)
    lost = tables.difference_table(scores, seed=0).loc["LA"]
    assert (lost["difference"] == "absent").all()
    assert (lost[["seeds", "p", "p_holm", "equivalent"]] == "–").all(axis=None)
    kept = tables.difference_table(scores[~la], seed=0).loc[["LV endo", "LV epi"]]
    assert tables.difference_table(scores, seed=0).loc[["LV endo", "LV epi"]].equals(kept)  # Holm counts tests made
    dice = tables.dice_table(tables.dice_frames(scores))
    assert list(tables.ratios(dice)) == ["LV endo", "LV epi"]
    assert tables.comparison(dice).loc["LA", "synthetic-only":].tolist() == ["absent", "absent", "–"]


def test_one_patient_has_no_interval_and_no_test(scores, volumes):
    one, of = scores[scores["patient"] == "patient0001"], volumes[volumes["patient"] == "patient0001"]
    assert "[" not in tables.table(1, one, of, seed=0).loc["LA", "real-only"]
    assert tables.table(3, one, of, seed=0).loc["EF, points, limits of agreement", "real-only"] == "–"
    found = tables.difference_table(one, seed=0)
    assert found["difference"].str.fullmatch(r"[+-]\d\.\d").all()
    assert (found[["p", "p_holm", "equivalent"]] == "–").all(axis=None)
    frame = one[(one["view"] == "2CH") & (one["phase"] == "ED") & (one["seed"] == 3)]
    assert tables.table(1, frame, of, seed=0).loc["LA", "real-only"].replace(".", "").isdigit()


def test_tables_of_the_notebooks(scores):
    means = tables.mean_dice(scores)
    raw = scores[(scores["processing"] == "raw") & (scores["train"] == "both") & (scores["structure"] == "LA")]
    assert means.loc["both", "LA"] == pytest.approx(100 * raw["dice"].mean())
    assert (means["seeds"] == 2).all()
    few = scores[(scores["train"] == "synthetic") & (scores["seed"] == 3)].drop(columns=["train", "seed"])
    beside = tables.beside_whole_run(few[few["patient"] == "patient0002"], scores)
    assert beside["of the whole run"].to_dict() == means.loc["synthetic", list(STRUCTURES)].to_dict()
    own = few.query("patient == 'patient0002' & processing == 'raw' & structure == 'LA'")["dice"].mean()
    assert beside.loc["LA", "Dice of these frames, %"] == pytest.approx(100 * own)
    shown = tables.typical_frames(scores)
    order = scores[scores["processing"] == "raw"].groupby(["patient", "view", "phase"])["dice"].mean()
    assert list(shown.values()) == [order.idxmin(), order.sort_values().index[len(order) // 2], order.idxmax()]
    assert next(iter(shown)).startswith("worst: ")
    assert (
        len(tables.typical_frames(scores[scores["patient"] == "patient0001"].query("view == '2CH' & phase == 'ED'")))
        == 1
    )
    log = pd.DataFrame({"step": range(9), "loss": 1.0, "validation_loss": 2.0, "mean": [*range(8), 3]})
    assert logs.training_log(log)["step"].tolist() == [0, 1, 3, 4, 6, 8]
    assert logs.training_log(log[:2])["step"].tolist() == [0, 1]
    assert logs.best_epochs({"real-only": log}).loc["real-only", "step"] == 7
    assert tables.with_dashes(pd.DataFrame({"a": [1.0, np.nan]}))["a"].tolist() == [1.0, "–"]
    dice = tables.dice_table(tables.dice_frames(scores))
    assert (tables.compare_runs({"a": dice, "b": dice}).loc["b"] == tables.comparison(dice)).all(axis=None)


def test_table_3_is_in_mm_and_clinical(scores, volumes):
    lost = (scores["patient"] == "patient0002") & (scores["structure"] == "LA") & (scores["train"] == "real")
    lost &= (scores["view"] == "2CH") & (scores["seed"] == 3)
    scores.loc[lost, ["dice", "hd95_mm", "assd_mm"]] = 0, np.nan, np.nan
    scores.loc[scores["processing"] != "raw", "hd95_mm"] -= 1
    table = tables.table(3, scores, volumes, seed=0)["real-only"]
    assert table["LA, missing"] == "2 of 64"  # ED and ES
    assert table["LV endo, missing"] == "0 of 64"
    raw = scores.query("train == 'real' and structure == 'LA' and processing == 'raw'")
    mean = raw.groupby("seed")["hd95_mm"].mean().mean()  # the missing ones have no distance
    assert table["LA, HD95, mm"].startswith(f"{mean:.2f} ± ")
    assert table["LA, HD95, mm, largest component"].startswith(f"{mean - 1:.2f} ± ")
    ours = volumes[volumes["train"] == "real"]
    gap = ours["ef"] - ours["expert_ef"]
    assert table["EF, points, bias"] == f"{gap.mean():+.1f}"
    assert table["EF, points, mean absolute difference"] == f"{gap.abs().mean():.1f}"
    spread = 1.96 * gap.groupby(ours["seed"]).std().mean()
    assert table["EF, points, limits of agreement"] == f"{gap.mean() - spread:+.1f} to {gap.mean() + spread:+.1f}"
    r = np.mean([np.corrcoef(v["edv_ml"], v["expert_edv_ml"])[0, 1] for _seed, v in ours.groupby("seed")])
    assert table["EDV, mL, r"] == f"{r:.2f}"


def test_surface_dice_is_a_row_where_it_was_measured(scores, volumes, run):
    assert not [row for row in tables.table(3, scores, volumes, seed=0).index if "NSD" in row]  # an earlier version's
    table = tables.table(3, scores.assign(nsd=0.75), volumes, seed=0)["real-only"]
    assert table["LA, NSD at 2 mm, %"].startswith("75.0 ± 0.0")
    assert table["LA, NSD at 2 mm, %, largest component"].startswith("75.0 ± 0.0")
    row = tables.table_rows(3, scores.assign(nsd=0.75), volumes)["LA, NSD at 2 mm, %"]
    assert tables.cell(row, tables.select(row, "real", scores, volumes), 0) == "–"  # of a grid scored before


def test_context_is_quoted_with_patients_and_source():
    found = context()
    assert found.loc["the paper, as published", "LV endo"] == "88.6 ± 4.9"
    assert found.loc["the paper, first version", "LA"] == "86.3 ± 10.7"
    nnunet = found.loc["nnU-Net (Ling et al.)"].set_index("frames")
    assert nnunet.loc["ED", list(STRUCTURES)].tolist() == ["95.2", "96.3", "90.2"]
    assert found.loc["one expert twice (intra-observer)", "LA"].tolist() == ["–", "–"]
    boost = found["mean"][found.index.str.startswith("Synthetic Boost")]
    assert boost.tolist() == ["-5.19", "+0.34"]
    assert found["patients"].str.contains("other than ours").all()
    assert (found["source"].str.len() > 10).all()


def test_differences_name_row_interval_and_margin(scores):
    table = tables.difference_table(scores, seed=0)
    assert table["training set"].tolist() == 3 * ["synthetic-only"] + 3 * ["real + synthetic"]
    assert table["difference"].str.fullmatch(r"[+-]\d\.\d \[[+-]\d\.\d, [+-]\d\.\d\]").all()
    assert set(table["equivalent"]) <= {"yes", "no"}
    assert set(table["less"]) == {"real-only"}
    recipes = {"real": "real, paper recipe", "synthetic": "synthetic, paper recipe"}
    more = pd.concat([scores, *(scores[scores["train"] == a].assign(train=b) for a, b in recipes.items())])
    last = tables.difference_table(more, seed=0).iloc[-3:]
    assert set(last["training set"]) == {recipes["synthetic"]}  # is compared with its own recipe
    assert set(last["less"]) == {recipes["real"]}
    assert last["difference"].tolist() == table["difference"].tolist()[:3]


def test_written_tables_are_one_in_every_format(run, scores, volumes):
    home = run / "tables"
    for name in ("table_1", "table_2", "table_3", "differences"):
        table = pd.read_csv(home / f"{name}.csv", index_col=0, dtype=str)
        assert tables.markdown(table) + "\n" == (home / f"{name}.md").read_text()
        latex = (home / f"{name}.tex").read_text()
        assert latex.count(r"\\") == len(table) + 1
        assert "±" not in latex
        assert "real + synthetic" in latex
    # Made of the rounded scores: the files beside them give the same again.
    again = [pd.read_csv(home / f"{name}.csv") for name in ("scores", "volumes")]
    assert tables.table(1, *again, seed=7).to_csv() == (home / "table_1.csv").read_text()
    frames = pd.read_csv(home / "dice_frames.csv")
    pd.testing.assert_frame_equal(tables.dice_table(frames), pd.read_csv(home / "dice.csv"))
    assert (
        tables.markdown(tables.comparison(pd.read_csv(home / "dice.csv")))
        == (home / "comparison.md").read_text().strip()
    )


def echo_trace(*words: object) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "echo", "trace", *map(str, words)], capture_output=True, text=True)


def test_trace_computes_the_cell_again(run):
    table = pd.read_csv(run / "tables" / "table_2.csv", index_col=0)
    done = echo_trace(2, "LA, 4CH ED", "synthetic-only", "--run", run)
    assert done.returncode == 0, done.stderr
    value, check, *rest = done.stdout.splitlines()
    assert value == table.loc["LA, 4CH ED", "synthetic-only"]
    assert check == "table_2.csv says the same"
    text = "\n".join(rest)
    source = (
        "scores.csv, read again: mean of dice, where train = synthetic, structure = LA, processing = raw, view = 4CH"
    )
    for part in (source, "8 frames of 8 patients, training seeds 3, 4", "revision abc123", "seed 7, CPU"):
        assert part in text
    assert rest[-1].endswith("python -m echo reproduce --profile laptop --data phantom --seed 7")


def test_trace_of_a_table_made_from_other_scores_says_so(run):
    scores = pd.read_csv(run / "tables" / "scores.csv")
    scores.loc[scores["train"] == "real", "dice"] -= 0.01
    scores.to_csv(run / "tables" / "scores.csv", index=False)
    text = trace.trace(run, 1, "LA", "real")
    assert (
        f"table_1.csv says otherwise: {pd.read_csv(run / 'tables' / 'table_1.csv', index_col=0).loc['LA', 'real-only']}"
        in text
    )
    assert "the same" not in text


def test_trace_finds_volumes_other_rows_and_extracts(run, scores, volumes):
    assert "volumes.csv, read again: bias of ef and expert_ef" in trace.trace(run, 3, "EF, points, bias", "both")
    assert trace.trace(run, 1, "LA", "previous (implied)").startswith("74.8\nfrom data/paper_results.csv")
    few = [t[t["train"] == "real"].assign(train="real 5%") for t in (scores, volumes)]
    tables.write_scores(*few, run / "grid")  # as the study of the grid does
    text = trace.trace(run, 1, "LA", "real 5%").splitlines()
    assert text[0] == trace.trace(run, 1, "LA", "real").splitlines()[0]
    assert "grid/scores.csv" in text[1]
    assert "python -m echo study grid" in text[-1]
    for file in (run / "tables").iterdir():
        shutil.move(file, run / file.name)
    (run / "tables").rmdir()
    assert "says the same" in trace.trace(run, 1, "LA", "real")


def test_trace_lists_the_choices(run, tmp_path):
    for words, reason in (
        ((4, "LA", "real"), "there is no table 4: choose 1, 2 or 3"),
        ((1, "RV", "real"), "table 1 has no row 'RV': choose one of LV endo; LV epi; LA"),
        (
            (1, "LA", "fake"),
            "no column 'fake': choose one of paper; previous (implied); real-only; synthetic-only; real + ",
        ),
    ):
        done = echo_trace(*words, "--run", run)
        assert done.returncode == 1
        assert done.stderr.startswith("error: ")
        assert reason in done.stderr
        assert len(done.stderr.splitlines()) == 1
    done = echo_trace(1, "LA", "real", "--run", tmp_path / "nowhere")
    assert "holds no scores.csv: run the tables stage" in done.stderr


def test_readme_and_results_agree():
    page, readme = (path.read_text() for path in (REPOSITORY / "docs" / "results.md", REPOSITORY / "README.md"))
    runs = sorted((REPOSITORY / "results").glob("*/dice.csv"))
    assert {path.parent.name for path in runs} >= {"laptop-phantom", "cpu-camus"}
    for path in runs:
        comparison = tables.markdown(tables.comparison(pd.read_csv(path)))
        assert comparison == (path.parent / "comparison.md").read_text().strip()
        assert f"<!-- results {path.parent.name} -->\n{publish.results_block(path.parent)}\n<!-- end -->" in page
        if path.parent.name == "cpu-camus":
            assert f"<!-- comparison cpu-camus -->\n{comparison}\n<!-- end -->" in readme
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
