"""Data that no catalog has: an xarray dataset into a cube, here real months of Belgian fields, and labels beside it.

    python examples/belgium.py worldcereal_preprocessed_inputs.nc cube.zarr
    aef train cube.zarr
    aef embed cube.zarr --period 2020-11:2021-10 --out year.zarr

    python examples/belgium.py WORLDCEREAL-INPUTS-10m_belgium_good_32631_2020-08-30_2022-03-03.nc cube.zarr
    aef train cube.zarr
    aef embed cube.zarr --period 2021
    aef eval --block 100 --baseline all --report belgium.html

Both are test files of WorldCereal (github.com/WorldCereal): monthly composites of Sentinel-2 L2A (reflectance x
10,000, nodata 65535) and Sentinel-1 sigma nought (dB = 20 log10(DN) - 83), 10 m, EPSG:32631. The first has a year, the
second 20 months and the WorldCereal products of 2021: a map made by a model, so labels.csv beside the cube holds weak
labels.
The door the data go through is `aefcli.cube.write_cube`: per source one dataset with dimensions (time, y, x), a CRS,
and variables named and scaled as `aefcli.sources` has them.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import rioxarray  # noqa: F401 - adds .rio
import xarray as xr
from pyproj import Transformer

from aefcli.cube import write_cube
from aefcli.extent import Period

BANDS = ("B02", "B03", "B04", "B08", "B11")
PRODUCTS = {"WINTERCEREALS": "winter cereals", "SPRINGCEREALS": "spring cereals", "TEMPORARYCROPS": "other crops"}
EVERY = 5  # one pixel in five is labelled, in rows that are shifted: on no lattice that a model might have


def months(netcdf: Path) -> xr.Dataset:
    """The file, with time in the middle of each month and a CRS."""
    raw = xr.open_dataset(netcdf, engine="h5netcdf").rename(t="time").drop_vars("crs")
    raw["time"] = raw["time"] + np.timedelta64(14, "D")  # a month's composite stands for its middle
    return raw.rio.write_crs("EPSG:32631")


def period(raw: xr.Dataset) -> Period:
    first, last = (str(when)[:7] for when in raw["time"].to_numpy()[[0, -1]])
    return Period.parse(f"{first}:{last}")


def sources(raw: xr.Dataset) -> dict[str, xr.Dataset]:
    """Sentinel-2 and Sentinel-1 as datasets of the toolkit's own bands and units."""
    optical = _named(raw, {band: (f"S2-L2A-{band}", band.replace("B0", "B")) for band in BANDS})
    counts = _named(raw, {band: (f"S1-SIGMA0-{band}", band) for band in ("VV", "VH")})
    power = (counts.where(counts != 65535).astype("float64") ** 2 * 10**-8.3).astype("float32")
    return {"sentinel-2": optical.where(optical != 65535, 0).astype("uint16"), "sentinel-1": power}


def _named(raw: xr.Dataset, names: dict[str, tuple[str, ...]]) -> xr.Dataset:
    """Variables by the toolkit's names, of the ones that either file has for them."""
    return xr.Dataset({band: raw[next(name for name in found if name in raw)] for band, found in names.items()})


def labels(raw: xr.Dataset) -> pd.DataFrame | None:
    """Points with the product's class, for 2021; None where the file has no products."""
    if f"WORLDCEREAL_{next(iter(PRODUCTS))}_2021" not in raw:
        return None
    name = np.full((raw.sizes["y"], raw.sizes["x"]), "no crops", dtype=object)
    for product in reversed(PRODUCTS):  # cereals are temporary crops too, and go last
        name[raw[f"WORLDCEREAL_{product}_2021"].to_numpy() == 100] = PRODUCTS[product]
    rows, columns = np.nonzero((np.arange(name.shape[0])[:, None] + 2 * np.arange(name.shape[1])) % EVERY == 0)
    to_degrees = Transformer.from_crs("EPSG:32631", "EPSG:4326", always_xy=True)
    lon, lat = to_degrees.transform(raw["x"].to_numpy()[columns], raw["y"].to_numpy()[rows])
    year = Period.parse("2021")
    table = {"x": lon, "y": lat, "label": name[rows, columns]}
    return pd.DataFrame({**table, "valid_time_start_ms": year.start, "valid_time_end_ms": year.end})


if __name__ == "__main__":
    raw, cube = months(Path(sys.argv[1])), Path(sys.argv[2])
    print(write_cube(cube, sources(raw), period(raw)))
    if (table := labels(raw)) is not None:
        table.to_csv(cube.parent / "labels.csv", index=False)
        print(cube.parent / "labels.csv")
