"""Figures: echoes and label maps, charts of numbers, diagrams, widgets."""
