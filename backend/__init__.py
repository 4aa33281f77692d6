"""scanqueue: which medical scan to segment next, as a Label Studio ML backend."""

__version__ = "0.1.0"
