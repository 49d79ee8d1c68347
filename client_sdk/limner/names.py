"""How names of models, versions, aliases and cohorts are spelt: the one rule of the SDK and the server."""

NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"
"""Pattern of a whole name; the server bounds its length, too."""
