"""The network: frames of all sources on one time axis, in; unit vectors per pixel and valid period, out.

Owns timecodes, source encoders, the space-time-precision (STP) encoder, the summariser, the von Mises-Fisher
bottleneck, the decoders and the text head. Knows nothing of files, losses, teachers or students, and never sees
coordinates. Sizes: L is the patch side. Precision runs at L/2 with width D_P, time at L/8 with D_T, space at L/16 with
D_S.

Read beside the paper, in this order (sections are those of method.md). A folder, for one file had grown past 700 lines;
its parts follow the paper's, each is at most a few pages long, and none imports from one below it.

    timecodes    instants and periods as numbers (4)
    packing      frames of all sources on one axis, and where each belongs (2)
    parts        small parts that others are made of
    stem         a frame of one source to the encoder's grid (2)
    encoder      space, time and precision side by side, and their exchange (3)
    neighbours   the mean of those that look alike
    summariser   attention pooling for a valid period, projection, up-sampling, unit length (5)
    bottleneck   a von Mises-Fisher sample around the embedding (6)
    decoders     from the sample back to each source, and texts (7, 8)
    network      the whole (2)
"""

from aefcli.model.bottleneck import sample_cosine, sample_vmf
from aefcli.model.decoders import Decoder, TextHead
from aefcli.model.encoder import Attention, Block, Precision, Resample, Space, Time, cell_angles, rotate, staggered
from aefcli.model.neighbours import Neighbours
from aefcli.model.network import Model
from aefcli.model.packing import Encoded, Layout, slots
from aefcli.model.parts import Perceptron, silent, unit
from aefcli.model.stem import SourceEncoder, by_cell
from aefcli.model.summariser import Asked, Pool, Summariser
from aefcli.model.timecodes import describe, position, relative, timecode

__all__ = [
    "Asked",
    "Attention",
    "Block",
    "Decoder",
    "Encoded",
    "Layout",
    "Model",
    "Neighbours",
    "Perceptron",
    "Pool",
    "Precision",
    "Resample",
    "SourceEncoder",
    "Space",
    "Summariser",
    "TextHead",
    "Time",
    "by_cell",
    "cell_angles",
    "describe",
    "position",
    "relative",
    "rotate",
    "sample_cosine",
    "sample_vmf",
    "silent",
    "slots",
    "staggered",
    "timecode",
    "unit",
]
