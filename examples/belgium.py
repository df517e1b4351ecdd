"""Data that no catalog has: an xarray dataset into a cube, here twelve real months of Belgian fields.

    python examples/belgium.py worldcereal_preprocessed_inputs.nc cube.zarr
    aef train cube.zarr
    aef embed cube.zarr --period 2020-11:2021-10 --out year.zarr

The file is a test file of WorldCereal (github.com/WorldCereal/worldcereal-classification): monthly composites of
Sentinel-2 L2A (reflectance x 10,000, nodata 65535) and Sentinel-1 sigma nought (dB = 20 log10(DN) - 83), 10 m,
EPSG:32631. The door it goes through is `aefcli.cube.write_cube`: per source one dataset with dimensions (time, y, x),
a CRS, and variables named and scaled as `aefcli.sources` has them.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import rioxarray  # noqa: F401 - adds .rio
import xarray as xr

from aefcli.cube import write_cube
from aefcli.extent import Period

PERIOD = Period.parse("2020-11:2021-10")


def sources(netcdf: Path) -> dict[str, xr.Dataset]:
    """The file's Sentinel-2 and Sentinel-1 as datasets of the toolkit's own bands and units."""
    raw = xr.open_dataset(netcdf, engine="h5netcdf").rename(t="time").drop_vars("crs")
    raw["time"] = raw["time"] + np.timedelta64(14, "D")  # a month's composite stands for its middle
    raw = raw.rio.write_crs("EPSG:32631")
    optical = raw[[f"S2-L2A-{band}" for band in ("B02", "B03", "B04", "B08", "B11")]]
    optical = optical.where(optical != 65535, 0).astype("uint16")
    counts = raw[["S1-SIGMA0-VV", "S1-SIGMA0-VH"]]
    power = (counts.where(counts != 65535).astype("float64") ** 2 * 10**-8.3).astype("float32")
    return {
        "sentinel-2": optical.rename({name: str(name).removeprefix("S2-L2A-") for name in optical.data_vars}),
        "sentinel-1": power.rename({name: str(name).removeprefix("S1-SIGMA0-") for name in power.data_vars}),
    }


if __name__ == "__main__":
    print(write_cube(Path(sys.argv[2]), sources(Path(sys.argv[1])), PERIOD))
