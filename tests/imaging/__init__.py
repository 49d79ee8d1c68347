"""Tests of `limner.imaging`: real files, real codecs, nothing of our own mocked."""
