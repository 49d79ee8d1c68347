"""Long work in processes of its own: `runner` starts and follows them, `process` is what runs inside.

A job's process can be killed at any moment and started again on the same folder; it goes with its server.
"""
