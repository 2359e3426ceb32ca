import sys
import types

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
import torch
from scipy import ndimage, stats
from scipy.linalg import sqrtm
from skimage.metrics import structural_similarity

from echo.dice import frame_dice
from echo.labels import SDM_NAMES, STRUCTURES
from echo.segmenter import build_segmenter, to_input
from reproduction.evaluation import segmentation
from reproduction.evaluation.images import (
    diversity,
    features,
    frechet_distance,
    histogram_distance,
    inception_features,
    kernel_distance,
    memorisation_test,
    ms_ssim,
    nearest_distances,
    power_spectrum,
    speckle_statistics,
)


def squares(*corners: int) -> np.ndarray:
    """Label maps (n, 20, 20) with a wall square of 8 x 8 at (4, corner) and a cavity of 4 x 4 in its middle."""
    label = np.zeros((len(corners), 20, 20), np.uint8)
    for one, corner in zip(label, corners, strict=True):
        one[4:12, corner : corner + 8] = 2
        one[6:10, corner + 2 : corner + 6] = 1
        one[14:16, corner : corner + 4] = 3
    return label


def clouds(seed: int, count: int, size: int = 32, sigma: float = 2.0) -> np.ndarray:
    """Smooth random images uint8 (count, size, size), mean 128 and sd 30."""
    noise = np.random.default_rng(seed).standard_normal((count, size, size))
    smooth = ndimage.gaussian_filter(noise, (0, sigma, sigma), mode="wrap")
    return (128 + 30 * smooth / smooth.std()).clip(0, 255).astype(np.uint8)


def noisy(images: np.ndarray, sd: float, seed: int = 0) -> np.ndarray:
    return (images + np.random.default_rng(seed).normal(0, sd, images.shape)).clip(0, 255).astype(np.uint8)


def test_dice_of_shifted_squares():
    dice = 100 * frame_dice(squares(4, 6), squares(4, 4))
    assert dice.iloc[0].tolist() == [100, 100, 100]
    # Shifted by 2: cavity overlaps in 2 of 4 columns, the epicardial region in 6 of 8, the atrium in 2 of 4.
    assert dice.iloc[1].tolist() == pytest.approx([50, 75, 50])


def test_epicardium_is_cavity_and_wall():
    label = squares(4)
    swapped = np.choose(label, [0, 2, 1, 3]).astype(np.uint8)
    dice = frame_dice(swapped, label).iloc[0]
    assert dice["LV epi"] == 1
    assert dice["LV endo"] == 0


def test_missing_structures():
    label = squares(4)
    without = np.where(label == 3, 0, label).astype(np.uint8)
    assert frame_dice(without, label)["LA"].item() == 0  # missed
    assert frame_dice(label, without)["LA"].item() == 0  # invented
    both = frame_dice(without, without)["LA"]
    assert both.isna().item()  # rightly absent
    with pytest.raises(ValueError, match="differ in shape"):
        frame_dice(label, label[:, 1:])


def test_surface_distances_of_shifted_squares():
    # Rows of 0.5 mm, columns of 0.8 mm; the wall's square, the cavity and the atrium all move by 3 columns.
    distances = segmentation.surface_measures(squares(7)[0], squares(4)[0], (0.5, 0.8))
    assert distances.loc["LV endo", "hd95_mm"] == pytest.approx(3 * 0.8)
    # The edge of 8 x 8 pixels that leads is 3 columns off, its 7 others less: between 0 and 2.4 mm on average.
    assert 0 < distances.loc["LV epi", "assd_mm"] < 3 * 0.8
    down = segmentation.surface_measures(np.roll(squares(4)[0], 3, 0), squares(4)[0], (0.5, 0.8))
    assert down.loc["LV endo", "hd95_mm"] == pytest.approx(3 * 0.5)
    same = segmentation.surface_measures(squares(4)[0], squares(4)[0], (0.5, 0.8))
    assert (same[["hd95_mm", "assd_mm"]] == 0).all(axis=None)
    assert (same["nsd"] == 1).all()


def test_surface_dice_counts_borders_within_the_tolerance():
    """A square moves down: the side that leads and the one that trails leave the other's border."""
    label = np.zeros((40, 40), np.uint8)
    label[10:22, 10:22] = 3
    for rows, spacing in ((2, 1.0), (3, 1.0), (3, 0.5)):
        found = segmentation.surface_measures(np.roll(label, rows, 0), label, (spacing, spacing)).loc["LA", "nsd"]
        assert (found == 1) == (rows * spacing <= segmentation.NSD_TOLERANCE_MM)
        assert found > 0.4
    far = segmentation.surface_measures(np.roll(label, 15, 0), label, (1.0, 1.0)).loc["LA", "nsd"]
    assert far == 0
    empty = np.zeros_like(label)
    assert segmentation.surface_measures(empty, label, (1.0, 1.0)).loc["LA", "nsd"] == 0
    assert np.isnan(segmentation.surface_measures(empty, empty, (1.0, 1.0)).loc["LA", "nsd"])


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (0.3, 0.77)])
def test_surface_distances_against_scipy(spacing):
    rng = np.random.default_rng(0)
    for _ in range(4):
        maps = [np.digitize(ndimage.gaussian_filter(rng.normal(size=(60, 50)), 5) * 12, [-0.4, 0.2, 0.7]) for _ in "ab"]
        ours = segmentation.surface_measures(*(m.astype(np.uint8) for m in maps), spacing)
        for name, classes in STRUCTURES.items():
            masks = [np.isin(m, classes) for m in maps]
            borders = [m & ~ndimage.binary_erosion(m) for m in masks]
            away = [ndimage.distance_transform_edt(~b, sampling=spacing) for b in borders]
            directed = away[1][borders[0]], away[0][borders[1]]
            expected = max(np.percentile(d, 95) for d in directed), np.concatenate(directed).mean()
            assert tuple(ours.loc[name, ["hd95_mm", "assd_mm"]]) == pytest.approx(expected, rel=1e-5)
            near = np.concatenate(directed) <= segmentation.NSD_TOLERANCE_MM
            assert ours.loc[name, "nsd"] == pytest.approx(near.mean(), abs=1e-6)


def test_hausdorff_distance_against_simpleitk():
    label = squares(4)[0]
    shifted = np.roll(label, 5, 1)
    masks = [sitk.GetImageFromArray((m == 3).astype(np.uint8)) for m in (label, shifted)]
    for mask in masks:
        mask.SetSpacing((0.8, 0.5))  # (column, row)
    judge = sitk.HausdorffDistanceImageFilter()
    judge.Execute(*masks)
    # A whole row of pixels lies at the largest distance, so that its 95th percentile is the same.
    ours = segmentation.surface_measures(shifted, label, (0.5, 0.8)).loc["LA", "hd95_mm"]
    assert ours == pytest.approx(judge.GetHausdorffDistance(), rel=1e-5)


def test_largest_components():
    label = np.zeros((20, 20), np.uint8)
    label[4:12, 4:12] = 2
    label[6:10, 6:10] = 1
    label[14:18, 4:12] = 3
    torn = label.copy()
    torn[4, 4] = 1  # an island of cavity in the wall becomes wall
    torn[1, 15:18], torn[2, 15] = 1, 2  # a second ventricle goes
    torn[0:2, 0:3] = 3  # and a second atrium
    assert (segmentation.largest_components(torn) == label).all()
    assert (segmentation.largest_components(label) == label).all()
    assert not segmentation.largest_components(np.zeros_like(label)).any()


def test_frame_scores_tell_missing_from_absent():
    label = squares(4)[0]
    islands = label.copy()
    islands[0, 18:20] = 3
    scores = segmentation.frame_scores(islands, label, (0.5, 0.8)).set_index(["structure", "processing"])
    assert list(scores.columns) == ["dice", "hd95_mm", "assd_mm", "nsd", "labelled"]
    assert scores.loc[("LA", "raw"), "dice"] == pytest.approx(2 * 8 / (10 + 8))
    assert scores.loc[("LA", "raw"), "hd95_mm"] > 5
    assert scores.loc[("LA", "largest component")].tolist() == [1, 0, 0, 1, True]
    assert (scores.loc["LV epi", "dice"] == 1).all()

    without = np.where(label == 3, 0, label).astype(np.uint8)
    for prediction, truth in ((without, label), (label, without)):  # missed, invented
        row = (
            segmentation.frame_scores(prediction, truth, (1, 1))
            .set_index(["structure", "processing"])
            .loc[("LA", "raw")]
        )
        assert row["dice"] == row["nsd"] == 0
        assert row[["hd95_mm", "assd_mm"]].isna().all()
        assert row["labelled"] == (3 in truth)
    absent = segmentation.frame_scores(without, without, (1, 1)).query("structure == 'LA'")
    assert absent[["dice", "hd95_mm", "assd_mm", "nsd"]].isna().all(axis=None)


def test_features_are_the_deepest_level_averaged_over_pixels(smoke):
    torch.manual_seed(0)
    network = build_segmenter(smoke.segmenter).train()
    images = clouds(0, 5)
    ours = features(network, images, batch_size=2)
    assert ours.shape == (5, smoke.segmenter.channels[-1])
    assert ours.dtype == np.float32

    x, block = to_input(images), network.model
    while isinstance(block, torch.nn.Sequential):  # (down, SkipConnection, up), down to the bottom unit
        x, block = block[0](x), block[1].submodule
    assert ours == pytest.approx(block(x).mean((2, 3)).detach().numpy(), abs=1e-5)
    assert np.ptp(ours, axis=0).max() > 1e-3  # the images differ, and so do their features
    assert not network.training
    assert not any(m._forward_hooks for m in network.modules())


def test_frechet_distance_of_known_normals():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((400, 3))
    x = (x - x.mean(0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(x, rowvar=False))).T  # mean 0, covariance I
    # Diagonal covariances: |difference of the means|^2 + sum of (s - t)^2.
    a, b = x * [1, 2, 3], x[::-1] * [2, 2, 0.5] + [1, 0, -2]
    assert frechet_distance(a, b) == pytest.approx(5 + 1 + 0 + 2.5**2)
    assert frechet_distance(b, a) == pytest.approx(12.25)
    assert frechet_distance(a, a[::-1]) == pytest.approx(0, abs=1e-9)

    c = rng.standard_normal((50, 3)) @ rng.standard_normal((3, 3)) + 1  # covariances that do not commute
    covariances = np.cov(a, rowvar=False), np.cov(c, rowvar=False)
    trace = np.trace(sum(covariances) - 2 * sqrtm(covariances[0] @ covariances[1]).real)
    assert frechet_distance(a, c) == pytest.approx(np.square(a.mean(0) - c.mean(0)).sum() + trace)
    assert frechet_distance(a[:, :1], b[:, :1]) == pytest.approx(1 + 1)


def test_frechet_distance_of_fewer_images_than_features():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((6, 40)), 2 * rng.standard_normal((9, 40))
    # With X the centred rows over sqrt(N - 1), Tr (A B)^(1/2) is the nuclear norm of X_a X_b^T.
    xa, xb = ((x - x.mean(0)) / np.sqrt(len(x) - 1) for x in (a, b))
    expected = np.square(a.mean(0) - b.mean(0)).sum() + np.square(xa).sum() + np.square(xb).sum()
    expected -= 2 * np.linalg.svd(xa @ xb.T, compute_uv=False).sum()
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)


def test_kernel_distance_is_the_unbiased_estimate():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((4, 3)), rng.standard_normal((5, 3)) + 1

    def k(x, y):
        return (np.dot(x, y) / 3 + 1) ** 3

    within = np.mean([k(x, y) for i, x in enumerate(a) for j, y in enumerate(a) if i != j])
    within += np.mean([k(x, y) for i, x in enumerate(b) for j, y in enumerate(b) if i != j])
    assert kernel_distance(a, b) == pytest.approx(within - 2 * np.mean([k(x, y) for x in a for y in b]))

    same = [kernel_distance(*rng.standard_normal((2, 10, 4))) for _ in range(400)]
    assert abs(np.mean(same)) < 4 * stats.sem(same) < 0.3  # with the diagonals left in, the mean would be about 2
    assert min(same) < 0


@pytest.mark.parametrize("distance", [frechet_distance, kernel_distance])
def test_features_that_do_not_compare_are_refused(distance):
    for a, b in (((4, 3), (4, 2)), ((1, 3), (4, 3)), ((4,), (4,))):
        with pytest.raises(ValueError, match="at least 2 features"):
            distance(np.ones(a), np.ones(b))


def reference_ms_ssim(a: np.ndarray, b: np.ndarray, scales: int) -> float:
    """Wang et al. 2003, eq. 7, of one pair, by scipy's Gaussian over the pixels whose 11 x 11 window is inside."""

    def local(x):
        return ndimage.gaussian_filter(x, 1.5, truncate=3.5)[5:-5, 5:-5]

    weights = np.array([0.0448, 0.2856, 0.3001, 0.2363, 0.1333][:scales])
    value, (a, b) = 1.0, (a.astype(float), b.astype(float))
    for k, weight in enumerate(weights / weights.sum()):
        ma, mb = local(a), local(b)
        va, vb, cov = local(a * a) - ma**2, local(b * b) - mb**2, local(a * b) - ma * mb
        term = (2 * cov + 7.65**2) / (va + vb + 7.65**2)  # (0.03 x 255)^2
        if k == scales - 1:
            term = term * (2 * ma * mb + 2.55**2) / (ma**2 + mb**2 + 2.55**2)
        value *= term.mean() ** weight
        a, b = (x[: len(x) // 2 * 2, : len(x) // 2 * 2] for x in (a, b))
        a, b = (x.reshape(len(x) // 2, 2, -1, 2).mean((1, 3)) for x in (a, b))
    return value


@pytest.mark.parametrize(("size", "scales"), [(16, 1), (32, 2), (48, 3), (95, 3), (128, 4), (176, 5)])
def test_ms_ssim_at_every_size(size, scales):
    a = clouds(0, 2, size)
    b = noisy(a, 25)
    values = ms_ssim(a, b)
    assert values.shape == (2,)
    assert values == pytest.approx([reference_ms_ssim(*pair, scales) for pair in zip(a, b, strict=True)], abs=1e-3)
    assert values.max() < 0.99
    assert ms_ssim(a, a) == pytest.approx(1, abs=1e-5)


def test_ms_ssim_of_one_scale_is_ssim():
    a = clouds(0, 1, 21)
    b = noisy(a, 25)
    options = {"gaussian_weights": True, "use_sample_covariance": False, "data_range": 255}
    assert ms_ssim(a, b).item() == pytest.approx(structural_similarity(a[0], b[0], **options), abs=1e-4)
    with pytest.raises(ValueError, match="smaller than the window"):
        ms_ssim(a[:, :10, :10], b[:, :10, :10])
    with pytest.raises(ValueError, match="differ in shape"):
        ms_ssim(a, b[:, 1:])


def test_diversity_pairs_different_images_within_groups():
    four = clouds(0, 4)
    low = ms_ssim(four[:1], four[1:2]).item()
    assert diversity(four[:2], seed=0) == pytest.approx(low, abs=1e-6)  # never an image with itself
    interleaved = np.concatenate([four, four, clouds(1, 1)])
    assert diversity(interleaved, seed=0, groups=[0, 1, 2, 3, 0, 1, 2, 3, 9]) == pytest.approx(1, abs=1e-5)
    assert diversity(interleaved, seed=0) < 0.7
    assert diversity(four, 1, pairs=3) == diversity(four, 1, pairs=3)
    assert diversity(four, 1, pairs=3) != diversity(four, 2, pairs=3)

    every = np.mean([ms_ssim(four[i : i + 1], four[j : j + 1]) for i in range(4) for j in range(i)])
    assert diversity(four, seed=0, pairs=2000) == pytest.approx(every, abs=0.01)
    for images, groups in ((four, [0, 1, 2, 3]), (four[:1], None), (four[:0], None)):
        with pytest.raises(ValueError, match="no two images"):
            diversity(images, seed=0, groups=groups)


def test_speckle_of_a_known_envelope():
    rng = np.random.default_rng(0)
    images = rng.rayleigh(40, (2, 200, 200)).round().astype(np.uint8)
    labels = np.full(images.shape, SDM_NAMES.index("tissue"), np.uint8)
    table = speckle_statistics(images, labels)
    assert table["image"].tolist() == [0, 1]
    assert table["snr"].to_numpy() == pytest.approx(1.913, abs=0.03)
    assert table["mean"].to_numpy() == pytest.approx(40 * np.sqrt(np.pi / 2), rel=0.02)


def test_speckle_regions_lose_their_border():
    label = np.zeros((1, 12, 12), np.uint8)
    label[0, 1:6, 1:6] = 1
    label[0, 8, 8] = 3  # one pixel: nothing would remain
    image = np.full(label.shape, 200, np.uint8)
    image[0, 2:5, 2:5] = np.arange(9).reshape(3, 3)
    table = speckle_statistics(image, label).set_index("region")
    assert table.index.tolist() == ["LV endo", "LV myo"]  # no row for what is absent, nor for the outside
    assert table.loc["LV endo", ["pixels", "mean"]].tolist() == [9, 4]
    assert table.loc["LV endo", "sd"] == pytest.approx(np.sqrt(60 / 9))
    assert table.loc["LV endo", "snr"] == pytest.approx(4 / np.sqrt(60 / 9))
    assert table.loc["LV myo", ["pixels", "mean"]].tolist() == [1, 200]
    assert np.isnan(table.loc["LV myo", "snr"])
    with pytest.raises(ValueError, match="differ in shape"):
        speckle_statistics(image, label[:, 1:])


def test_histogram_distance():
    a = clouds(0, 3)
    assert histogram_distance(a, a[::-1]) == 0
    assert histogram_distance(a, a[:1] + 10) == pytest.approx(
        stats.wasserstein_distance(a.ravel(), (a[0] + 10).ravel())
    )
    assert histogram_distance(np.zeros(3, np.uint8), np.full(5, 255, np.uint8)) == 255


def test_power_spectrum_of_a_wave_and_of_noise():
    x = np.arange(48) / 48
    wave = np.round(128 + 50 * np.sin(2 * np.pi * (3 * x[:, None] + 4 * x))).astype(np.uint8)[None]  # |(3, 4)| = 5
    table = power_spectrum(wave)
    assert table["frequency"].tolist() == list(range(1, 25))
    assert table.set_index("frequency")["power"].idxmax() == 5
    assert table.query("frequency < 3 or frequency > 7")["power"].max() < 1e-3 * table["power"].max()

    noise = noisy(np.full((400, 48, 48), 128), 20)
    assert power_spectrum(noise)["power"].iloc[1:].to_numpy() == pytest.approx(400, rel=0.1)
    constant = np.stack([np.full((48, 48), 9, np.uint8), np.full((48, 48), 90, np.uint8)])
    assert power_spectrum(constant)["power"].max() < 1e-9


def test_nearest_distances_of_images_and_features():
    references = np.stack([np.full((8, 8), grey, np.uint8) for grey in (0, 10, 200)])
    queries = np.stack([np.full((8, 8), grey, np.uint8) for grey in (13, 200)])
    table = nearest_distances(queries, references, neighbours=2)
    assert table["distance"].tolist() == [3, 0]
    assert table["index"].tolist() == [1, 2]
    assert table["relative"].tolist() == [3 / ((3 + 13) / 2), 0]

    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((300, 7)).astype(np.float32), rng.standard_normal((60, 7)).astype(np.float32)
    every = np.sqrt(np.square(a[:, None].astype(float) - b).sum(-1))
    table = nearest_distances(a, b)
    assert table["distance"].to_numpy() == pytest.approx(every.min(1))
    assert table["index"].tolist() == every.argmin(1).tolist()
    assert table["relative"].to_numpy() == pytest.approx(every.min(1) / np.sort(every)[:, :50].mean(1))
    with pytest.raises(ValueError, match="do not compare"):
        nearest_distances(a, b[:, 1:])


def test_memorisation_finds_copies_and_only_copies():
    training, heldout, honest = clouds(0, 150), clouds(1, 60), clouds(2, 60)
    result = memorisation_test(honest, heldout, training)
    assert min(result["p_value"], result["p_value_relative"]) > 0.01
    assert result["closer"] == pytest.approx(0.5, abs=0.15)
    assert result["copies"].tolist() == []

    planted = honest.copy()
    planted[7] = noisy(training[30], 5)
    result = memorisation_test(planted, heldout, training)
    assert result["copies"].tolist() == [7]
    assert nearest_distances(planted, training).loc[7, "index"] == 30
    assert result["p_value"] > 0.01  # one copy does not make a tendency

    result = memorisation_test(noisy(training[:60], 5), heldout, training)
    assert max(result["p_value"], result["p_value_relative"]) < 1e-10
    assert result["closer"] == result["closer_relative"] == 1
    assert result["median_synthetic"] < 6 < result["median_heldout"]
    assert result["copies"].tolist() == list(range(60))

    # Unseen images nearer than that to the training set, such as a patient in both, show that nearness is no proof.
    leaked = np.concatenate([heldout, training[:1]])
    assert not len(memorisation_test(planted, leaked, training)["copies"])
    assert memorisation_test(honest, heldout, training, alpha=2)["copies"].size < 5


def test_smooth_images_are_no_copies():
    training, heldout, honest = (clouds(seed, 100, sigma=1.0) for seed in range(3))
    smooth = ndimage.gaussian_filter(honest, (0, 2, 2), mode="wrap")
    result = memorisation_test(smooth, heldout, training)
    assert result["p_value"] < 1e-10  # why the distances alone prove nothing
    assert result["p_value_relative"] > result["p_value"]
    assert result["copies"].tolist() == []


def test_tables_have_their_columns_when_empty():
    table = speckle_statistics(*np.zeros((2, 1, 4, 4), np.uint8))
    pd.testing.assert_index_equal(table.columns, pd.Index(["image", "region", "pixels", "mean", "sd", "snr"]))
    assert table.empty


def test_fid_is_offered_where_its_network_is_at_hand(monkeypatch):
    images = np.random.default_rng(0).integers(0, 255, (5, 32, 32), dtype=np.uint8)
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", None)
    with pytest.raises(ImportError, match="pip install torch-fidelity"):
        inception_features(images, "weights.pth")

    class Network(torch.nn.Module):
        """Checks what torch-fidelity's network asks for, and returns the mean grey level."""

        def __init__(self, name, features_list, feature_extractor_weights_path=None):
            super().__init__()
            assert (features_list, feature_extractor_weights_path) == (["2048"], "weights.pth")

        def forward(self, x):
            assert x.dtype == torch.uint8
            assert x.shape[1:] == (3, 32, 32)
            return (x.float().mean((1, 2, 3), keepdim=False)[:, None].expand(-1, 2048),)

    stub = types.SimpleNamespace(FeatureExtractorInceptionV3=Network)
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", stub)
    found = inception_features(images, "weights.pth", batch_size=2)
    assert found.shape == (5, 2048)
    np.testing.assert_allclose(found[:, 7], images.mean((1, 2)), rtol=1e-5)
