"""Pictures of what the toolkit makes.

Owns the preview of an embedding field; the picture of a cube: when the ground was seen, and what was seen; the curves
of a run, and what a look at its model saw; and the page of a judgement. Draws on Agg figures of its own: no window, no
state left in pyplot.
"""

from aefcli.report.cube import picture
from aefcli.report.field import preview, view
from aefcli.report.run import curves_png, look_png
from aefcli.report.scores import page

__all__ = ["curves_png", "look_png", "page", "picture", "preview", "view"]
