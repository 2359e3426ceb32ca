"""The segmentation network: a MONAI U-Net from echo to label map, and its training."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.training_utils import EMAModel
from monai.losses import DiceCELoss
from monai.networks.nets import UNet
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from echo.config import Profile, SegmenterConfig
from echo.device import autocast, get_device, tune_cpu
from echo.dice import frame_dice
from echo.frames import Frames
from echo.labels import CAMUS, Classes
from echo.progress import steps_left
from echo.resume import Checkpoint, DamagedFile, atomic

WEIGHTS = "model.safetensors"
LOSSES = {
    "dice_ce": DiceCELoss(softmax=True, to_onehot_y=True, include_background=False),
    "ce": lambda logits, label: F.cross_entropy(logits, label[:, 0].long()),
}


class Segmenter(UNet):
    """MONAI's U-Net at one size: (B, 1, S, S) in [0, 1] -> logits (B, K, S, S) of K classes, whatever S is.

    Images are averaged down to `image_size` first, and the logits interpolated back; None takes them as they are.
    """

    def __init__(self, image_size: int | None, **arguments):
        super().__init__(**arguments)
        self.image_size = image_size

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        shape = images.shape[2:]
        size = (self.image_size, self.image_size) if self.image_size else shape
        if shape == size:
            return super().forward(images)
        logits = super().forward(F.adaptive_avg_pool2d(images, size))
        return F.interpolate(logits, shape, mode="bilinear", align_corners=False)


def build_segmenter(config: SegmenterConfig, classes: Classes = CAMUS) -> Segmenter:
    """The network; the side of the images that it works at is a multiple of 2 ** (levels - 1)."""
    return Segmenter(
        config.image_size,
        spatial_dims=2,
        in_channels=1,
        out_channels=len(classes.names),
        channels=config.channels,
        strides=(2,) * (len(config.channels) - 1),
        num_res_units=config.num_res_units,
        act=("LeakyReLU", {"negative_slope": 0.1}),
    )


def augmented(
    images: torch.Tensor, labels: torch.Tensor, config: SegmenterConfig, rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (B, 1, S, S) in [0, 1] and their label maps (B, 1, S, S), float32, augmented: gamma, flip, and one affine
    for both, drawn anew for each image; then `ultrasound`."""
    b, device = len(images), images.device

    def drawn(low: float, high: float) -> torch.Tensor:
        return torch.from_numpy(rng.uniform(low, high, b)).float().to(device)

    gamma = torch.where(drawn(0, 1) < config.gamma_probability, drawn(*config.gamma), 1.0)
    images = images ** gamma[:, None, None, None]
    mirror = torch.where(drawn(0, 1) < config.flip_probability, -1.0, 1.0)
    angle, shift = drawn(-1, 1) * np.deg2rad(config.rotation_deg), 2 * config.translation
    # From output to input coordinates (x, y), from -1 to 1: a scale above 1 shows the heart smaller.
    across, down = drawn(*config.scale), drawn(*config.scale)
    rows = [angle.cos() * across * mirror, -angle.sin() * down, drawn(-shift, shift)]
    rows += [angle.sin() * across * mirror, angle.cos() * down, drawn(-shift, shift)]
    grid = F.affine_grid(torch.stack(rows, 1).view(b, 2, 3), images.shape, align_corners=False)
    images = F.grid_sample(images, grid, mode="bilinear", align_corners=False)
    labels = F.grid_sample(labels, grid, mode="nearest", align_corners=False)
    return ultrasound(images, config.ultrasound, rng) if config.ultrasound else images, labels


def to_input(images: NDArray[np.uint8]) -> torch.Tensor:
    """uint8 (B, S, S) -> float32 (B, 1, S, S) in [0, 1]."""
    return torch.from_numpy(np.asarray(images)).float()[:, None] / 255


def ultrasound(images: torch.Tensor, probability: float, rng: np.random.Generator) -> torch.Tensor:
    """Disturbances of an echo by scanner, ribs and gain, drawn anew for each of images (B, 1, S, S) in [0, 1].

    Each happens with this probability: speckle (grains of 2 pixels, sd up to 0.2 of the grey level), a gain that
    changes with depth (by up to a factor 1.6 at the bottom), the shadow of a rib (a beam darkened by up to 90 %), haze
    (smooth clutter of up to 0.25). What is black outside the sector stays so.
    """
    b, _, size, _ = images.shape

    def drawn(low: float, high: float, *shape: int) -> torch.Tensor:
        return torch.from_numpy(rng.uniform(low, high, (b, 1, *(shape or (1, 1))))).float().to(images.device)

    def sometimes(strength: torch.Tensor) -> torch.Tensor:
        return strength * (drawn(0, 1) < probability)

    def smooth(side: int) -> torch.Tensor:
        """Noise in [-1, 1] that varies over S / side pixels."""
        return F.interpolate(drawn(-1, 1, side, side), size=(size, size), mode="bilinear", align_corners=False)

    depth = torch.linspace(0, 1, size, device=images.device)[:, None]
    angle = torch.atan2(
        torch.linspace(-0.5, 0.5, size, device=images.device)[None, :], depth + 0.05
    )  # of the beam, from the probe
    rib = torch.exp(-(((angle - drawn(-0.6, 0.6)) / drawn(0.04, 0.15)) ** 2))
    inside = F.max_pool2d(images, 5, 1, 2) > 0.02
    images = images * (1 + sometimes(drawn(0, 0.35)) * smooth(size // 2))
    images = images * torch.exp(sometimes(drawn(-0.5, 0.5)) * depth) * (1 - sometimes(drawn(0.2, 0.9)) * rib)
    return (images + sometimes(drawn(0, 0.25)) * smooth(4).clamp(min=0) * inside).clamp(0, 1)


@torch.no_grad()
def predict(
    network: UNet,
    images: NDArray[np.uint8],
    shape: tuple[int, int] | None = None,
    batch_size: int = 64,
    flip: bool = False,
) -> NDArray[np.uint8]:
    """Label maps uint8 (B, *shape) for images uint8 (B, S, S).

    Where `shape` differs from the images', the logits are interpolated to it before the class is taken, which keeps
    borders smooth. With `flip` it is probabilities, averaged with those of the mirrored image: for networks trained on
    mirrored images too.
    """
    network.eval()
    device = next(network.parameters()).device
    labels = []
    for first in range(0, len(images), batch_size):
        batch = to_input(images[first : first + batch_size]).to(device)
        logits = network(batch)
        if flip:
            logits = (logits.softmax(1) + network(batch.flip(-1)).flip(-1).softmax(1)) / 2
        if shape is not None and logits.shape[2:] != shape:
            logits = F.interpolate(logits, size=shape, mode="bilinear", align_corners=False)
        labels.append(logits.argmax(1).to(torch.uint8).cpu())
    return torch.cat(labels).numpy()


def draw_samples(
    datasets: list[Frames], config: SegmenterConfig, seed: int, step: int, device: torch.device | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The augmented batch of a step, a function of seed and step: images (B, 1, S, S) in [0, 1], labels likewise.

    `ultrasound` changes images with a sector only.

    Each of several datasets fills an equal part of it, whatever their sizes.
    """
    rng = np.random.default_rng((seed, 0x5E6, step))
    counts = [(config.batch_size + k) // len(datasets) for k in range(len(datasets))]
    drawn = [(frames, rng.integers(len(frames), size=n)) for frames, n in zip(datasets, counts, strict=True)]
    images = to_input(np.concatenate([frames.images[rows] for frames, rows in drawn])).to(device)
    labels = torch.from_numpy(np.concatenate([frames.labels[rows] for frames, rows in drawn])).to(device)
    if not datasets[0].classes.sector:
        config = replace(config, ultrasound=0.0)
    return augmented(images, labels[:, None].float(), config, rng)


def train_segmenter(
    profile: Profile,
    training: Frames | list[Frames],
    validation: Frames,
    folder: Path,
    seed: int,
    name: str = "segmenter",
    start: Segmenter | None = None,
) -> Segmenter:
    """Train on some frames and keep the weights that are best on others; `folder` gets `model.safetensors` and
    `log.csv` (step, loss, and validation Dice in % of each structure and their mean).

    Validation images are not augmented. A finished training in `folder` is loaded, an interrupted one goes on from its
    last validation and ends in the same weights.

    Args:
        training: one dataset, or several, which share every batch equally.
        start: a trained network to fine-tune, with `finetune_steps` and `finetune_rate` of the config.
    """
    config, device = profile.segmenter, get_device()
    size = config.image_size or profile.image_size
    datasets = [frames.shrunk(size) for frames in ([training] if isinstance(training, Frames) else training)]
    validation = validation.shrunk(size)
    torch.manual_seed(seed)
    tune_cpu()
    if (folder / WEIGHTS).exists():
        return load_segmenter(config, folder, validation.classes)
    network = build_segmenter(config, validation.classes).to(device, memory_format=torch.channels_last)
    steps, (high, low) = config.steps, config.learning_rate
    if start is not None:
        network.load_state_dict(start.state_dict())
        steps, high = round(steps * config.finetune_steps), high * config.finetune_rate
    optimizer = torch.optim.AdamW(network.parameters(), lr=high, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps, eta_min=min(low, high))
    # Without an average its decay is 0, and it is the network itself.
    ema = EMAModel(network.parameters(), decay=config.ema_decay, foreach=True)
    loss_function = LOSSES[config.loss]

    parts = {"network": network, "optimizer": optimizer, "schedule": schedule, "ema": ema}
    checkpoint = Checkpoint(folder / "checkpoint.pt", **parts)
    done = {"step": 0, "log": [], "best": -1.0, "best_state": {}, "threads": None} | checkpoint.load()
    ema.to(device)
    losses = []
    with steps_left(done, steps, name) as bar:
        for step in bar:
            network.train()
            image, label = draw_samples(datasets, config, seed, step, device)
            with autocast(config.precision, device):
                logits = network(image.contiguous(memory_format=torch.channels_last))
            loss = loss_function(logits.float(), label)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            ema.step(network.parameters())
            losses.append(loss.detach())
            if step % config.validate_every == 0 or step == steps:
                dice, weights = validate(network, ema, validation, config)
                bar.set_postfix(validation_dice=f"{dice['mean']:.1f}")
                done["log"].append({"step": step, "loss": torch.stack(losses).mean().item()} | dice)
                losses.clear()
                if dice["mean"] > done["best"]:
                    done |= {"best": dice["mean"], "best_state": weights}
                checkpoint.save(**done | {"step": step})
    with atomic(folder / WEIGHTS) as temporary:
        save_file(done["best_state"], temporary)
    checkpoint.path.unlink()
    network.load_state_dict(done["best_state"])
    return network.eval()


def validate(
    network: UNet, ema: EMAModel, validation: Frames, config: SegmenterConfig
) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """Dice in % of each structure and their "mean", of the averaged weights; and these weights, on the CPU."""
    ema.store(network.parameters())
    ema.copy_to(network.parameters())
    found = predict(network, validation.images, flip=config.flip_test)
    dice = frame_dice(found, validation.labels, validation.classes).mean() * 100
    weights = {k: v.cpu().clone(memory_format=torch.contiguous_format) for k, v in network.state_dict().items()}
    ema.restore(network.parameters())
    return {name: round(float(value), 3) for name, value in dice.items()} | {"mean": float(dice.mean())}, weights


def load_segmenter(config: SegmenterConfig, folder: Path, classes: Classes = CAMUS) -> Segmenter:
    """The network that `train_segmenter` kept in `folder`, in evaluation mode.

    Raises:
        DamagedFile: when the weights cannot be read, or are another network's.
        FileNotFoundError: when the segmentation stage has not run.
    """
    weights = folder / WEIGHTS
    if not weights.exists():
        raise FileNotFoundError(
            f"{weights}: no segmenter; run notebook 04 or `python -m echo reproduce --only segmentation`"
        )
    network = build_segmenter(config, classes)
    try:
        network.load_state_dict(load_file(weights))
    except (SafetensorError, RuntimeError) as error:
        raise DamagedFile(weights, error, "remove it to train this segmenter anew") from None
    return network.to(get_device(), memory_format=torch.channels_last).eval()
