"""The documented door for data that no catalog has, on twelve real months of Belgium."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from toys import toy_recipe

from aefcli import field, report
from aefcli.cube import open_cube, write_cube
from aefcli.embed import embed
from aefcli.extent import Period, Tile
from aefcli.sample import normalise
from aefcli.start import begin
from aefcli.train import train

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))


@pytest.fixture
def netcdf(real: Path) -> Path:
    return real / "belgium-monthly" / "worldcereal_preprocessed_inputs.nc"


def test_the_belgian_months_become_a_cube_that_trains_and_embeds(netcdf: Path, tmp_path: Path) -> None:
    import belgium
    import xarray as xr

    months = belgium.months(netcdf)
    year = belgium.period(months)
    assert str(year) == "2020-11-01:2021-10-31"
    cube = open_cube(write_cube(tmp_path / "cube.zarr", belgium.sources(months), year))
    assert cube.shape == (100, 100)
    assert cube.grid.crs.to_epsg() == 32631
    raw = xr.open_dataset(netcdf, engine="h5netcdf")
    whole, all_months = Tile(0, 0, 100, 100), np.arange(12)
    optical, radar = cube.sources["sentinel-2"], cube.sources["sentinel-1"]
    stored, weight = optical.read(whole, all_months)
    np.testing.assert_array_equal(stored[0, 3], raw["S2-L2A-B08"].to_numpy()[0])
    assert optical.bands == ("B02", "B03", "B04", "B08", "B11")
    empty = (raw["S2-L2A-B02"] == 65535).all(("y", "x")).to_numpy()
    assert empty.sum() == 2
    np.testing.assert_array_equal(weight.any(axis=(1, 2)), ~empty)
    power, _ = radar.read(whole, all_months)
    decibel = 20 * np.log10(raw["S1-SIGMA0-VV"].to_numpy().astype(float)) - 83
    np.testing.assert_allclose(10 * np.log10(power[:, 0]), decibel, atol=1e-3)
    for source in (optical, radar):
        values, present = normalise(source.read(whole, all_months)[0], source, all_months, {})
        assert abs(values.transpose(0, 2, 3, 1)[present].mean()) < 1, "the table's statistics fit real data"

    plan = toy_recipe(data={"sources": ["sentinel-2", "sentinel-1"], "frames": [8, 8], "patch": 32})
    start = begin(tmp_path / "run", [cube], plan)
    losses = [record.loss for record in train(start, torch.device("cpu"))]
    assert np.isfinite(losses).all()
    each = [Period.parse(f"2021-{month:02d}") for month in range(1, 11)]
    done = embed(cube, start.run, [year, *each], tmp_path / "field.zarr", device=torch.device("cpu"))
    store = field.open_field(done.path)
    assert store.sizes == {"time": 11, "embedding": 64, "y": 100, "x": 100, "nv": 2}
    assert (store["embeddings"] != -128).all()
    assert report.preview(done.path).stat().st_size > 10_000
