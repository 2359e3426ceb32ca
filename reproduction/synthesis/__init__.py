"""From label maps to a synthetic dataset: shapes, edits, generation, what lies on disk."""
