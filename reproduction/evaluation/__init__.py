"""Scores of segmentations and of images, clinical measures, statistics, tables."""
