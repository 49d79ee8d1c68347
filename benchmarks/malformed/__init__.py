"""`python -m benchmarks.malformed`: thousands of malformed DICOM inputs to everything that takes DICOM.

The inputs are those of `tests.imaging.malformed`. Each is to be taken, or refused with a cause; its neighbours are to
be served; and nothing may crash, hang, or take more than 1 GiB. docs/malformed.md has what was found.
"""
