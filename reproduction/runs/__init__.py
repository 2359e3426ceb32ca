"""A run: its folder, its stages, the notebooks that work on it, its status, its committed extract."""
