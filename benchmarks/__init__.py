"""One question a module: `python -m benchmarks.NAME [--quick]`. Figures are in README.md beside this file."""
