"""What the logs of trainings say: of the diffusion model, and of segmenters."""

import numpy as np
import pandas as pd


def best_epochs(logs: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """The row of the best mean validation Dice out of each segmenter's training log, by name."""
    return pd.concat({name: log.loc[log["mean"].idxmax()] for name, log in logs.items()}, axis=1).T


def training_log(log: pd.DataFrame, rows: int = 6) -> pd.DataFrame:
    """Some evenly spread rows of a diffusion training's log: step, loss and validation_loss."""
    chosen = np.linspace(0, len(log) - 1, min(rows, len(log))).astype(int)
    return log.iloc[chosen][["step", "loss", "validation_loss"]]
