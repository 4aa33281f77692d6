"""`scanqueue doctor`: checks of the installation and of one project, each with its fix."""

from backend.doctor.examination import examine
from backend.doctor.finding import Finding

__all__ = ["Finding", "examine"]
