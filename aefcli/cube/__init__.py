"""The datacube: STAC items, or xarray datasets, into one Zarr store on one grid; and opening it again.

Owns the cube's layout (format `datacube/1`), how items become frames, how the -1000 of Sentinel-2 is decided, and
the writing, slab by slab. Values are stored as delivered; turning them into model inputs is `sample`'s work.

    cube.zarr                    attributes: format, grid, period, request, sources
      sentinel-2/
        B02 ... B11              (time, y, x), dtype and nodata as delivered
        weight                   (time, y, x) uint8, 1 clear, 0 clouded or not delivered
        scl                      (time, y, x) the product's own quality layer
        scale, offset            (time, band) physical = stored * scale + offset
        delivered                (time, band) 1 where the scene has the band
        items, platform, orbit   (time) lineage
        pass, look ...           (time) acquisition geometry, where a source has it and it is no lineage

Each source keeps its own spacing where that is coarser than the cube's; all share the cube's corner.
Sources: `sources.md`, `stores.md`.
"""

from aefcli.cube.dataset import cube_of, write_cube
from aefcli.cube.estimate import Estimate, estimate
from aefcli.cube.fetch import Fetched, Request, check, fetch
from aefcli.cube.frames import Frame, boa_offset, frames_of
from aefcli.cube.grid import areas, check_gsd, factor, grid_attrs, grid_from, grid_like, grid_of, outline
from aefcli.cube.grow import add_source
from aefcli.cube.mend import Repaired, repair
from aefcli.cube.store import Cube, CubeSource, open_cube, without
from aefcli.cube.write import Work, chunk_files, cluster, reach

__all__ = [
    "Cube",
    "CubeSource",
    "Estimate",
    "Fetched",
    "Frame",
    "Repaired",
    "Request",
    "Work",
    "add_source",
    "areas",
    "boa_offset",
    "check",
    "check_gsd",
    "chunk_files",
    "cluster",
    "cube_of",
    "estimate",
    "factor",
    "fetch",
    "frames_of",
    "grid_attrs",
    "grid_from",
    "grid_like",
    "grid_of",
    "open_cube",
    "outline",
    "reach",
    "repair",
    "without",
    "write_cube",
]
