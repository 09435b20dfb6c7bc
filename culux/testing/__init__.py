"""Tools for tests: of culux itself, and of the CUDA kernels of its users."""
