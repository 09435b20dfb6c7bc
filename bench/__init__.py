"""Benchmarks of culux against torch eager and hand-written NumPy: ``python -m bench`` and ``pytest bench``."""
