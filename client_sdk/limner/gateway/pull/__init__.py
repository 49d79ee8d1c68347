"""Pulling studies out of a PACS, into a folder or to the gateway.

Needs the extra `limner[gateway]`. The path of a study, in the order of the modules: `query` (what is asked for) →
`sources` (of whom: `dicomweb`, `dimse`) → `plan` (its series, and which of them) → `archive` (where they go). `puller`
brings them together; `limner.cli.pull` is its command.
"""
