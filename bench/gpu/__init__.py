"""The benchmark for a machine with a GPU: ``make gpu``, or ``python -m bench.gpu``.

It needs the sources, NumPy, CuPy and pytest, and no network; torch and jax are compared with where they are there.
"""
