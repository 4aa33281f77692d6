"""Out of Label Studio: annotations and model masks, in the geometry of the files that the scans came from.

`collect` finds the slices, `sources` the files they came from, `predicted` a model's masks; `pictures` and `volumes`
write one scan's, `manifest` says what was written, `target` puts it in place, and `run` is the whole of it.
"""

from backend.export.run import FORMATS, Export, Problem, Summary

__all__ = ["FORMATS", "Export", "Problem", "Summary"]
