"""Strategies compared on scans whose masks are known, with the code that the service runs."""
