"""Inference Fleet: a model behind HTTP, one process per worker, one device per process."""
