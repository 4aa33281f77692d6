"""A real Label Studio, simulated people and synthetic scans, for `scanqueue demo` and the tests."""
