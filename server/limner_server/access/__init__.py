"""Who may call what, how often and how much: principals, roles, limits, certificates; and whose models are served.

Knows nothing of services; `limner_server.rpc.access` asks it about each call. docs/security.md tells the whole.
"""
