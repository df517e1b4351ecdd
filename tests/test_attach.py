"""Files of other sources into a cube: real ones where there are some, the others as their providers write them.

Values are held against computations written apart: loops over shots, a bilinear by hand, rasterio's index of a pixel.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import rasterio
import rioxarray  # noqa: F401 - adds .rio
import xarray as xr
from pyproj import Transformer
from toys import first_batch, toy_recipe

from aefcli import cli
from aefcli.attach import READERS, Told, attach
from aefcli.attach.rasters import mosaic, open_rasters
from aefcli.cube import Cube, open_cube, write_cube
from aefcli.errors import BadInput
from aefcli.extent import Period
from aefcli.sources import SOURCES
from aefcli.text import held, read

Centres = tuple[np.ndarray, np.ndarray]
NOW = Told()


def cube_at(
    path: Path, lon: float, lat: float, *, crs: str, period: str = "2023", side: int = 96, gsd: float = 10
) -> Path:
    """A cube of two frames of Sentinel-2 around a place."""
    x, y = Transformer.from_crs(4326, crs, always_xy=True).transform(lon, lat)
    left, top = 30 * round(x / 30) - gsd * side / 2, 30 * round(y / 30) + gsd * side / 2
    rng, when = np.random.default_rng(0), Period.parse(period)
    values = rng.integers(500, 4000, (2, side, side)).astype("uint16")
    bands = {band.name: (("time", "y", "x"), values) for band in SOURCES["sentinel-2"].bands}
    scl = np.full(values.shape, 4, dtype="uint8")
    step = (when.end - when.start) // 3
    coords = {
        "time": np.array([when.start + step, when.start + 2 * step]).astype("datetime64[ms]"),
        "y": top - gsd * (np.arange(side) + 0.5),
        "x": left + gsd * (np.arange(side) + 0.5),
    }
    dataset = xr.Dataset({**bands, "scl": (("time", "y", "x"), scl)}, coords).rio.write_crs(crs)
    return write_cube(path, {"sentinel-2": dataset}, when)


def cells(cube: Cube, name: str) -> tuple[float, float, float, tuple[int, int]]:
    """Left, top, size and (rows, columns) of a source's cells."""
    size = cube.sources[name].factor * cube.grid.resolution.x
    return cube.grid.transform.c, cube.grid.transform.f, size, cube.sources[name].arrays["weight"].shape[1:]


def lonlat(cube: Cube, name: str, row: int, column: int, crs: str = "EPSG:4326") -> tuple[float, float]:
    left, top, size, _ = cells(cube, name)
    into = Transformer.from_crs(str(cube.grid.crs), crs, always_xy=True)
    return into.transform(left + size * (column + 0.5), top - size * (row + 0.5))


def stored(cube: Cube, name: str, band: str) -> np.ndarray:
    return np.asarray(cube.sources[name].arrays[band][:])


def months(cube: Cube, name: str) -> list[str]:
    return [str(np.datetime64(int(time), "ms"))[:7] for time in cube.sources[name].times]


def run(
    words: list[object], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["aef", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return (ended.value.code, *capfd.readouterr())


def content(path: Path) -> str:
    """A hash of all files of a store and of its records."""
    sha = hashlib.sha256()
    for root in (path, path.with_name(path.name + ".build")):
        for file in sorted(part for part in root.rglob("*") if part.is_file()):
            sha.update(str(file.relative_to(root)).encode() + file.read_bytes())
    return sha.hexdigest()


def write_tif(
    path: Path, bands: np.ndarray, left: float, top: float, size: float, crs: str | None, **about: object
) -> Path:
    """A GeoTIFF of bands (c h w); `names` are the bands', `tags` the file's."""
    names, tags = about.pop("names", ()), about.pop("tags", {})
    transform = rasterio.Affine(size, 0, left, 0, -size, top)
    profile = {"driver": "GTiff", "count": len(bands), "height": bands.shape[1], "width": bands.shape[2]}
    with rasterio.open(path, "w", **profile, dtype=bands.dtype, crs=crs, transform=transform, **about) as file:
        file.write(bands)
        for index, name in enumerate(names, start=1):
            file.set_band_description(index, name)
        file.update_tags(**tags)
    return path


def test_every_target_has_a_reader() -> None:
    assert set(READERS) == {name for name, row in SOURCES.items() if row.role == "target"}


# --- GEDI -----------------------------------------------------------------------------------------------------------

SAVANNA = {"lon": -44.125, "lat": -13.735, "crs": "EPSG:32723"}


@pytest.fixture(scope="session")
def granule(real: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with zipfile.ZipFile(next((real / "gedi").glob("*.zip"))) as archive:
        return Path(archive.extract(archive.namelist()[0], tmp_path_factory.mktemp("gedi")))


def means(granule: Path, cube: Cube) -> dict[tuple[int, int], np.ndarray]:
    """The mean heights of each cell's good shots, by a loop."""
    left, top, size, (rows, columns) = cells(cube, "gedi")
    into = Transformer.from_crs(4326, str(cube.grid.crs), always_xy=True)
    found: dict[tuple[int, int], list[np.ndarray]] = {}
    with h5py.File(granule) as file:
        for beam in (file[name] for name in file if name.startswith("BEAM")):
            for shot in range(len(beam["rh"])):
                if beam["quality_flag"][shot] != 1 or beam["degrade_flag"][shot] != 0:
                    continue
                x, y = into.transform(beam["lon_lowestmode"][shot], beam["lat_lowestmode"][shot])
                place = math.floor((top - y) / size), math.floor((x - left) / size)
                if 0 <= place[0] < rows and 0 <= place[1] < columns:
                    found.setdefault(place, []).append(beam["rh"][shot])
    return {place: np.mean(shots, axis=0) for place, shots in found.items()}


def test_real_shots_become_the_mean_of_each_cell(granule: Path, tmp_path: Path) -> None:
    path = cube_at(tmp_path / "cube.zarr", **SAVANNA, period="2019", side=256)
    done = attach(path, "gedi", [granule], NOW)
    cube = open_cube(path)
    assert done.written
    assert months(cube, "gedi") == ["2019-04"]
    assert cells(cube, "gedi")[2] == 30
    expected = means(granule, cube)
    assert len(expected) > 50
    for percent in (0, 50, 98, 100):
        values = stored(cube, "gedi", f"RH{percent}")[0]
        assert np.isfinite(values).sum() == len(expected)
        for (row, column), heights in expected.items():
            assert values[row, column] == pytest.approx(heights[percent], abs=1e-4)
    weight = stored(cube, "gedi", "weight")[0]
    assert weight.sum() == len(expected)
    assert not attach(path, "gedi", [granule], NOW).written
    recipe = toy_recipe(data={"targets": ["gedi"]}, train={"batch": 2})
    seen = [first_batch(cube, recipe, seed).targets["gedi"].weight.sum() for seed in range(4)]
    assert max(seen) > 0


def shots_table(granule: Path) -> pd.DataFrame:
    parts = []
    with h5py.File(granule) as file:
        for beam in (file[name] for name in file if name.startswith("BEAM")):
            columns = {name: beam[name][:] for name in ("lat_lowestmode", "lon_lowestmode", "delta_time")}
            flags = {name: beam[name][:] for name in ("quality_flag", "degrade_flag")}
            heights = {f"rh{percent}": beam["rh"][:, percent] for percent in range(101)}
            parts.append(pd.DataFrame({**columns, **flags, **heights}))
    return pd.concat(parts, ignore_index=True)


def test_a_table_of_shots_gives_what_their_file_gives(granule: Path, tmp_path: Path) -> None:
    table = shots_table(granule)
    table.to_parquet(tmp_path / "shots.parquet")
    table.assign(time=pd.Timestamp("2018-01-01") + pd.to_timedelta(table["delta_time"], "s")).drop(
        columns="delta_time"
    ).to_csv(tmp_path / "shots.csv", index=False)
    table.assign(rh=list(table[[f"rh{n}" for n in range(101)]].to_numpy())).drop(
        columns=[f"rh{n}" for n in range(101)]
    ).to_parquet(tmp_path / "lists.parquet")
    values = []
    for file in (granule, *(tmp_path / name for name in ("shots.parquet", "shots.csv", "lists.parquet"))):
        path = cube_at(tmp_path / f"{file.stem}{file.suffix}.zarr", **SAVANNA, period="2019", side=128)
        attach(path, "gedi", [file], NOW)
        values.append(stored(open_cube(path), "gedi", "RH95"))
    assert np.isfinite(values[0]).any()
    for other in values[1:]:
        np.testing.assert_array_equal(values[0], other)


def test_bad_shots_are_dropped_and_months_kept_apart(granule: Path, tmp_path: Path) -> None:
    table = shots_table(granule)
    inside = table.iloc[[0, 0, 0, 0, 0]].copy()
    inside["quality_flag"], inside["degrade_flag"] = [1, 1, 0, 1, 1], [0, 0, 0, 3, 0]
    inside["rh98"] = [10.0, 20.0, 1000.0, 1000.0, 7.0]
    inside["delta_time"] += [0, 3600, 0, 0, 40 * 86_400]
    inside.to_parquet(tmp_path / "shots.parquet")
    lon, lat = table["lon_lowestmode"][0], table["lat_lowestmode"][0]
    path = cube_at(tmp_path / "cube.zarr", lon, lat, crs="EPSG:32723", period="2019", side=64)
    done = attach(path, "gedi", [tmp_path / "shots.parquet"], NOW)
    cube = open_cube(path)
    assert months(cube, "gedi") == ["2019-04", "2019-05"]
    values = stored(cube, "gedi", "RH98")
    assert [values[frame][np.isfinite(values[frame])].tolist() for frame in range(2)] == [[15.0], [7.0]]
    assert "2 shots left out: degraded or of bad quality" in done.notes


@pytest.mark.parametrize("kind", ["tif", "nc", "zarr"])
def test_a_raster_of_shots_keeps_its_cells(kind: str, tmp_path: Path) -> None:
    path = cube_at(tmp_path / "cube.zarr", 15.0, 46.0, crs="EPSG:32633", period="2020")
    grid = open_cube(path).grid
    rng = np.random.default_rng(1)
    heights = rng.uniform(0, 40, (101, 40, 40)).astype("float32")
    heights[:, rng.random((40, 40)) < 0.5] = np.nan
    quality = rng.integers(0, 2, (1, 40, 40)).astype("float32")
    names = [*(f"rh{percent}" for percent in range(101)), "quality_flag"]
    left, top = grid.transform.c - 90, grid.transform.f + 60
    bands = np.concatenate([heights, quality])
    if kind == "tif":
        file = write_tif(tmp_path / "GEDI_202006.tif", bands, left, top, 30, "EPSG:32633", names=names, nodata=math.nan)
    else:
        axes = {"y": top - 30 * (np.arange(40) + 0.5), "x": left + 30 * (np.arange(40) + 0.5)}
        made = {name: (("time", "y", "x"), band[None]) for name, band in zip(names, bands, strict=True)}
        dataset = xr.Dataset(made, {**axes, "time": [np.datetime64("2020-06-01", "ns")]}).rio.write_crs("EPSG:32633")
        file = tmp_path / f"gedi.{kind}"
        dataset.to_netcdf(file, engine="h5netcdf") if kind == "nc" else dataset.to_zarr(file, consolidated=False)
    attach(path, "gedi", [file], NOW)
    cube = open_cube(path)
    assert months(cube, "gedi") == ["2020-06"]
    expected = np.where(quality[0] == 1, heights[98], np.nan)[2:34, 3:35]
    np.testing.assert_array_equal(stored(cube, "gedi", "RH98")[0], expected)


# --- ERA5-Land ------------------------------------------------------------------------------------------------------


def bilinear(values: np.ndarray, lat: np.ndarray, lon: np.ndarray, y: float, x: float) -> float:
    """By hand, on ascending axes."""
    row, column = np.searchsorted(lat, y) - 1, np.searchsorted(lon, x) - 1
    down = (y - lat[row]) / (lat[row + 1] - lat[row])
    across = (x - lon[column]) / (lon[column + 1] - lon[column])
    (a, b), (c, d) = values[row : row + 2, column : column + 2]
    return (1 - down) * ((1 - across) * a + across * b) + down * ((1 - across) * c + across * d)


def test_a_real_grib_is_smoothed_between_its_cells(
    real: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """One field of one hour: refused until somebody says that it stands for the month."""
    file = real / "era5" / "era5-single-level-scalar-time.grib"
    path = cube_at(tmp_path / "cube.zarr", 14.6, 46.3, crs="EPSG:32633", period="2016-12:2017-02", side=300, gsd=100)
    before = content(path)
    code, out, err = run(["attach", path, "--source", "era5-land", file], monkeypatch, capfd)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "one time, 2017-01-01T12:00" in err
    assert content(path) == before
    code, out, err = run(["attach", path, "--source", "era5-land", file, "--date", "2017-01"], monkeypatch, capfd)
    assert (code, out) == (0, f"{path}\n"), err
    assert "surface_pressure_max" in err, "what the file cannot give is named"
    cube = open_cube(path)
    assert months(cube, "era5-land") == ["2017-01"]
    assert cube.sources["era5-land"].bands == ("temperature_2m",)
    assert cells(cube, "era5-land")[2:] == (1300, (24, 24)), "whole cells of 100 m that reach 1280 m"
    with rasterio.open(file) as grib:
        kelvin, a = grib.read(1), grib.transform
    lat, lon = a.f + a.e * (np.arange(121) + 0.5), a.c + a.a * (np.arange(201) + 0.5)
    values = stored(cube, "era5-land", "temperature_2m")[0]
    for row, column in itertools.product((0, 7, 23), (0, 11, 23)):
        x, y = lonlat(cube, "era5-land", row, column)
        assert values[row, column] == pytest.approx(bilinear(kelvin[::-1], lat[::-1], lon, y, x), abs=1e-3)
    recipe = toy_recipe(data={"targets": ["era5-land"]})
    target = first_batch(cube, recipe).targets["era5-land"]
    assert target.bands[0, 0].tolist() == [band.name == "temperature_2m" for band in SOURCES["era5-land"].bands]
    assert target.present.any()


def hours(start: str, days: int, *, lon: np.ndarray, lat: np.ndarray, seed: int = 0) -> xr.Dataset:
    """ERA5-Land's hours: K, Pa, and metres of rain since midnight whose day's total stands at 00 UTC of the next."""
    rng = np.random.default_rng(seed)
    time = np.datetime64(start, "ns") + np.arange(24 * days + 1) * np.timedelta64(1, "h")
    shape = (len(time), len(lat), len(lon))
    fell = rng.gamma(0.1, 0.003, shape).round(6)
    since = np.zeros(shape)
    for index in range(1, len(time)):
        fresh = time[index - 1].astype("datetime64[D]") == time[index - 1]
        since[index] = fell[index] + (0 if fresh else since[index - 1])
    variables = {
        "t2m": ("K", 280 + 5 * rng.standard_normal(shape)),
        "d2m": ("K", 275 + 4 * rng.standard_normal(shape)),
        "sp": ("Pa", 95_000 + 500 * rng.standard_normal(shape)),
        "tp": ("m", since),
    }
    made = {
        name: (("time", "latitude", "longitude"), values, {"units": unit}) for name, (unit, values) in variables.items()
    }
    return xr.Dataset(made, {"time": time, "latitude": lat, "longitude": lon}).assign(
        fell=(("time", "latitude", "longitude"), fell)
    )


LAT, LON = np.arange(45.5, 46.6, 0.1).round(1), np.arange(14.5, 15.6, 0.1).round(1)
ALPS = {"lon": 15.03, "lat": 46.02, "crs": "EPSG:32633"}


def test_hours_become_months(tmp_path: Path) -> None:
    """Against plain numpy at the one cell of 1280 m, over two files and into two calendar months."""
    every = hours("2023-01-31", 30, lon=LON, lat=LAT)  # a part of January, all of February, a part of March
    split = every.isel(time=slice(0, 400)), every.isel(time=slice(380, None))
    files = [tmp_path / name for name in ("first.nc", "second.nc")]
    for part, file in zip(split, files, strict=True):
        part.drop_vars("fell").to_netcdf(file, engine="h5netcdf")
    path = cube_at(tmp_path / "cube.zarr", **ALPS)
    done = attach(path, "era5-land", files, NOW)
    cube = open_cube(path)
    assert done.notes == ()
    assert months(cube, "era5-land") == ["2023-02"]
    assert str(np.datetime64(int(cube.sources["era5-land"].times[0]), "ms")) == "2023-02-15T00:00:00.000"
    x, y = lonlat(cube, "era5-land", 0, 0)
    times = every["time"].to_numpy()
    inside = times.astype("datetime64[M]") == np.datetime64("2023-02")
    february = {name: every[name].to_numpy()[inside] for name in ("t2m", "d2m", "sp")}
    ends = (times - np.timedelta64(1, "ns")).astype("datetime64[D]")
    days = [day for day in np.unique(ends) if day.astype("datetime64[M]") == np.datetime64("2023-02")]
    rain = np.array([every["fell"].to_numpy()[ends == day].sum(axis=0) for day in days])
    assert len(rain) == 28
    longs = {"t2m": "temperature_2m", "d2m": "dewpoint_temperature_2m", "sp": "surface_pressure"}
    expected = {
        **{longs[name]: values.mean(axis=0) for name, values in february.items()},
        **{f"{longs[name]}_min": values.min(axis=0) for name, values in february.items()},
        **{f"{longs[name]}_max": values.max(axis=0) for name, values in february.items()},
        "total_precipitation_sum": rain.sum(axis=0),
        "total_precipitation_min": rain.min(axis=0),
        "total_precipitation_max": rain.max(axis=0),
    }
    assert set(expected) == {band.name for band in SOURCES["era5-land"].bands}
    for name, grid in expected.items():
        got = float(stored(cube, "era5-land", name)[0, 0, 0])
        assert got == pytest.approx(bilinear(grid, LAT, LON, y, x), rel=1e-5, abs=1e-7), name


def write_grib(path: Path, every: xr.Dataset, names: dict[str, str]) -> None:
    """ERA5-Land's GRIB: forecasts from midnight with steps of 1 to 24 hours, the north first."""
    import eccodes

    numbers = {
        **{"latitudeOfFirstGridPointInDegrees": LAT[-1], "latitudeOfLastGridPointInDegrees": LAT[0]},
        **{"longitudeOfFirstGridPointInDegrees": LON[0], "longitudeOfLastGridPointInDegrees": LON[-1]},
        **{"iDirectionIncrementInDegrees": 0.1, "jDirectionIncrementInDegrees": 0.1, "bitsPerValue": 24},
    }
    with path.open("wb") as out:
        for frame, time in enumerate(every["time"].to_numpy()):
            day = (time - np.timedelta64(1, "ns")).astype("datetime64[D]")
            when = {"dataDate": int(str(day).replace("-", "")), "dataTime": 0}
            step = str(int((time - day) / np.timedelta64(1, "h")))
            for name, short in names.items():
                message = eccodes.codes_grib_new_from_samples("regular_ll_sfc_grib1")
                about = {
                    "centre": "ecmf",
                    "shortName": short,
                    **when,
                    "stepRange": step,
                    "Ni": len(LON),
                    "Nj": len(LAT),
                }
                for key, value in {**about, **numbers}.items():
                    eccodes.codes_set(message, key, value)
                eccodes.codes_set_values(message, every[name].to_numpy()[frame, ::-1].ravel())
                eccodes.codes_write(message, out)
                eccodes.codes_release(message)


def test_a_grib_of_forecast_steps_gives_what_their_netcdf_gives(tmp_path: Path) -> None:
    """From 00 UTC on, which is the last step of the day before: days and steps are no full rectangle."""
    every = hours("2023-01-31", 30, lon=LON, lat=LAT)[["t2m", "tp"]].isel(time=slice(24, -1))
    write_grib(tmp_path / "era5.grib", every, {"t2m": "2t", "tp": "tp"})
    every.to_netcdf(tmp_path / "era5.nc", engine="h5netcdf")
    got = []
    for name in ("era5.grib", "era5.nc"):
        path = cube_at(tmp_path / f"{name}.zarr", **ALPS)
        attach(path, "era5-land", [tmp_path / name], NOW)
        cube = open_cube(path)
        assert months(cube, "era5-land") == ["2023-02"]
        got.append({band: float(stored(cube, "era5-land", band)[0, 0, 0]) for band in cube.sources["era5-land"].bands})
    assert len(got[0]) == 6
    assert got[0] == pytest.approx(got[1], rel=1e-5, abs=1e-8)
    whole = (tmp_path / "era5.grib").read_bytes()
    (tmp_path / "cut.grib").write_bytes(whole[: len(whole) // 2 + 100])
    with pytest.raises(BadInput, match="may be cut off"):
        attach(path, "era5-land", [tmp_path / "cut.grib"], NOW)


def test_rain_of_each_hour_gives_the_same_as_rain_since_midnight(tmp_path: Path) -> None:
    every = hours("2023-01-31", 30, lon=LON, lat=LAT)
    got = []
    for name, rain in (("since", every["tp"]), ("each", every["fell"].assign_attrs(units="m"))):
        rain.rename("tp").to_dataset().to_netcdf(tmp_path / f"{name}.nc", engine="h5netcdf")
        path = cube_at(tmp_path / f"{name}.zarr", **ALPS)
        attach(path, "era5-land", [tmp_path / f"{name}.nc"], NOW)
        cube = open_cube(path)
        assert cube.sources["era5-land"].bands == tuple(f"total_precipitation_{each}" for each in ("sum", "min", "max"))
        got.append([float(stored(cube, "era5-land", band)[0, 0, 0]) for band in cube.sources["era5-land"].bands])
    assert got[0] == pytest.approx(got[1], rel=1e-5)
    assert got[0][0] > 0


def monthly(units: dict[str, str]) -> xr.Dataset:
    """Twelve months of means, as the Climate Data Store gives them: `tp` is that of a day."""
    rng = np.random.default_rng(3)
    time = np.arange("2023-01", "2024-01", dtype="datetime64[M]").astype("datetime64[ns]")
    shape = (12, len(LAT), len(LON))
    numbers = {"t2m": 285 + rng.standard_normal(shape), "sp": 95_000.0 + rng.standard_normal(shape)}
    numbers["tp"] = rng.uniform(0.001, 0.004, shape)
    made = {name: (("time", "latitude", "longitude"), numbers[name], {"units": units[name]}) for name in units}
    return xr.Dataset(made, {"time": time, "latitude": LAT, "longitude": LON})


STANDARD = {"t2m": "K", "sp": "Pa", "tp": "m"}
ALIKE: dict[str, Callable[[xr.Dataset], xr.Dataset]] = {
    "south last": lambda made: made.sortby("latitude", ascending=False),
    "to 360": lambda made: made.assign_coords(longitude=made["longitude"] % 360),
    "valid_time": lambda made: made.rename(time="valid_time").assign_coords(
        number=0, expver=("valid_time", ["1"] * 12)
    ),
    "other units": lambda made: made.assign(
        t2m=(made["t2m"] - 273.15).assign_attrs(units="degC"),
        sp=(made["sp"] / 100).assign_attrs(units="hPa"),
        tp=(made["tp"] * 1000).assign_attrs(units="mm"),
    ),
    "lat and lon": lambda made: made.rename(latitude="lat", longitude="lon"),
    "two editions": lambda made: xr.concat(
        [made.where(made["time"].dt.month < 7), made.where(made["time"].dt.month >= 7)], "expver"
    ).assign_coords(expver=[1, 5]),
}


@pytest.mark.parametrize("change", ALIKE)
def test_months_are_read_however_their_file_is_laid_out(change: str, tmp_path: Path) -> None:
    got = []
    for name, made in (("plain", monthly(STANDARD)), ("other", ALIKE[change](monthly(STANDARD)))):
        for variable in made.data_vars:
            made[variable].attrs.setdefault("units", STANDARD[str(variable)])
        made.to_netcdf(tmp_path / f"{name}.nc", engine="h5netcdf")
        path = cube_at(tmp_path / f"{name}.zarr", **ALPS)
        attach(path, "era5-land", [tmp_path / f"{name}.nc"], NOW)
        cube = open_cube(path)
        assert months(cube, "era5-land") == [f"2023-{month:02d}" for month in range(1, 13)]
        got.append({band: stored(cube, "era5-land", band) for band in cube.sources["era5-land"].bands})
    assert set(got[0]) == {"temperature_2m", "surface_pressure", "total_precipitation_sum"}
    for band, values in got[0].items():
        np.testing.assert_allclose(values, got[1][band], rtol=1e-5)


def test_rain_of_months_is_that_of_all_their_days(tmp_path: Path) -> None:
    made = monthly({"tp": "m"})
    made.to_netcdf(tmp_path / "old.nc", engine="scipy", format="NETCDF3_64BIT")
    path = cube_at(tmp_path / "cube.zarr", **ALPS)
    attach(path, "era5-land", [tmp_path / "old.nc"], NOW)
    cube = open_cube(path)
    x, y = lonlat(cube, "era5-land", 0, 0)
    got = stored(cube, "era5-land", "total_precipitation_sum")[:, 0, 0]
    for month, days in enumerate((31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)):
        assert got[month] == pytest.approx(days * bilinear(made["tp"].to_numpy()[month], LAT, LON, y, x), rel=1e-5)


def test_earth_engines_names_mean_what_they_say(tmp_path: Path) -> None:
    """A month's export: one GeoTIFF, the bands described, the month in the name."""
    rng, names = np.random.default_rng(0), [band.name for band in SOURCES["era5-land"].bands]
    base = {"total": 0.05, "temperature": 285.0, "dewpoint": 278.0, "surface": 95_000.0}
    values = np.stack([np.full((11, 11), base[name.split("_")[0]]) + rng.random((11, 11)) * 0.01 for name in names])
    file = write_tif(tmp_path / "era5_202305.tif", values, 14.45, 46.55, 0.1, "EPSG:4326", names=names)
    units = {"total": "m", "temperature": "K", "dewpoint": "K", "surface": "Pa"}
    path = cube_at(tmp_path / "cube.zarr", **ALPS)
    with pytest.raises(BadInput, match="total_precipitation_sum is in no unit"):
        attach(path, "era5-land", [file], NOW)
    with rasterio.open(file, "r+") as raster:
        raster.units = [units[name.split("_")[0]] for name in names]
    attach(path, "era5-land", [file], NOW)
    cube = open_cube(path)
    assert months(cube, "era5-land") == ["2023-05"]
    x, y = lonlat(cube, "era5-land", 0, 0)
    for index, name in enumerate(names):
        expected = bilinear(values[index][::-1], LAT, LON, y, x)
        assert float(stored(cube, "era5-land", name)[0, 0, 0]) == pytest.approx(expected, rel=1e-5), name


def test_the_sea_takes_no_part(tmp_path: Path) -> None:
    """ERA5-Land has nothing over water: land beside it keeps its own values, water none."""
    made = monthly({"t2m": "K"})
    made["t2m"][:] = 285.0
    made["t2m"][:, :, LON > 15.05] = np.nan
    made.to_netcdf(tmp_path / "coast.nc", engine="h5netcdf")
    path = cube_at(tmp_path / "cube.zarr", 15.05, 46.02, crs="EPSG:32633", side=100, gsd=100)
    attach(path, "era5-land", [tmp_path / "coast.nc"], NOW)
    cube = open_cube(path)
    values = stored(cube, "era5-land", "temperature_2m")[0]
    for row, column in itertools.product(range(values.shape[0]), range(values.shape[1])):
        x, _ = lonlat(cube, "era5-land", row, column)
        assert np.isnan(values[row, column]) == (x > 15.05)
    assert np.nanmin(values) == np.nanmax(values) == np.float32(285.0)


# --- GRACE ----------------------------------------------------------------------------------------------------------


def mascons(step: float, *, csr: bool = False) -> xr.Dataset:
    """Five solutions of JPL's (0.5 degrees) or CSR's (0.25 degrees) RL06 mascons, the whole globe, in cm."""
    lat, lon = np.arange(-90 + step / 2, 90, step), np.arange(step / 2, 360, step)
    edges = np.array([[7670, 7701], [7701, 7729], [7729, 7760], [7760, 7790], [7790, 7821]], dtype="float64")
    values = np.random.default_rng(2).normal(0, 10, (5, len(lat), len(lon))).astype("float32")
    unit = "Units" if csr else "units"
    attrs = {unit: "days since 2002-01-01T00:00:00Z", "bounds": "time_bounds"}
    return xr.Dataset(
        {
            "lwe_thickness": (("time", "lat", "lon"), values, {"units": "cm"}),
            "time_bounds": (("time", "timebound"), edges),
            "uncertainty": (("time", "lat", "lon"), np.abs(values), {"units": "cm"}),
        },
        {"time": ("time", edges.mean(axis=1), attrs), "lat": lat, "lon": lon},
    )


@pytest.mark.parametrize(("step", "csr"), [(0.5, False), (0.25, True)])
@pytest.mark.parametrize(
    "place", [(15.03, 46.02, "EPSG:32633"), (-0.02, 51.0, "EPSG:32630"), (179.97, -16.5, "EPSG:32760")]
)
def test_mascons_are_smoothed_wherever_the_map_is_cut(
    step: float, csr: bool, place: tuple[float, float, str], tmp_path: Path
) -> None:
    made = mascons(step, csr=csr)
    made.to_netcdf(tmp_path / "grace.nc", engine="h5netcdf")
    path = cube_at(tmp_path / "cube.zarr", place[0], place[1], crs=place[2], period="2023-02:2023-04", side=60, gsd=200)
    attach(path, "grace", [tmp_path / "grace.nc"], NOW)
    cube = open_cube(path)
    assert months(cube, "grace") == ["2023-02", "2023-03", "2023-04"]
    assert str(np.datetime64(int(cube.sources["grace"].times[0]), "ms")) == "2023-02-15T00:00:00.000"
    values, lwe = stored(cube, "grace", "lwe_thickness"), made["lwe_thickness"].to_numpy()
    around = np.concatenate([lwe, lwe, lwe], axis=2)  # three turns, so that no cut is near
    lon = np.arange(-360 + step / 2, 720, step)
    for row, column in itertools.product((0, values.shape[1] - 1), (0, values.shape[2] - 1)):
        x, y = lonlat(cube, "grace", row, column)
        expected = bilinear(around[1], made["lat"].to_numpy(), lon, y, x % 360)
        assert values[0, row, column] == pytest.approx(expected, abs=1e-4)


# --- PALSAR-2 -------------------------------------------------------------------------------------------------------


def plane(band: str, east: np.ndarray | float, north: np.ndarray | float) -> np.ndarray | float:
    """Numbers that rise evenly over the ground: every symmetric resampling gives the plane again."""
    return {"HH": 5000.0, "HV": 2500.0, "LIN": 3900.0}[band] + 0.5 * east - 0.3 * north


def scene(folder: Path, name: str, origin: tuple[float, float], across: float, down: float) -> list[Path]:
    """HH, HV, LIN and the mask of one ScanSAR L2.2 scene of 60x60 px at 25 m, as JAXA names them; nodata at its top.

    Its corner lies `across` and `down` metres from the origin.
    """
    rng, files = np.random.default_rng(len(name)), []
    left, top = origin[0] + across, origin[1] - down
    east, north = np.meshgrid(across + 25 * (np.arange(60) + 0.5), -down - 25 * (np.arange(60) + 0.5))
    for band, suffix in (("HH", "_SLP"), ("HV", "_SLP"), ("LIN", ""), ("MSK", "")):
        if band == "MSK":
            values = rng.choice([255, 255, 255, 100, 150, 50], (60, 60)).astype("uint8")
        else:
            values = np.rint(plane(band, east, north)).astype("uint16")
            values[:5] = 0
        files.append(write_tif(folder / f"{name}_{band}{suffix}.tif", values[None], left, top, 25, "EPSG:32633"))
    return files


def test_scenes_of_radar_become_passes(tmp_path: Path) -> None:
    path = cube_at(tmp_path / "cube.zarr", 15.0, 46.0, crs="EPSG:32633", period="2022")
    grid = open_cube(path).grid
    origin = (grid.transform.c, grid.transform.f)
    files = scene(tmp_path, "ALOS2437820690-220710_WBDR2.2GUD", origin, -200, -800)
    files += scene(tmp_path, "ALOS2437820700-220710_WBDR2.2GUD", origin, -200, 575)  # the next frame, 125 m of overlap
    files += scene(tmp_path, "ALOS2440000690-220801_WBDL2.2GUA", origin, -200, -300)[:3]  # without its mask
    far = scene(tmp_path, "ALOS2441000690-220901_WBDL2.2GUA", origin, 90_000, -300)
    late = scene(tmp_path, "ALOS2541000690-240901_WBDL2.2GUA", origin, -200, -300)
    done = attach(path, "palsar-2", [*files, *far, *late], NOW)
    assert f"{len(far) + len(late)} of {len(files) + len(far) + len(late)} files lie outside" in done.notes[0]
    cube = open_cube(path)
    source = cube.sources["palsar-2"]
    assert [str(np.datetime64(int(time), "ms"))[:13] for time in source.times] == ["2022-07-10T12", "2022-08-01T12"]
    assert source.bands == ("HH", "HV", "LIN")
    np.testing.assert_array_equal(source.meta, [[-1, 1], [1, -1]])
    assert stored(cube, "palsar-2", "HH").dtype == np.uint16
    left, top, size, shape = cells(cube, "palsar-2")
    assert size == 30
    east, north = np.meshgrid(size * (np.arange(shape[1]) + 0.5), -size * (np.arange(shape[0]) + 0.5))
    for band in ("HH", "HV", "LIN"):
        for values in stored(cube, "palsar-2", band):
            assert np.abs(values - plane(band, east, north)).max() < 1.5, "also where two scenes meet"
    (mask,) = (each for each in files if "437820690" in each.name and "_MSK" in each.name)
    with rasterio.open(mask) as raster:
        for row, column in itertools.product((2, 9, 17), (0, 13, 25)):
            code = raster.read(1)[raster.index(left + size * (column + 0.5), top - size * (row + 0.5))]
            clear = stored(cube, "palsar-2", "weight")[0, row, column]
            assert clear == (code in (50, 255) and stored(cube, "palsar-2", "HH")[0, row, column] > 0)
    recipe = toy_recipe(data={"targets": ["palsar-2"]})
    target = first_batch(cube, recipe).targets["palsar-2"]
    assert target.weight.any()
    assert set(target.meta.flatten().tolist()) <= {-1.0, 1.0}


def test_scenes_named_otherwise_are_told_of(tmp_path: Path) -> None:
    path = cube_at(tmp_path / "cube.zarr", 15.0, 46.0, crs="EPSG:32633", period="2022")
    grid = open_cube(path).grid
    values = np.full((3, 60, 60), 4000, dtype="uint16")
    corner = (grid.transform.c - 200, grid.transform.f + 100)
    file = write_tif(tmp_path / "scene.tif", values, *corner, 25, "EPSG:32633", names=("HH", "HV", "LIN"))
    for told, wanted in (
        (NOW, "does not say when it was taken"),
        (Told((Period.parse("2022-05-03"),)), "does not say its pass"),
        (Told((Period.parse("2022-05-03"),), "ascending"), "does not say its look"),
    ):
        with pytest.raises(BadInput, match=wanted):
            attach(path, "palsar-2", [file], told)
    attach(path, "palsar-2", [file], Told((Period.parse("2022-05-03"),), "ascending", "right"))
    with rasterio.open(file, "r+") as raster:
        raster.update_tags(date="2022-05-03", PASS="Ascending", LOOK="right")
    assert not attach(path, "palsar-2", [file], NOW).written, "tags say the same"


# --- GLO-30 ---------------------------------------------------------------------------------------------------------

ISLAND = {"lon": 6.55, "lat": 0.23, "crs": "EPSG:32632"}


@pytest.fixture
def tile(real: Path) -> Path:
    return next((real / "scenes" / "copernicus-dem-30m").rglob("*.tif"))


def test_real_elevations_are_projected_and_sloped(tile: Path, tmp_path: Path) -> None:
    path = cube_at(tmp_path / "cube.zarr", **ISLAND, side=192)
    attach(path, "glo-30", [tile], NOW)
    cube = open_cube(path)
    _, _, size, (rows, columns) = cells(cube, "glo-30")
    assert (size, rows, columns) == (30, 64, 64)
    with rasterio.open(tile) as file:
        heights, a = file.read(1).astype("float64"), file.transform
    lat, lon = a.f + a.e * (np.arange(3600) + 0.5), a.c + a.a * (np.arange(3600) + 0.5)

    def height(row: int, column: int) -> float:
        x, y = lonlat(cube, "glo-30", row, column)
        return bilinear(heights[::-1], lat[::-1], lon, y, x)

    assert str(cube.sources["glo-30"].times[0].astype("datetime64[ms]"))[:10] == "2021-04-22", "whatever the period"
    values = {band: stored(cube, "glo-30", band)[0] for band in cube.sources["glo-30"].bands}
    assert np.isfinite(list(values.values())).all(), "slopes at the edge have their margin"
    assert values["elevation"].max() > 500, "an island of volcanoes"
    for row, column in itertools.product((0, 31, 63), (0, 20, 63)):
        assert values["elevation"][row, column] == pytest.approx(height(row, column), abs=0.01)
        near = np.array([[height(row + down, column + across) for across in (-1, 0, 1)] for down in (-1, 0, 1)])
        east = ((near[:, 2] - near[:, 0]) * [1, 2, 1]).sum() / (8 * 30)
        north = ((near[0] - near[2]) * [1, 2, 1]).sum() / (8 * 30)
        steep = math.hypot(east, north)
        assert values["slope"][row, column] == pytest.approx(math.degrees(math.atan(steep)), abs=0.01)
        if steep > 0.1:
            assert values["aspect_sine"][row, column] == pytest.approx(-east / steep, abs=0.001)
            assert values["aspect_cosine"][row, column] == pytest.approx(-north / steep, abs=0.001)
    target = first_batch(cube, toy_recipe(data={"targets": ["glo-30"]})).targets["glo-30"]
    assert target.weight.all()


def test_tiles_of_one_product_join_without_a_seam(tile: Path, tmp_path: Path) -> None:
    """The real tile cut in two through the cube, and the two files in either order."""
    path = cube_at(tmp_path / "cube.zarr", **ISLAND, side=192)
    with rasterio.open(tile) as file:
        heights, a = file.read(1), file.transform
    cut = int((6.55 - a.c) / a.a)
    halves = []
    for name, columns in (("west", slice(0, cut)), ("east", slice(cut, None))):
        left = a.c + a.a * (columns.start)
        halves.append(write_tif(tmp_path / f"{name}.tif", heights[None, :, columns], left, a.f, a.a, "EPSG:4326"))
    assert attach(path, "glo-30", [tile], NOW).written
    assert not attach(path, "glo-30", halves, NOW, overwrite=True).written, "the very same to the bit"
    assert not attach(path, "glo-30", halves[::-1], NOW, overwrite=True).written


def test_tiles_meet_at_the_antimeridian(tmp_path: Path) -> None:
    """A plane that rises to the north, in tiles of one degree on both sides; slope and height have no break there."""
    path = cube_at(tmp_path / "cube.zarr", 180.0, -16.5, crs="EPSG:32760", side=96, gsd=30)
    step = 1 / 1200
    rise = np.repeat((1000 + np.arange(1200, 0, -1) * 10.0)[:, None], 1200, axis=1).astype("float32")
    files = [
        write_tif(tmp_path / f"{name}.tif", rise[None], left, -16.0, step, "EPSG:4326")
        for name, left in (("east", 179.0), ("west", -180.0))
    ]
    attach(path, "glo-30", files, NOW)
    cube = open_cube(path)
    slope, elevation = (stored(cube, "glo-30", band)[0] for band in ("slope", "elevation"))
    assert np.isfinite(slope).all()
    for row, column in itertools.product((0, 47, 95), (0, 47, 48, 95)):
        _, y = lonlat(cube, "glo-30", row, column)
        assert elevation[row, column] == pytest.approx(1000 + 10 * ((y + 17) / step + 0.5), abs=2)
    assert slope.max() - slope.min() < 1.5


# --- class maps -----------------------------------------------------------------------------------------------------


def test_a_real_map_of_classes_is_read_at_the_nearest_pixel(real: Path, tmp_path: Path) -> None:
    file = real / "nlcd" / "augusta_nlcd.tif"
    with rasterio.open(file) as raster:
        lon, lat = Transformer.from_crs(raster.crs.to_wkt(), 4326, always_xy=True).transform(*raster.xy(220, 339))
        codes, crs = raster.read(1), raster.crs.to_wkt()
        index = raster.index
    path = cube_at(tmp_path / "cube.zarr", lon, lat, crs="EPSG:32617", side=192)
    with pytest.raises(BadInput, match="does not say which year it maps"):
        attach(path, "nlcd", [file], NOW)
    attach(path, "nlcd", [file], Told((Period.parse("2011"),)))
    cube = open_cube(path)
    assert str(np.datetime64(int(cube.sources["nlcd"].times[0]), "ms"))[:10] == "2011-07-02"
    values = stored(cube, "nlcd", "land_cover")[0]
    rows, columns = values.shape
    same = [
        values[row, column] == codes[index(*lonlat(cube, "nlcd", row, column, crs))]
        for row, column in itertools.product(range(0, rows, 3), range(0, columns, 3))
    ]
    assert all(same)
    assert len(np.unique(values)) > 5
    target = first_batch(cube, toy_recipe(data={"targets": ["nlcd"]})).targets["nlcd"]
    assert target.weight.all()


def test_maps_of_several_years_and_tiles(tmp_path: Path) -> None:
    path = cube_at(tmp_path / "cube.zarr", -82.0, 33.5, crs="EPSG:32617", side=96)
    grid = open_cube(path).grid
    left, top = grid.transform.c, grid.transform.f
    west, east = np.full((1, 32, 16), 11, dtype="uint8"), np.full((1, 32, 16), 41, dtype="uint8")
    files = [
        write_tif(tmp_path / "nlcd_2019_west_20210604.tif", west, left, top, 30, "EPSG:32617"),
        write_tif(tmp_path / "nlcd_2019_east_20210604.tif", east, left + 480, top, 30, "EPSG:32617"),
        write_tif(tmp_path / "map.tif", west, left, top, 30, "EPSG:32617", tags={"year": "2021"}),
    ]
    attach(path, "nlcd", files, NOW)
    cube = open_cube(path)
    assert [month[:4] for month in months(cube, "nlcd")] == ["2019", "2021"]
    values = stored(cube, "nlcd", "land_cover")
    np.testing.assert_array_equal(np.unique(values[0, :, :16]), [11])
    np.testing.assert_array_equal(np.unique(values[0, :, 16:]), [41])
    np.testing.assert_array_equal(np.unique(values[1, :, 16:]), [0])


@pytest.mark.parametrize(
    ("name", "file", "gsd", "codes"),
    [
        ("worldcover", "ESA_WorldCover_10m_2021_v200_N45E012_Map.tif", 10, [10, 50]),
        ("cdl", "CDL_2021_12.tif", 30, [1, 5]),
    ],
)
def test_other_maps_are_read_by_their_rows(name: str, file: str, gsd: int, codes: list[int], tmp_path: Path) -> None:
    path = cube_at(tmp_path / "cube.zarr", 15.0, 46.0, crs="EPSG:32633")
    grid = open_cube(path).grid
    side = 960 // gsd
    values = np.random.default_rng(0).choice(codes, (1, side, side)).astype("uint8")
    attach(path, name, [write_tif(tmp_path / file, values, grid.transform.c, grid.transform.f, gsd, "EPSG:32633")], NOW)
    cube = open_cube(path)
    assert cells(cube, name)[2] == gsd
    np.testing.assert_array_equal(stored(cube, name, SOURCES[name].bands[0].name)[0], values[0])
    assert months(cube, name) == ["2021-07"]


def test_whatever_is_lost_of_a_source_comes_back_with_its_files(tmp_path: Path) -> None:
    path = cube_at(tmp_path / "cube.zarr", 15.0, 46.0, crs="EPSG:32633")
    grid = open_cube(path).grid
    maps = {}
    for name, file, gsd in (("cdl", "CDL_2021_12.tif", 30), ("worldcover", "WorldCover_10m_2021_v200_Map.tif", 10)):
        values = np.full((1, 960 // gsd, 960 // gsd), 10, "uint8")
        maps[name] = write_tif(tmp_path / file, values, grid.transform.c, grid.transform.f, gsd, "EPSG:32633")
        attach(path, name, [maps[name]], NOW)

    def held_by(store: Path) -> dict[str, bytes]:
        return {str(file): file.read_bytes() for file in store.rglob("*") if file.is_file()}

    before = held_by(path)
    files = [file for file in (path / "cdl").rglob("*") if file.is_file()]
    assert len(files) > 20
    for file in files:
        file.unlink()
        attach(path, "cdl", [maps["cdl"]], NOW)
        assert held_by(path) == before, file
    shutil.rmtree(path / "cdl")
    assert attach(path, "cdl", [maps["cdl"]], NOW, overwrite=True).written
    assert held_by(path) == before


def test_what_was_read_does_not_hang_on_the_window(tmp_path: Path) -> None:
    """Tiles of a cube are warped one by one: the joined tiles are the whole."""
    rng = np.random.default_rng(5)
    file = write_tif(tmp_path / "dem.tif", rng.random((1, 400, 400)).astype("float32"), 14.9, 46.1, 0.0005, "EPSG:4326")
    path = cube_at(tmp_path / "cube.zarr", 15.0, 46.0, crs="EPSG:32633", side=128)
    grid, rasters = open_cube(path).grid, open_rasters(file, None)
    for how in (rasterio.enums.Resampling.bilinear, rasterio.enums.Resampling.average):
        whole = mosaic(rasters, grid, how)
        parts = [[mosaic(rasters, grid[y : y + 64, x : x + 64], how) for x in (0, 64)] for y in (0, 64)]
        np.testing.assert_allclose(whole, np.block(parts), atol=0.01)  # GDAL places to 1/8 px


# --- text -----------------------------------------------------------------------------------------------------------


def write_texts(path: Path, lon: list[float], lat: list[float], periods: list[str], width: int = 8) -> Path:
    vectors = np.random.default_rng(0).standard_normal((len(lon), width)).astype("float32")
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    when = [Period.parse(period) for period in periods]
    columns = {"lon": lon, "lat": lat, "start": [each.start for each in when], "end": [each.end for each in when]}
    pd.DataFrame({**columns, "vector": list(vectors)}).to_parquet(path)
    return path


def test_texts_of_the_cubes_ground_and_period_go_into_it(tmp_path: Path) -> None:
    path = cube_at(tmp_path / "cube.zarr", 15.0, 46.0, crs="EPSG:32633")
    lon, lat = [15.0, 15.001, 16.0, 15.0], [46.0, 46.001, 46.0, 46.0]
    table = write_texts(tmp_path / "text.parquet", lon, lat, ["2023-05", "2022-12:2023-01", "2023", "2020"])
    done = attach(path, "text", [table], NOW)
    assert (done.count, done.notes) == (2, ("2 of 4 texts lie outside the cube or its period",))
    group = xr.open_zarr(path, group="text", consolidated=False).load()
    expected = pd.read_parquet(table).iloc[:2]
    for name in ("lon", "lat", "start", "end"):
        np.testing.assert_array_equal(group[name], expected[name])
    np.testing.assert_allclose(group["vector"], np.stack(expected["vector"]), atol=1e-6)
    assert not attach(path, "text", [table], NOW).written


def test_training_uses_the_texts_that_a_cube_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    path = cube_at(tmp_path / "cube.zarr", 15.0, 46.0, crs="EPSG:32633")
    table = write_texts(tmp_path / "text.parquet", [15.0, 15.001, 14.999], [46.0, 46.001, 45.999], ["2023"] * 3)
    tables = {"data": {"targets": ["text"]}, "model": {"text": 8}, "train": {"batch": 4, "steps": 1}}
    (tmp_path / "text.toml").write_text(toy_recipe(**tables).to_toml())
    words = ["train", path, "--recipe", tmp_path / "text.toml", "--device", "cpu"]
    code, _, err = run([*words, "--out", tmp_path / "without"], monkeypatch, capfd)
    assert (code, "texts lie" in err) == (0, False), err
    attach(path, "text", [table], NOW)
    cube = open_cube(path)
    own, given = held([cube]), read(table)
    assert own is not None
    for name in ("lon", "lat", "start", "end", "vectors"):
        np.testing.assert_array_equal(getattr(own, name), getattr(given, name))
    code, _, err = run([*words, "--out", tmp_path / "with"], monkeypatch, capfd)
    assert code == 0, err
    assert "3 of 3 texts lie on the cubes" in err
    (tmp_path / "wide.toml").write_text(toy_recipe(**{**tables, "model": {"text": 9}}).to_toml())
    code, _, err = run(["train", path, "--recipe", tmp_path / "wide.toml"], monkeypatch, capfd)
    assert (code, err.count("\n")) == (2, 1)
    assert "8 numbers" in err


# --- what is refused ------------------------------------------------------------------------------------------------


def test_bad_input_is_one_line_and_leaves_the_cube_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    path = cube_at(tmp_path / "cube.zarr", **ALPS)
    grid = open_cube(path).grid
    left, top = grid.transform.c, grid.transform.f
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "words.txt").write_text("no data")
    (folder / "torn.nc").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    (folder / "torn.grib").write_bytes(b"GRIB" + bytes(100))
    (folder / "torn.tif").write_bytes(b"II*\0" + bytes(100))
    (folder / "torn.parquet").write_bytes(b"PAR1" + bytes(100))
    (folder / "fake.tif").write_text('<VRTDataset rasterXSize="1" rasterYSize="1"/>')
    (folder / "empty").mkdir()
    with zipfile.ZipFile(folder / "archive.zip", "w") as archive:
        archive.writestr("a.nc", "x")

    def saved(name: str, made: xr.Dataset) -> Path:
        made.to_netcdf(folder / name, engine="h5netcdf")
        return folder / name

    base = monthly(STANDARD)
    bare = base[["t2m"]].copy()
    bare["t2m"].attrs = {}
    celsius = base[["t2m"]].copy()
    celsius["t2m"].attrs["units"] = "degC"
    rows = np.ones((1, 8, 8), dtype="uint8")
    bad = write_tif(folder / "codes_2021.tif", rows * 3, left, top, 30, "EPSG:32633")
    floats = write_tif(folder / "floats_2021.tif", rows.astype("float32"), left, top, 30, "EPSG:32633")
    two = write_tif(folder / "two_2021.tif", np.concatenate([rows, rows]), left, top, 30, "EPSG:32633")
    away = write_tif(folder / "away_2021.tif", rows * 11, left + 1e5, top, 30, "EPSG:32633")
    scene_file = write_tif(folder / "ALOS2437820690-230710_WBDR2.2GUD_HH.tif", rows, left, top, 30, "EPSG:32633")
    placeless = write_tif(folder / "placeless_2021.tif", rows, left, top, 30, None)
    lacking = pd.DataFrame({"lon": [15.0], "lat": [46.0], "time": ["2023-01-01"]})
    lacking.to_csv(folder / "shots.csv", index=False)
    texts = write_texts(folder / "text.parquet", [16.0], [46.0], ["2023"])
    cases: list[tuple[list[object], str]] = [
        (["era5", folder / "torn.nc"], "unknown source 'era5'"),
        (["sentinel-2", folder / "torn.nc"], "comes from a catalog"),
        (["era5-land", folder / "nothing.nc"], "there is no file"),
        (["era5-land", folder / "words.txt"], "of an unknown kind"),
        (["era5-land", folder / "empty"], "is a folder"),
        (["era5-land", folder / "archive.zip"], "unzip it"),
        (["era5-land", folder / "torn.nc"], "cannot read"),
        (["era5-land", folder / "torn.grib"], "cannot read"),
        (["nlcd", folder / "torn.tif"], "cannot read"),
        (["nlcd", folder / "fake.tif"], "of an unknown kind"),
        (["gedi", folder / "torn.parquet"], "cannot read"),
        (["gedi", folder / "torn.nc"], "cannot read"),
        (["era5-land", texts], "is Parquet"),
        (["era5-land", saved("named.nc", base.rename(t2m="heat", sp="push", tp="wet"))], "heat, push, wet"),
        (["era5-land", saved("bare.nc", bare)], "t2m is in no unit"),
        (["era5-land", saved("celsius.nc", celsius)], "says degC and holds"),
        (["era5-land", saved("far.nc", base.assign_coords(longitude=LON + 90))], "nothing of era5-land for the cube"),
        (
            ["era5-land", saved("old.nc", base.assign_coords(time=base["time"] - np.timedelta64(4000, "D")))],
            "nothing of",
        ),
        (["era5-land", saved("part.nc", hours("2023-02-03", 5, lon=LON, lat=LAT).drop_vars("fell"))], "whole months"),
        (["era5-land", saved("metres.nc", base.rename(latitude="y", longitude="x"))], "has no CRS"),
        (["era5-land", saved("many.nc", base.expand_dims(number=[0, 1]))], "number (2)"),
        (["era5-land", saved("weeks.nc", base.isel(time=[0, 3, 6]))], "every"),
        (["grace", saved("land.nc", base)], "known: lwe_thickness"),
        (["grace", saved("timeless.nc", mascons(5)[["lwe_thickness"]].isel(time=0, drop=True))], "states no time"),
        (["gedi", folder / "shots.csv"], "no column quality_flag"),
        (["gedi", saved("heights.nc", base)], "no band rh0"),
        (["nlcd", bad], "holds the codes [3]"),
        (["nlcd", floats], "holds float32"),
        (["nlcd", two], "has 2 bands"),
        (["nlcd", away], "nothing of nlcd for the cube"),
        (["nlcd", placeless], "has no CRS"),
        (["nlcd", bad, "--date", "2021", "--date", "2022"], "2 --date for 1 files"),
        (["nlcd", bad, "--date", "then"], "cannot read the period"),
        (["nlcd", bad, "--look", "right"], "go with radar"),
        (["glo-30", two, "--date", "2021"], "does not go with glo-30"),
        (["gedi", folder / "shots.csv", "--date", "2021"], "states the time of each shot"),
        (["era5-land", folder / "part.nc", "--date", "2023-01"], "states its 121 times itself"),
        (["palsar-2", scene_file], "holds uint8"),
        (["palsar-2", scene_file, "--look", "up"], "unknown --look 'up'"),
        (["palsar-2", bad], "does not say its pass"),
        (["glo-30", two], "has 2 bands"),
        (["text", texts], "nothing of text for the cube"),
        (["text", folder / "shots.csv"], "is no Parquet file"),
    ]
    before = content(path)
    for (name, file, *options), wanted in cases:
        code, out, err = run(["attach", path, "--source", name, file, *options], monkeypatch, capfd)
        assert (code, out, err.count("\n")) == (2, "", 1), (name, file, err)
        assert wanted in err, (name, file, err)
    assert content(path) == before
    assert not list(folder.glob("*.idx")), "no index is left beside a GRIB"


def test_another_file_does_not_replace_a_source_unasked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    path = cube_at(tmp_path / "cube.zarr", **ALPS)
    monthly(STANDARD).to_netcdf(tmp_path / "all.nc", engine="h5netcdf")
    monthly({"t2m": "K"}).to_netcdf(tmp_path / "less.nc", engine="h5netcdf")
    words = ["attach", path, "--source", "era5-land"]
    code, out, _ = run([*words, tmp_path / "all.nc", "--json"], monkeypatch, capfd)
    assert code == 0
    assert json.loads(out)["frames"] == 12
    before = content(path)
    code, _, err = run([*words, tmp_path / "less.nc"], monkeypatch, capfd)
    assert (code, err.count("\n")) == (2, 1), err
    assert "--overwrite" in err
    assert content(path) == before
    assert run([*words, tmp_path / "less.nc", "--overwrite"], monkeypatch, capfd)[0] == 0
    assert open_cube(path).sources["era5-land"].bands == ("temperature_2m",)
    assert "sentinel-2" in open_cube(path).sources
