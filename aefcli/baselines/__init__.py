"""What people would compute by hand, and the network untrained: features to hold embeddings against.

Every baseline is features at the pixels of labels, for the valid period of each, from the same cube. Each is tuned as
its users would tune it, on made-up worlds of other seeds than any it is scored on: a result that beats a crippled
baseline is no result. Source: evaluation.md, "Baselines".

    series    a cube -> what its inputs saw at some pixels, frame by frame
    season    a pixel's series -> composite, percentiles, harmonics, the series on a regular grid
    learned   what is learned from random pixels of the cube, never from labels: axes and filters
    designed  all of them at once, from one reading of the cube
    network   the recipe's network before training
"""

from aefcli.baselines.designed import DESIGNED, composite, designed
from aefcli.baselines.network import untrained

__all__ = ["DESIGNED", "composite", "designed", "untrained"]
