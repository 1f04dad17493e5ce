"""Normalization layers with one deliberate fault each, and the law that is to catch it."""

from importlib import import_module

from mutant import MUTANTS

__all__ = ["MUTANTS"]

for _theme in ("statistics", "buffers", "gradients", "calling", "synchronisation", "other_layers"):
    import_module(f"mutants_of_{_theme}")
