"""Pictures of what the toolkit makes.

Owns the preview of an embedding field, and the picture of a cube: when the ground was seen, and what was seen. Draws on
Agg figures of its own: no window, no state left in pyplot.
"""

from aefcli.report.cube import picture
from aefcli.report.field import preview

__all__ = ["picture", "preview"]
