"""Windows of cubes into frames: where arrays become tensors, and the one place where values are normalised.

Owns the read of a window, its normalisation [paper S1], the table of samples, the statistics that go with it, and the
endless stream of training batches. Knows neither the network nor the losses.

    window       stored values of a window to frames
    ground       which windows share ground
    table        which windows are trained on, of which periods, and which are held out
    statistics   the mean and the standard deviation of each band over them
    plan         which rows of the table make which batch
    memory       cubes in memory
    read         the samples of a batch
    ahead        reading before it is asked for, by a thread or by processes
    stream       the training batches, and those held out
"""

from aefcli.sample.statistics import measure
from aefcli.sample.stream import batches, validation
from aefcli.sample.table import Samples, check, draw, supports_of
from aefcli.sample.window import Statistics, in_period, normalise, window

__all__ = [
    "Samples",
    "Statistics",
    "batches",
    "check",
    "draw",
    "in_period",
    "measure",
    "normalise",
    "supports_of",
    "validation",
    "window",
]
