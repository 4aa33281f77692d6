"""Exports annotations and model masks from Label Studio, in the geometry of the scans' source files.

`run` runs the export: `collect` lists the slices, `location` and `sources` find a scan's geometry and files,
`annotated` and `predicted` produce masks, `pictures` and `volumes` write them, `outcome` and `manifest` report,
and `target` moves the finished folder into place.
"""

from backend.export.outcome import Problem, Summary
from backend.export.run import FORMATS, Export

__all__ = ["FORMATS", "Export", "Problem", "Summary"]
