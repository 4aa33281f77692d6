"""One question per module: `python -m benchmarks.NAME [--quick]`. The results are in README.md in this folder."""
