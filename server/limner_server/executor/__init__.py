"""Runs models on images: a bounded queue, dynamic batches, one thread that owns the device.

`executor` is the way in; `batcher` decides what runs together; `engine` says what an engine is; `torchscript` is one.
"""
