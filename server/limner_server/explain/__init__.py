"""Importance of channels, simulated images and the checks of them; docs/explain.md has formulas and figures.

`importance` serves single images. A simulation reads top down: `job` → `simulation` → `stages` → `pipeline` →
`statistics`, `inversion` or `composite`; then `assessment` → `checks`.
"""
