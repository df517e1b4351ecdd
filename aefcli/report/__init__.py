"""Pictures of what the toolkit makes.

Owns the pictures of an embedding field (its colours, what is like a place, what changed), its page with a slider over
the periods, and what it says of itself; the picture of a cube: when the ground was seen, and what was seen; the curves
of a run, and what a look at its model saw; and the page of a judgement. Draws on Agg figures of its own: no window, no
state left in pyplot.
"""

from aefcli.report.cube import picture
from aefcli.report.field import changed, preview, similar, view
from aefcli.report.overview import preview_tif
from aefcli.report.run import curves_png, look_png
from aefcli.report.scores import page
from aefcli.report.slider import field_page

__all__ = [
    "changed",
    "curves_png",
    "field_page",
    "look_png",
    "page",
    "picture",
    "preview",
    "preview_tif",
    "similar",
    "view",
]
