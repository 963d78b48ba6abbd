"""Benchmarks that anyone can run: ``python -m benchmarks``. See ``benchmarks/README.rst``."""
