"""How fast Limner is, each figure against a reference measured beside it: `python -m benchmarks`.

Every benchmark is a module with `NAME`, `SUMMARY` and `run() -> Result`; `__main__` lists, runs and prints them.
"""
