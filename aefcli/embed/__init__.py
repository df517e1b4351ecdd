"""The trained model over a cube, into an embedding field.

Owns which frames serve which valid period, how patches with their halo are laid over a tile, what is nodata, who
computes which tile, and the resumable, growing field. One encoder pass serves all valid periods that share a support
period. Sources: method.md section 10, stores.md.

    periods     valid periods: calendar pieces, the support of each, what of it lies inside
    tiling      tiles that are written once, the patches over them, the memory that they take
    network     one patch through the model: vectors, what was seen, their spread
    engine      who computes the tiles, and how many at a time: threads, or a dask cluster
    write       the field: request, growth, resuming, mending
    zones       several cubes into one group: a field for each, in its own CRS
    stream      the field straight from a catalog: the ground fetched and embedded part by part
    seam        how much the same pixel differs between two tilings
"""

from aefcli.embed.network import at_points, encode_patch, read_frames, readable
from aefcli.embed.periods import every, support_of
from aefcli.embed.seam import Seam
from aefcli.embed.stream import Streamed, from_catalog, mend_streamed, years_of
from aefcli.embed.tiling import part_of
from aefcli.embed.write import Embedded, How, embed, mend
from aefcli.embed.zones import embed_each

__all__ = [
    "Embedded",
    "How",
    "Seam",
    "Streamed",
    "at_points",
    "embed",
    "embed_each",
    "encode_patch",
    "every",
    "from_catalog",
    "mend",
    "mend_streamed",
    "part_of",
    "read_frames",
    "readable",
    "support_of",
    "years_of",
]
