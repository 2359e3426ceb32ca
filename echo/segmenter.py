"""The segmentation network: a MONAI U-Net from echo to label map, its training, and its one scoring on test frames."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from monai.losses import DiceCELoss
from monai.networks.nets import UNet
from monai.transforms import Compose, RandAdjustContrastd, RandAffined, RandFlipd
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from echo.camus import Camus
from echo.config import Profile, SegmenterConfig
from echo.dataset import Frames
from echo.device import autocast, get_device, tune_cpu
from echo.labels import NUM_CAMUS
from echo.metrics import frame_dice
from echo.paths import atomic
from echo.progress import tqdm


def build_segmenter(config: SegmenterConfig) -> UNet:
    """The network: (B, 1, S, S) in [0, 1] -> logits (B, 4, S, S); S a multiple of 2 ** (levels - 1)."""
    return UNet(
        spatial_dims=2,
        in_channels=1,
        out_channels=NUM_CAMUS,
        channels=config.channels,
        strides=(2,) * (len(config.channels) - 1),
        num_res_units=config.num_res_units,
        act=("LeakyReLU", {"negative_slope": 0.1}),
    )


def augmentation(config: SegmenterConfig, size: int) -> Compose:
    """The training transform of {"image": (1, S, S), "label": (1, S, S)}: gamma, flip and one affine for both."""
    shift, (low, high) = config.translation * size, config.scale
    affine = RandAffined(
        ["image", "label"],
        prob=1.0,
        rotate_range=np.deg2rad(config.rotation_deg),
        translate_range=(shift, shift),
        scale_range=((low - 1, high - 1), (low - 1, high - 1)),
        mode=("bilinear", "nearest"),
        padding_mode="zeros",
        cache_grid=True,
        spatial_size=(size, size),
    )
    return Compose(
        [
            RandAdjustContrastd(["image"], prob=config.gamma_probability, gamma=config.gamma),
            RandFlipd(["image", "label"], prob=config.flip_probability, spatial_axis=1),
            affine,
        ]
    )


def to_input(images: NDArray[np.uint8]) -> torch.Tensor:
    """uint8 (B, S, S) -> float32 (B, 1, S, S) in [0, 1]."""
    return torch.from_numpy(np.asarray(images)).float()[:, None] / 255


@torch.no_grad()
def predict(
    network: UNet, images: NDArray[np.uint8], shape: tuple[int, int] | None = None, batch_size: int = 64
) -> NDArray[np.uint8]:
    """Label maps uint8 (B, *shape) for images uint8 (B, S, S).

    Where `shape` differs from the images', the logits are interpolated to it before the class is taken, which keeps
    borders smooth.
    """
    network.eval()
    device = next(network.parameters()).device
    labels = []
    for first in range(0, len(images), batch_size):
        logits = network(to_input(images[first : first + batch_size]).to(device))
        if shape is not None and logits.shape[2:] != shape:
            logits = F.interpolate(logits, size=shape, mode="bilinear", align_corners=False)
        labels.append(logits.argmax(1).to(torch.uint8).cpu())
    return torch.cat(labels).numpy()


def train_segmenter(
    profile: Profile, training: Frames, validation: Frames, folder: Path, seed: int, name: str = "segmenter"
) -> UNet:
    """Train on one set of frames and keep the weights that are best on the other; `folder` gets `model.safetensors`
    and `log.csv` (step, loss, and validation Dice in % of the three structures and their mean).

    Validation images are not augmented. A finished training in `folder` is loaded instead.
    """
    config, device = profile.segmenter, get_device()
    torch.manual_seed(seed)
    tune_cpu()
    weights = folder / "model.safetensors"
    if weights.exists():
        return load_segmenter(config, folder)
    network = build_segmenter(config).to(device, memory_format=torch.channels_last)

    high, low = config.learning_rate
    optimizer = torch.optim.AdamW(network.parameters(), lr=high, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=config.steps, eta_min=low)
    loss_function = {
        "dice_ce": DiceCELoss(softmax=True, to_onehot_y=True, include_background=False),
        "ce": lambda logits, label: F.cross_entropy(logits, label[:, 0].long()),
    }[config.loss]
    transform = augmentation(config, training.images.shape[-1]).set_random_state(seed)
    rng = np.random.default_rng((seed, 0x5E6))
    log, losses, best, best_state = [], [], -1.0, {}
    bar = tqdm(total=config.steps, desc=name, unit="step")
    for step in range(1, config.steps + 1):
        network.train()
        rows = rng.integers(len(training), size=config.batch_size)
        samples = [
            transform({"image": image, "label": label})
            for image, label in zip(
                to_input(training.images[rows]),
                torch.from_numpy(training.labels[rows])[:, None].float(),
                strict=True,
            )
        ]
        image = torch.stack([s["image"].as_tensor() for s in samples]).to(device)
        label = torch.stack([s["label"].as_tensor() for s in samples]).to(device)
        with autocast(config.precision, device):
            logits = network(image.contiguous(memory_format=torch.channels_last))
        loss = loss_function(logits.float(), label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        bar.update()
        if step % config.validate_every == 0 or step == config.steps:
            dice = frame_dice(predict(network, validation.images), validation.labels).mean() * 100
            log.append({"step": step, "loss": float(np.mean(losses)), **dice.round(3), "mean": float(dice.mean())})
            losses = []
            bar.set_postfix(validation_dice=f"{dice.mean():.1f}")
            if dice.mean() > best:
                best = dice.mean()
                best_state = {
                    k: v.cpu().clone(memory_format=torch.contiguous_format) for k, v in network.state_dict().items()
                }
    bar.close()
    with atomic(folder / "log.csv") as temporary:
        pd.DataFrame(log).to_csv(temporary, index=False)
    with atomic(weights) as temporary:
        save_file(best_state, temporary)
    network.load_state_dict(best_state)
    return network.eval()


def load_segmenter(config: SegmenterConfig, folder: Path) -> UNet:
    """The network that `train_segmenter` kept in `folder`, in evaluation mode.

    Raises:
        FileNotFoundError: when the segmentation stage has not run.
    """
    weights = folder / "model.safetensors"
    if not weights.exists():
        raise FileNotFoundError(
            f"{weights}: no segmenter; run notebook 04 or `python -m echo reproduce --only segmentation`"
        )
    network = build_segmenter(config)
    network.load_state_dict(load_file(weights))
    return network.to(get_device(), memory_format=torch.channels_last).eval()


def score(network: UNet, camus: Camus, patients: list[str], size: int, progress: bool = True) -> pd.DataFrame:
    """Dice of every real frame of some patients, measured on the label's own pixel grid.

    Args:
        size: side of the images that the network was trained on.

    Returns:
        One row a frame: patient, view, phase, quality, and Dice in [0, 1] for each structure.
    """
    rows = []
    for patient, view, phase in tqdm(camus.keys(patients), desc="scoring", unit="frame", disable=not progress):
        frame = camus.frame(patient, view, phase)
        prediction = predict(network, frame.resized(size).image[None], frame.label.shape)
        facts = {"patient": patient, "view": view, "phase": phase, "quality": frame.quality}
        rows.append(facts | frame_dice(prediction, frame.label[None]).iloc[0].to_dict())
    return pd.DataFrame(rows)
