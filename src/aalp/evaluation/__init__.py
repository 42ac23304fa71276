"""Attacks, AutoAttack, robust accuracy."""
