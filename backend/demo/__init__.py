"""A real Label Studio, simulated people and synthetic scans: what `scanqueue demo` and the tests run on."""
