"""Comparison of selection strategies on a lab's own labelled scans: `scanqueue simulate`."""
