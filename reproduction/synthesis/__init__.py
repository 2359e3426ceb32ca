"""From label maps to a synthetic data set: shapes, edits, generation, what lies on disk."""
