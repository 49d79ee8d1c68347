"""Thin servicers: wire → domain call → wire.

Errors are translated in `interceptor` and `status`, images in `images`, parts of replies in `wire`.
"""
