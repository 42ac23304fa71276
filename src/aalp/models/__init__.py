"""Classifiers by name, and the wrapper that attacks and objectives see."""
