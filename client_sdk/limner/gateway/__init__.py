"""The gateway: a DICOM node that has what a PACS sends it scored, and sends the results back as DICOM.

Needs the extra `limner[gateway]`, and no torch. The path of a study, in the order of the modules:
`receiver` (C-STORE, within `limits`) → `journal` (kept and acknowledged; `commitment` says so on demand) → `scoring`
(series, RPC) → `results` (DICOM objects) → `destinations` (C-STORE or STOW-RS). `node` brings them together;
`limner.cli.gateway` is its command.

`pull` asks a PACS for studies where none sends them. `peers` has what both need to reach other nodes.
"""
