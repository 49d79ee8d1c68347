"""How fast Limner is, each figure against a reference measured beside it: `python -m benchmarks`.

Every benchmark is a module or an object with `NAME`, `SUMMARY` and `run(pairs) -> Result`; `__main__` lists, runs,
prints and records them, and `report` makes the page of results.
"""
