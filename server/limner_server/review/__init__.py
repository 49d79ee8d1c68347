"""Readings: which images are read, how they are made alike, and how far readers and model agree.

Rows are `limner_server.state.reviews`'s business, the wire that of `limner_server.rpc.review`.
"""
