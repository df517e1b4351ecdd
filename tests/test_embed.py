"""A cube into a field: what its values are, where it is nodata, and that a stop in the middle leaves no trace."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import shapely
import torch
import xarray as xr
import zarr
from affine import Affine
from conftest import Aef
from pyproj import Transformer
from toys import YEAR, made_up_cube, toy_recipe

from aefcli import checkpoint, embed, field, ledger
from aefcli.batch import DAY
from aefcli.checkpoint import Run
from aefcli.cube import Cube, Work, add_source, open_cube, write_cube
from aefcli.embed import How, engine, network, tiling
from aefcli.errors import BadInput, Locked, NoResources
from aefcli.export import write_cogs
from aefcli.extent import BBox, Period, Tile
from aefcli.ledger import records_of
from aefcli.model import Encoded, Model
from aefcli.published import open_vectors
from aefcli.sources import SOURCES

CPU = torch.device("cpu")
YEAR_AND_MONTH = [YEAR, Period.parse("2023-07")]


def untrained_run(path: Path) -> Run:
    plan = toy_recipe()
    run = checkpoint.new_run(path, plan)
    checkpoint.save_weights(run.weights, checkpoint.build(plan), plan, 0)
    return run


@pytest.fixture(scope="module")
def cube(tmp_path_factory: pytest.TempPathFactory) -> Cube:
    return made_up_cube(tmp_path_factory.mktemp("cube") / "cube.zarr")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return untrained_run(tmp_path_factory.mktemp("runs") / "toy-001")


@pytest.fixture(scope="module")
def made(cube: Cube, run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("field") / "embeddings.zarr"
    embed.embed(cube, run, YEAR_AND_MONTH, out, device=CPU)
    return out


def hashes(store: Path) -> dict[str, str]:
    files = [path for path in store.rglob("*") if path.is_file()]
    return {str(path.relative_to(store)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_vectors_have_unit_length_and_periods_differ(made: Path) -> None:
    codes = field.open_field(made)["embeddings"].values
    vectors = field.dequantise(codes, axis=1, renormalise=False)
    norms = np.linalg.norm(vectors, axis=1)
    np.testing.assert_allclose(norms[np.isfinite(norms)], 1, atol=1e-2)
    assert np.nanmax(np.abs(vectors[0] - vectors[1])) > 0.02


def test_a_pixel_that_no_frame_saw_clearly_is_nodata(made: Path) -> None:
    store = field.open_field(made)
    empty = (store["embeddings"].values == -128).all(axis=1)
    expected = np.zeros((2, 96, 96), bool)
    expected[:, :12, :12] = True
    np.testing.assert_array_equal(empty, expected)
    np.testing.assert_array_equal((store["embeddings"].values == -128).any(axis=1), expected)


def test_observations_count_clear_frames_of_the_period(made: Path, cube: Cube) -> None:
    store = field.open_field(made)
    for name, source in cube.sources.items():
        counts = store[f"observations_{name}"].values
        for index, period in enumerate(YEAR_AND_MONTH):
            inside = (source.times >= period.start) & (source.times < period.end)
            assert (counts[index, 12:, 12:] == inside.sum()).all()
            assert (counts[index, :12, :12] == 0).all()


def test_the_field_lies_where_the_cube_lies(made: Path, cube: Cube) -> None:
    plain = xr.open_zarr(made)
    assert plain.rio.crs.to_epsg() == 32633
    assert field.geobox(field.open_field(made)) == cube.grid
    assert float(plain.x[0]) == cube.grid.transform.c + 5
    assert float(plain.y[0]) == cube.grid.transform.f - 5


def test_several_periods_from_one_pass_equal_one_each(made: Path, cube: Cube, run: Run, tmp_path: Path) -> None:
    embed.embed(cube, run, YEAR_AND_MONTH[1:], tmp_path / "one.zarr", device=CPU)
    alone = field.open_field(tmp_path / "one.zarr")["embeddings"].values[0].astype(int)
    assert np.abs(alone - field.open_field(made)["embeddings"].values[1]).max() <= 1


def test_points_equal_the_field(made: Path, cube: Cube, run: Run) -> None:
    rows, columns = np.array([50, 3, 95]), np.array([20, 5, 95])
    plan = run.recipe
    vectors = embed.at_points(checkpoint.load(run), plan, cube, rows, columns, YEAR_AND_MONTH, CPU)
    codes = field.open_field(made)["embeddings"].values[:, :, rows, columns].transpose(2, 0, 1)
    np.testing.assert_array_equal(field.quantise(vectors), codes)
    assert np.isnan(vectors[1]).all()


def test_a_finished_field_is_left_alone(made: Path, cube: Cube, run: Run) -> None:
    before = {path: path.stat().st_mtime_ns for path in made.rglob("*")}
    done = embed.embed(cube, run, YEAR_AND_MONTH, made, device=CPU)
    assert done.written == 0
    assert {path: path.stat().st_mtime_ns for path in made.rglob("*")} == before


def test_another_model_for_the_same_path_is_refused(made: Path, cube: Cube, run: Run, tmp_path: Path) -> None:
    before = hashes(made)
    plan = toy_recipe(train={"seed": 5})
    other = checkpoint.new_run(tmp_path / "other", plan)
    checkpoint.save_weights(other.weights, checkpoint.build(plan), plan, 0)
    with pytest.raises(BadInput, match="model"):
        embed.embed(cube, other, YEAR_AND_MONTH, made, device=CPU)
    with pytest.raises(BadInput, match="dtype"):
        embed.embed(cube, run, YEAR_AND_MONTH, made, device=CPU, how=How(dtype="float32"))
    assert hashes(made) == before


def test_a_field_grows_by_further_periods(made: Path, cube: Cube, run: Run, tmp_path: Path) -> None:
    out = tmp_path / "e.zarr"
    first = embed.embed(cube, run, [Period.parse("2023-07")], out, device=CPU)
    inode = (out / "embeddings" / "c" / "0" / "0" / "0" / "0").stat().st_ino
    again = embed.embed(cube, run, [YEAR], out, device=CPU)
    assert (first.written, again.written, again.adopted, again.periods) == (1, 1, 1, tuple(YEAR_AND_MONTH))
    assert (out / "embeddings" / "c" / "1" / "0" / "0" / "0").stat().st_ino == inode, "taken over, not computed"
    grown, whole = (field.open_field(path)["embeddings"].values.astype(int) for path in (out, made))
    assert np.abs(grown - whole).max() <= 1
    assert (grown != whole).mean() < 1e-4
    assert ledger.verify(out)[0] == []
    assert embed.embed(cube, run, [Period.parse("2023-07")], out, device=CPU).written == 0, "it holds that already"


def test_a_field_follows_a_cube_that_has_grown(run: Run, tmp_path: Path) -> None:
    """What is read for a period decides: the year before has gained nothing, its chunks stay."""
    cube = made_up_cube(tmp_path / "cube.zarr", side=48)
    sources = {name: replace(source, times=source.times.copy()) for name, source in cube.sources.items()}
    later = {name: replace(source, times=source.times + 366 * DAY) for name, source in sources.items()}
    two = {
        name: replace(
            source,
            times=np.concatenate([source.times, later[name].times]),
            **{part: np.concatenate([getattr(source, part)] * 2) for part in ("delivered", "scale", "offset", "meta")},
            arrays={key: np.concatenate([array[...]] * 2) for key, array in source.arrays.items()},
        )
        for name, source in sources.items()
    }
    grown = replace(cube, sources=two, period=Period(YEAR.start, YEAR.start + 2 * 366 * DAY))
    start = replace(cube, period=Period(YEAR.start, YEAR.start + 366 * DAY))
    out, after = tmp_path / "e.zarr", Period(YEAR.start + 366 * DAY, YEAR.start + 400 * DAY)
    embed.embed(start, run, [YEAR], out, device=CPU)
    done = embed.embed(grown, run, [after], out, device=CPU)
    assert (done.written, done.adopted) == (1, 1)
    shorter = {name: replace(source, offset=source.offset + 1) for name, source in start.sources.items()}
    (before,) = write_cogs(open_vectors(out), tmp_path, [YEAR])
    done = embed.embed(replace(start, sources=shorter), run, [YEAR], out, device=CPU)
    assert (done.written, done.adopted) == (2, 0), "other numbers: all of it anew"
    with pytest.raises(BadInput, match="is there already"):  # what was exported is of the numbers before
        write_cogs(open_vectors(out), tmp_path, [YEAR])
    assert write_cogs(open_vectors(out), tmp_path, [YEAR], overwrite=True)[0].path == before.path
    assert write_cogs(open_vectors(out), tmp_path, [YEAR])[0].nodata is None, "now it is the same"


def test_a_part_of_a_cube_has_the_vectors_of_the_whole(made: Path, cube: Cube, run: Run, tmp_path: Path) -> None:
    step = run.recipe.embed.patch - 2 * run.recipe.embed.halo
    west, north = cube.grid.transform * (40, 40)
    east, south = cube.grid.transform * (60, 50)
    to_degrees = Transformer.from_crs(32633, 4326, always_xy=True)
    box = BBox(*to_degrees.transform(west, south), *to_degrees.transform(east, north))
    embed.embed(cube, run, YEAR_AND_MONTH, tmp_path / "part.zarr", device=CPU, how=How(box=box))
    part, whole = field.open_field(tmp_path / "part.zarr"), field.open_field(made)
    assert part.sizes["y"] % step == part.sizes["x"] % step == 0
    assert float(part.y[-1]) <= south + 10
    assert float(part.x[-1]) >= east - 10
    same = whole.sel(y=part.y, x=part.x)
    np.testing.assert_array_equal(part["embeddings"].values, same["embeddings"].values)
    with pytest.raises(BadInput, match="does not touch"):
        embed.embed(cube, run, [YEAR], tmp_path / "x.zarr", device=CPU, how=How(box=BBox(1, 1, 2, 2)))
    assert not (tmp_path / "x.zarr").exists()


def test_outside_of_an_area_is_nodata(made: Path, cube: Cube, run: Run, tmp_path: Path) -> None:
    corners = [cube.grid.transform * corner for corner in ((20, 20), (60, 20), (20, 60))]
    lonlat = [Transformer.from_crs(32633, 4326, always_xy=True).transform(*corner) for corner in corners]
    lon, lat = zip(*lonlat, strict=True)
    how = How(box=BBox(min(lon), min(lat), max(lon), max(lat)), area=shapely.Polygon(lonlat).wkt)
    done = embed.embed(cube, run, [YEAR], tmp_path / "area.zarr", device=CPU, how=how)
    part = field.open_field(tmp_path / "area.zarr")
    whole = field.open_field(made).sel(y=part.y, x=part.x)["embeddings"].values[0]
    rows, columns = np.mgrid[: part.sizes["y"], : part.sizes["x"]]
    top, left = (
        round(float(part[axis][0] - corner) / 10) for axis, corner in (("y", 0), ("x", cube.grid.transform.c + 5))
    )
    top = round((cube.grid.transform.f - 5 - float(part.y[0])) / 10)
    inside = (rows + top + 0.5 > 20) & (columns + left + 0.5 > 20) & (rows + top + columns + left + 1 < 80)
    there = (part["embeddings"].values[0] != -128).any(axis=0)
    assert (there == inside).mean() > 0.98, "but for what the edges of pixels make"
    np.testing.assert_array_equal(part["embeddings"].values[0][:, there], whole[:, there])
    assert (part["observations_sentinel-2"].values[0] > 0).sum() <= there.sum()
    assert 0.3 < done.nodata < 0.9


def test_a_cluster_gives_the_same_bytes(made: Path, cube: Cube, run: Run, tmp_path: Path) -> None:
    embed.embed(cube, run, YEAR_AND_MONTH, tmp_path / "embeddings.zarr", device=CPU, how=How(work=Work(dask="2")))
    assert chunks(tmp_path / "embeddings.zarr") == chunks(made)


@pytest.mark.parametrize("threads", [2, 8])
def test_who_computes_it_changes_nothing(made: Path, cube: Cube, run: Run, tmp_path: Path, threads: int) -> None:
    how = How(work=Work(threads), memory=1 << 40)
    embed.embed(cube, run, YEAR_AND_MONTH, tmp_path / "embeddings.zarr", device=CPU, how=how)
    assert chunks(tmp_path / "embeddings.zarr") == chunks(made)


def test_little_memory_changes_nothing_and_too_little_is_refused(
    made: Path, cube: Cube, run: Run, tmp_path: Path
) -> None:
    needed = tiling.room(1 << 40, 1, 46, 200, 2, run.recipe.embed, 1)
    assert (needed.workers, needed.periods) == (1, 2)
    embed.embed(cube, run, YEAR_AND_MONTH, tmp_path / "e.zarr", device=CPU, how=How(memory=520 << 20, work=Work(4)))
    assert chunks(tmp_path / "e.zarr") == chunks(made)
    with pytest.raises(NoResources, match=r"--memory 1 MiB: one patch of 48 px with 45 frames"):
        embed.embed(cube, run, YEAR_AND_MONTH, tmp_path / "x.zarr", device=CPU, how=How(memory=1 << 20))
    assert not (tmp_path / "x.zarr").exists()


def test_room_gives_up_periods_then_workers_then_refuses() -> None:
    sizes = toy_recipe().embed
    rich = tiling.room(1 << 40, 4, 50, 250, 48, sizes, 1)
    assert (rich.workers, rich.periods) == (4, 48)
    seen = [tiling.room(memory << 20, 4, 50, 250, 48, sizes, 1) for memory in (4000, 2000, 1000, 560)]
    assert [room.periods % tiling.AT_ONCE for room in seen] == [0] * 4, "the same ones are summarised together"
    assert [(a.periods, a.workers) >= (b.periods, b.workers) for a, b in pairwise(seen)] == [True] * 3
    assert seen[-1].periods == 4


@pytest.mark.parametrize(("side", "workers"), [(64, 2), (100, 2), (100, 3), (200, 2), (200, 7), (10, 16)])
def test_every_worker_has_its_turns_at_a_tile(side: int, workers: int) -> None:
    """In rows of as many patches as memory allows, one worker would take two rows of three and the other one."""
    sizes, tile = toy_recipe().embed, Tile(0, 0, side, side)
    cells = tiling.cells(tile, sizes)
    rows = list(tiling.runs(cells, tiling.Room(workers, 100, 4).share(tile, sizes)))
    assert [cell for row in rows for cell in row] == cells
    assert len(rows) >= min(len(cells), 2 * workers)
    assert tiling.Room(1, 2, 4).share(tile, sizes) <= 2, "no more than memory allows"


def test_floats_are_the_vectors_themselves(made: Path, cube: Cube, run: Run, tmp_path: Path) -> None:
    out = tmp_path / "e.zarr"
    embed.embed(cube, run, YEAR_AND_MONTH, out, device=CPU, how=How(dtype="float32"))
    plain = xr.open_zarr(out)
    values = plain["embeddings"].values
    assert values.dtype == np.float32
    np.testing.assert_array_equal(np.isnan(values).all(axis=1), np.isnan(values).any(axis=1))
    there = ~np.isnan(values[:, 0])
    np.testing.assert_allclose(np.linalg.norm(values, axis=1)[there], 1, atol=1e-5)
    told = field.open_field(made)["embeddings"].values
    # On the edge of two codes the root decides, of which torch's last bit is not numpy's.
    steps = np.sqrt(np.abs(values.astype("float64"))) * 127.5
    edge = np.abs(steps % 1 - 0.5) < 1e-5
    assert edge.mean() < 1e-4
    codes = field.quantise(values, axis=1)
    np.testing.assert_array_equal(np.where(edge, 0, codes), np.where(edge, 0, told))
    np.testing.assert_allclose(codes[edge], told[edge], atol=1)


def test_uncertainty_is_the_angle_that_dropped_frames_turn_a_vector_by(cube: Cube, run: Run, tmp_path: Path) -> None:
    out = tmp_path / "e.zarr"
    embed.embed(cube, run, YEAR_AND_MONTH, out, device=CPU, how=How(passes=2))
    store = field.open_field(out)
    spread, codes = store["uncertainty"].values, store["embeddings"].values
    np.testing.assert_array_equal(np.isnan(spread), (codes == -128).all(axis=1))
    assert 0.01 < np.nanmean(spread) < 60
    names = embed.readable(cube, run.recipe)
    frames = embed.read_frames(cube, names, Tile(20, 20, 68, 68), YEAR, run.recipe)
    fewer = network.dropped(frames, 0)
    for name, source in frames.items():
        gone = (source.present & ~fewer[name].present).flatten(2).any(-1).float().mean()
        assert 0.1 < gone < 0.6


def test_codes_are_those_of_the_quantiser() -> None:
    rng = torch.Generator().manual_seed(0)
    vectors = torch.nn.functional.normalize(torch.randn(3, 64, 20, 20, generator=rng), dim=1)
    found = network.Seen(vectors, np.ones((20, 20), bool), {}, None)
    np.testing.assert_array_equal(network.stored(found, "int8"), field.quantise(vectors.numpy(), axis=1))


def test_how_much_of_a_period_was_seen_is_told(cube: Cube, run: Run, tmp_path: Path) -> None:
    periods = [YEAR, Period.parse("2023-07"), Period.parse("2025")]
    embed.embed(cube, run, periods, tmp_path / "e.zarr", device=CPU)
    store = xr.open_zarr(tmp_path / "e.zarr")
    whole = sum(len(source.times) for source in cube.sources.values())
    july = sum(
        ((source.times >= periods[1].start) & (source.times < periods[1].end)).sum() for source in cube.sources.values()
    )
    assert store["frames_inside"].values.tolist() == [whole, july, 0]
    np.testing.assert_allclose(store["share_inside"].values, [1, july / whole, 0], rtol=1e-6)
    assert store["extrapolated"].values.tolist() == [False, False, True]


def test_every_cuts_a_period_at_the_calendar() -> None:
    months = embed.every(Period.parse("2020-11-15:2021-02-03"), "month")
    assert [str(month) for month in months] == [
        "2020-11-15:2020-11-30",
        "2020-12-01:2020-12-31",
        "2021-01-01:2021-01-31",
        "2021-02-01:2021-02-03",
    ]
    assert embed.every(YEAR, "quarter")[1] == Period.parse("2023-04:2023-06")
    assert embed.every(Period.parse("2022:2023"), "year") == [Period.parse("2022"), YEAR]
    with pytest.raises(BadInput, match="did you mean month"):
        embed.every(YEAR, "months")


def test_the_seam_is_told_and_nought_where_nothing_but_the_pixel_counts(cube: Cube, run: Run, tmp_path: Path) -> None:
    done = embed.embed(cube, run, [YEAR], tmp_path / "e.zarr", device=CPU)
    assert done.seam is not None
    assert 0 < done.seam.mean < done.seam.most < 90
    alike = embed.embed(cube, run, [YEAR], tmp_path / "e.zarr", device=CPU)
    assert alike.seam is None, "nothing was computed"


def test_damage_is_found_and_mended_to_the_same_bytes(cube: Cube, run: Run, tmp_path: Path) -> None:
    out = tmp_path / "e.zarr"
    embed.embed(cube, run, YEAR_AND_MONTH, out, device=CPU)
    before = hashes(out)
    chunk = out / "embeddings" / "c" / "1" / "0" / "0" / "0"
    chunk.write_bytes(chunk.read_bytes()[:-9] + b"123456789")
    (out / "observations_sentinel-1" / "c" / "0" / "0" / "0").unlink()
    (out / "x" / "c" / "0").unlink()
    assert len(ledger.verify(out)[0]) == 3
    done = embed.mend(out, cube, run, device=CPU, work=Work(1))
    assert (len(done.files), done.units, done.changed) == (3, 2, ())
    assert hashes(out) == before
    other = untrained_run(tmp_path / "other-name")
    with pytest.raises(BadInput, match="another request: model"):
        embed.mend(out, cube, other, device=CPU, work=Work(1))


def test_metadata_that_another_version_wrote_is_mended_to_what_this_one_writes(
    cube: Cube, run: Run, tmp_path: Path
) -> None:
    out = tmp_path / "e.zarr"
    embed.embed(cube, run, [YEAR], out, device=CPU, how=How(seams=False))
    whole = (out / "zarr.json").read_bytes()
    group = zarr.open_group(out, mode="r+", use_consolidated=False)
    del group.attrs["geoemb:model"]
    with ledger.reopen(out) as build:
        build.finish(field.finish)
    assert (out / "zarr.json").read_bytes() != whole
    (out / "zarr.json").unlink()
    embed.mend(out, cube, run, device=CPU, work=Work(1))
    assert (out / "zarr.json").read_bytes() == whole
    assert ledger.verify(out)[0] == []


def test_a_field_is_verified_and_repaired_at_the_terminal(aef: Aef, tmp_path: Path) -> None:
    made_up_cube(tmp_path / "cube.zarr", side=32, hole=False)
    untrained_run(tmp_path / "runs" / "mine-001")
    assert aef("embed", "--every", "quarter", "-q")[0] == 0
    before = hashes(tmp_path / "embeddings.zarr")
    (tmp_path / "embeddings.zarr" / "embeddings" / "c" / "2" / "0" / "0" / "0").write_bytes(b"")
    code, _, err = aef("verify", "embeddings.zarr")
    assert (code, "aef repair embeddings.zarr" in err) == (4, True)
    assert aef("repair", "embeddings.zarr", "-q") == (0, "embeddings.zarr\n", "")
    assert hashes(tmp_path / "embeddings.zarr") == before
    assert aef("verify", "embeddings.zarr")[0] == 0
    (tmp_path / "embeddings.zarr" / "zarr.json").unlink()
    code, out, err = aef("embed", "--every", "quarter")
    assert (code, out, err.count("\n"), "aef repair embeddings.zarr" in err) == (4, "", 1, True), err
    assert aef("repair", "embeddings.zarr", "-q")[0] == 0
    assert aef("embed", "--every", "quarter", "-q") == (0, "embeddings.zarr\n", "")
    assert hashes(tmp_path / "embeddings.zarr") == before
    code, _, err = aef("repair", "embeddings.zarr", "--stac", "x")
    assert (code, err.count("\n")) == (2, 1)
    shutil.rmtree(tmp_path / "runs")
    code, _, err = aef("repair", "embeddings.zarr")
    assert (code, err) == (
        2,
        "aef: no run here made embeddings.zarr: it was mine-001 (--model names the run's folder)\n",
    )


def test_bad_input_of_embed_is_one_line_and_makes_nothing(aef: Aef, tmp_path: Path) -> None:
    made_up_cube(tmp_path / "cube.zarr", side=32, hole=False)
    untrained_run(tmp_path / "runs" / "mine-001")
    two = {"type": "MultiPolygon", "coordinates": [[[[15, 45], [16, 45], [16, 46], [15, 45]]]] * 2}
    features = [
        {"type": "Feature", "properties": {}, "geometry": {"type": "Polygon", "coordinates": each}}
        for each in two["coordinates"]
    ]
    (tmp_path / "two.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    far = shapely.geometry.mapping(shapely.box(181, 10, 182, 11))
    (tmp_path / "far.geojson").write_text(json.dumps({"type": "Feature", "properties": {}, "geometry": far}))
    for words, told in (
        ([], "--period is missing"),
        (["--every", "week"], "unknown --every 'week'"),
        (["--period", "2023", "--dtype", "int4"], "unknown --dtype 'int4'"),
        (["--period", "2023", "--bbox", "1,2,3,4", "--area", "two.geojson"], "--bbox and --area"),
        (["--period", "2023", "--bbox", "1,2,3,4"], "does not touch cube.zarr"),
        (["--period", "2023", "--area", "two.geojson"], "two.geojson holds 2 polygons"),
        (["--period", "2023", "--area", "none.geojson"], "none.geojson"),
        (["--period", "2023", "--area", "far.geojson"], "1 has longitudes 181 to 182"),
        (["--period", "2023", "--memory", "much"], "--memory 'much' is no size"),
        (["--period", "2023", "--set", "train.lr=1"], "--set train.lr=1 is for training"),
        (["--period", "2023", "--set", "embed.halo=24"], "leaves nothing of patch"),
        (["--period", "2023", "--dask", "0"], "--dask 0 is no cluster"),
    ):
        code, out, err = aef("embed", *words)
        assert (code, out, err.count("\n"), told in err) == (2, "", 1, True), (words, err)
        assert not list(tmp_path.glob("embeddings*")), words


def chunks(store: Path) -> dict[str, str]:
    """Hashes of what lies below the arrays."""
    return {name: value for name, value in hashes(store).items() if "/c/" in name}


def test_a_period_outside_the_data_is_extrapolated_and_says_so(cube: Cube, run: Run, tmp_path: Path) -> None:
    done = embed.embed(cube, run, [Period.parse("2025")], tmp_path / "later.zarr", device=CPU)
    assert done.extrapolated == (Period.parse("2025"),)
    codes = field.open_field(tmp_path / "later.zarr")["embeddings"].values
    assert (codes[:, :, 12:, 12:] != -128).any(axis=1).all()


def test_a_cube_without_the_models_sources_is_refused(cube: Cube, tmp_path: Path) -> None:
    plan = toy_recipe(data={"sources": ["landsat"], "frames": [4], "patch": 32})
    run = checkpoint.new_run(tmp_path / "landsat", plan)
    checkpoint.save_weights(run.weights, checkpoint.build(plan), plan, 0)
    with pytest.raises(BadInput, match="landsat"):
        embed.embed(cube, run, [YEAR], tmp_path / "x.zarr", device=CPU)
    assert not (tmp_path / "x.zarr").exists()
    assert not records_of(tmp_path / "x.zarr").exists()


def on_the_ground(cube: Cube, *corners: tuple[float, float]) -> list[tuple[float, float]]:
    """Degrees of places in the cube, each as column and row."""
    to_degrees, affine = Transformer.from_crs(cube.grid.crs.to_epsg(), 4326, always_xy=True), cube.grid.transform
    return [to_degrees.transform(affine.c + 10 * column, affine.f - 10 * row) for column, row in corners]


def box_of(cube: Cube, left: float, top: float, right: float, bottom: float) -> BBox:
    (west, south), (east, north) = on_the_ground(cube, (left, bottom), (right, top))
    return BBox(west, south, east, north)


@pytest.mark.parametrize(
    ("edges", "rows", "columns"),
    [
        ((-5, -5, 3, 3), (0, 32), (0, 32)),
        ((93, 93, 120, 120), (64, 96), (64, 96)),
        ((50.1, 50.1, 50.9, 50.9), (32, 64), (32, 64)),
        ((-500, -500, 700, 700), (0, 96), (0, 96)),
    ],
    ids=["over the first corner", "over the last corner", "in one pixel", "larger than the cube"],
)
def test_a_box_anywhere_gives_the_patches_that_it_touches(
    made: Path,
    cube: Cube,
    run: Run,
    tmp_path: Path,
    edges: tuple[float, float, float, float],
    rows: tuple[int, int],
    columns: tuple[int, int],
) -> None:
    how = How(box=box_of(cube, *edges), seams=False)
    embed.embed(cube, run, YEAR_AND_MONTH, tmp_path / "part.zarr", device=CPU, how=how)
    part, whole = field.open_field(tmp_path / "part.zarr"), field.open_field(made)
    place = {"y": slice(*rows), "x": slice(*columns)}
    xr.testing.assert_equal(part["embeddings"], whole["embeddings"].isel(place))


def test_an_area_has_its_hole(cube: Cube, run: Run, tmp_path: Path) -> None:
    outer = on_the_ground(cube, (20, 20), (60, 20), (60, 60), (20, 60))
    area = shapely.Polygon(outer, [on_the_ground(cube, (30, 30), (50, 30), (50, 50), (30, 50))])
    how = How(box=BBox(*area.bounds), area=area.wkt, seams=False)
    embed.embed(cube, run, [YEAR], tmp_path / "e.zarr", device=CPU, how=how)
    store = field.open_field(tmp_path / "e.zarr")
    there = (store["embeddings"].values[0] != -128).any(axis=0)
    assert there.sum() == 40 * 40 - 20 * 20
    np.testing.assert_array_equal(store["observations_sentinel-2"].values[0] > 0, there)


def optical(
    times: np.ndarray, rows: int, columns: int, epsg: int = 32633, corner: tuple[float, float] = (5e5, 5e6)
) -> xr.Dataset:
    """A dataset of noise for `write_cube`, clear everywhere."""
    import rioxarray  # noqa: F401 - adds .rio

    rng, (x, y) = np.random.default_rng(0), corner
    shape = (len(times), rows, columns)
    bands = {name: (("time", "y", "x"), rng.integers(500, 4000, shape, dtype="uint16")) for name in ("B02", "B04")}
    coords = {"time": times, "y": y - 10 * (np.arange(rows) + 0.5), "x": x + 10 * (np.arange(columns) + 0.5)}
    made = xr.Dataset(bands, coords).rio.write_crs(f"EPSG:{epsg}")
    return made.rio.write_transform(Affine(10, 0, x, 0, -10, y))


def through(*years: int) -> np.ndarray:
    """Every 40 days of some years."""
    each = [np.datetime64(f"{year}-01-10", "ms") + np.timedelta64(40, "D") * np.arange(9) for year in years]
    return np.concatenate(each)


@pytest.mark.parametrize("shape", [(1, 1), (3, 50)])
def test_a_cube_smaller_than_a_patch(run: Run, tmp_path: Path, shape: tuple[int, int]) -> None:
    cube = open_cube(write_cube(tmp_path / "cube.zarr", {"sentinel-2": optical(through(2023), *shape)}, YEAR))
    embed.embed(cube, run, YEAR_AND_MONTH, tmp_path / "e.zarr", device=CPU)
    store = xr.open_zarr(tmp_path / "e.zarr")
    assert (store.sizes["y"], store.sizes["x"]) == shape
    assert np.isfinite(store["embeddings"].values).all()


def test_a_box_across_the_antimeridian(run: Run, tmp_path: Path) -> None:
    x, y = Transformer.from_crs(4326, 32660, always_xy=True).transform(180, 10)
    data = optical(through(2023), 96, 96, 32660, (round(x) - 480, round(y) + 480))
    cube = open_cube(write_cube(tmp_path / "cube.zarr", {"sentinel-2": data}, YEAR))
    box = box_of(cube, 40, 40, 56, 56)
    assert box.west > 179 > -179 > box.east
    embed.embed(cube, run, [YEAR], tmp_path / "e.zarr", device=CPU, how=How(box=box, seams=False))
    store = field.open_field(tmp_path / "e.zarr")
    assert (store.sizes["y"], store.sizes["x"]) == (32, 32)
    assert float(store.x[0]) == round(x) - 480 + 325
    away = BBox(-170, box.south, -169, box.north)
    with pytest.raises(BadInput, match="does not touch"):
        embed.embed(cube, run, [YEAR], tmp_path / "x.zarr", device=CPU, how=How(box=away))


def test_a_year_without_frames_is_nodata(run: Run, tmp_path: Path) -> None:
    three = Period.parse("2021:2023")
    cube = open_cube(write_cube(tmp_path / "cube.zarr", {"sentinel-2": optical(through(2021, 2023), 40, 40)}, three))
    how = How(dtype="float16", passes=1)
    done = embed.embed(cube, run, [Period.parse("2022")], tmp_path / "e.zarr", device=CPU, how=how)
    assert (done.nodata, done.extrapolated, done.seam) == (1, (Period.parse("2022"),), None)
    store = xr.open_zarr(tmp_path / "e.zarr")
    assert np.isnan(store["embeddings"].values).all()
    assert np.isnan(store["uncertainty"].values).all()


def test_the_cube_is_not_written_over(cube: Cube, run: Run) -> None:
    before = hashes(cube.path)
    with pytest.raises(BadInput, match="is the cube itself"):
        embed.embed(cube, run, [YEAR], cube.path.parent / "." / cube.path.name, device=CPU, overwrite=True)
    assert hashes(cube.path) == before


def test_what_an_archive_did_not_give_at_first_is_seen_when_it_does(cube: Cube, run: Run, tmp_path: Path) -> None:
    lacking = replace(cube, attrs={**cube.attrs, "aef:missing": ["sentinel-2/an-item/B04"]})
    embed.embed(lacking, run, [YEAR], tmp_path / "e.zarr", device=CPU, how=How(seams=False))
    done = embed.embed(cube, run, [YEAR], tmp_path / "e.zarr", device=CPU, how=How(seams=False))
    assert (done.written, done.adopted) == (1, 0)


def test_a_chunk_that_is_gone_is_made_again_when_a_field_grows(cube: Cube, run: Run, tmp_path: Path) -> None:
    out, how = tmp_path / "e.zarr", How(seams=False)
    embed.embed(cube, run, YEAR_AND_MONTH, out, device=CPU, how=how)
    whole = field.open_field(out)["embeddings"].values
    (out / "embeddings" / "c" / "1" / "0" / "0" / "0").unlink()
    done = embed.embed(cube, run, [Period.parse("2024")], out, device=CPU, how=how)
    assert (done.written, done.adopted) == (2, 1)
    assert ledger.verify(out)[0] == []
    assert np.abs(field.open_field(out)["embeddings"].values[:2].astype(int) - whole).max() <= 1


def test_a_field_of_an_earlier_version_is_refused_in_one_line(cube: Cube, run: Run, tmp_path: Path) -> None:
    out = tmp_path / "e.zarr"
    embed.embed(cube, run, [YEAR], out, device=CPU)
    records = records_of(out)
    plan = json.loads((records / "plan.json").read_text())
    old = {key: value for key, value in plan["request"].items() if key not in ("patches", "dtype")}
    old["periods"] = [each[:2] for each in old["periods"]]
    plan |= {"request": old, "key": ledger.digest(old)}
    (records / "plan.json").write_text(json.dumps(plan))
    lines = (records / "ledger.jsonl").read_text().replace("2023-01-01:2023-12-31/", "")
    (records / "ledger.jsonl").write_text(lines)
    before = hashes(out)
    for periods in ([YEAR], YEAR_AND_MONTH):
        with pytest.raises(BadInput, match="another request: dtype"):
            embed.embed(cube, run, periods, out, device=CPU)
    with pytest.raises(BadInput, match="made by an earlier version"):
        embed.mend(out, cube, run, device=CPU, work=Work(1))
    assert hashes(out) == before


def with_source(cube: Cube, name: str, band: str, value: float) -> Cube:
    """The cube with one more source, alike everywhere."""
    found = xr.open_zarr(cube.path, group="sentinel-2", mask_and_scale=False, decode_coords="all")
    values = np.full((1, *cube.shape), value, SOURCES[name].dtype)
    time = np.array(["2023-06-01"], "datetime64[ms]")
    made = xr.Dataset({band: (("time", "y", "x"), values)}, {"time": time, "y": found.y, "x": found.x})
    assert add_source(cube.path, name, made.assign_coords(spatial_ref=found.spatial_ref), {"value": value})
    return open_cube(cube.path)


def test_what_is_attached_to_a_cube_and_not_read_changes_no_field(run: Run, tmp_path: Path) -> None:
    cube, out = made_up_cube(tmp_path / "cube.zarr", side=48), tmp_path / "e.zarr"

    def embedded(*periods: Period) -> tuple[int, int]:
        done = embed.embed(cube, run, periods, out, device=CPU, how=How(seams=False))
        return done.written, done.adopted

    assert embedded(YEAR) == (1, 0)
    before = hashes(out)
    cube = with_source(cube, "glo-30", "elevation", 300)
    assert embedded(YEAR) == (0, 0)
    assert hashes(out) == before
    assert embedded(YEAR_AND_MONTH[1]) == (1, 1)
    file = records_of(out) / "plan.json"
    plan = json.loads(file.read_text())
    everything = {key: value for key, value in cube.attrs["aef:request"].items() if key != "period"}
    plan["request"]["cube"] = ledger.digest(everything)  # as versions had it that counted what is not read
    file.write_text(json.dumps(plan | {"key": ledger.digest(plan["request"])}))
    assert embedded(YEAR) == (0, 0)
    (out / "x" / "c" / "0").unlink()
    assert embed.mend(out, cube, run, device=CPU, work=Work(1)).files == ("x/c/0",)
    assert embedded(Period.parse("2023-08")) == (1, 2)
    cube = with_source(cube, "landsat", "B4", 9000)
    with pytest.raises(BadInput, match="another request: cube"):
        embedded(YEAR)


def test_three_at_once_and_one_of_them_stopped(made: Path, cube: Cube, run: Run, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    threads = torch.get_num_threads()
    with ThreadPoolExecutor(2) as pool:
        others = [
            pool.submit(embed.embed, cube, run, YEAR_AND_MONTH, tmp_path / f"{n}.zarr", device=CPU) for n in (1, 2)
        ]
        with pytest.raises(KeyboardInterrupt):
            embed.embed(cube, run, [YEAR], tmp_path / "stopped.zarr", device=CPU, progress=stop)
    assert [other.result().written for other in others] == [2, 2]
    assert chunks(tmp_path / "1.zarr") == chunks(tmp_path / "2.zarr") == chunks(made)
    assert torch.get_num_threads() == threads


def test_memory_that_is_not_there_is_one_line(cube: Cube, run: Run, tmp_path: Path) -> None:
    sizes = run.recipe.embed.model_copy(update={"patch": 1 << 20})  # more than an address can say
    with pytest.raises(NoResources, match="out of memory"):
        embed.embed(cube, run, [YEAR], tmp_path / "e.zarr", device=CPU, how=How(sizes, memory=1 << 60, seams=False))


@pytest.mark.parametrize("words", ["CUDA out of memory", "DefaultCPUAllocator: can't allocate memory"])
def test_fewer_periods_at_once_where_memory_is_short(
    words: str, cube: Cube, run: Run, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    summarise, asked = Model.summarise, list[int]()

    def short(self: Model, encoded: Encoded, valid: torch.Tensor, at_once: int) -> torch.Tensor:
        asked.append(at_once)
        if at_once > 1:
            raise RuntimeError(words)
        return summarise(self, encoded, valid, at_once)

    monkeypatch.setattr(Model, "summarise", short)
    out = tmp_path / "e.zarr"
    embed.embed(cube, run, YEAR_AND_MONTH, out, device=CPU, how=How(seams=False))
    assert set(asked) == {4, 2, 1}
    ours, whole = (field.open_field(path)["embeddings"].values.astype(int) for path in (out, made))
    assert np.abs(ours - whole).max() <= 1

    def full(self: Model, inputs: object) -> Encoded:
        raise RuntimeError(words)

    monkeypatch.setattr(Model, "encode", full)
    with pytest.raises(NoResources, match="a patch of 48 px does not fit into the memory of cpu"):
        embed.embed(cube, run, [YEAR], tmp_path / "none.zarr", device=CPU, how=How(seams=False))


def test_a_worker_has_its_own_device(run: Run) -> None:
    weights = checkpoint.identity(run)["weights"]
    found = engine.network(run, "auto", run.recipe.embed, weights)
    assert found.device.type == ("cuda" if torch.cuda.is_available() else "cpu")
    if found.device.type == "cpu":
        with pytest.raises(BadInput, match="a worker has no cuda"):
            engine.network(run, "cuda", run.recipe.embed, weights)


def test_what_lies_beside_a_field_is_made_again_where_it_is_of_another_state(aef: Aef, tmp_path: Path) -> None:
    """As after a kill between a field's last word and what is made beside it."""
    made_up_cube(tmp_path / "cube.zarr", side=32, hole=False)
    assert aef("embed", "--period", "2023-01", "-q")[0] == 0
    old = {path: path.read_bytes() for path in tmp_path.glob("embeddings.*") if path.is_file()}
    assert aef("embed", "--period", "2023-07", "-q")[0] == 0
    new = {path: path.read_bytes() for path in old}
    for path, content in old.items():
        path.write_bytes(content)
    assert aef("validate", "embeddings.zarr")[0] == 4
    code, _, err = aef("embed", "--period", "2023-07")
    assert (code, "already complete" in err) == (0, True), err
    assert {path: path.read_bytes() for path in old} == new
    assert aef("validate", "embeddings.zarr")[0] == 0


def test_a_period_that_reaches_beyond_the_cube_is_told(aef: Aef, tmp_path: Path) -> None:
    made_up_cube(tmp_path / "cube.zarr", side=32, hole=False)
    code, out, err = aef("embed", "--period", "2023-12:2024-12", "--period", "2023", "--period", "2030", "--json")
    found = json.loads(out)
    assert (code, found["beyond"]) == (0, ["2023-12-01:2024-12-31", "2030-01-01:2030-12-31"]), err
    assert "2023-12-01:2024-12-31 reaches beyond cube.zarr" in err
    assert "2030-01-01:2030-12-31 holds no frame of cube.zarr" in err
    assert "2030-01-01:2030-12-31 reaches" not in err
    assert "no two patches meet" in err


def test_weights_that_change_meanwhile_are_refused(run: Run) -> None:
    with pytest.raises(BadInput, match="has changed: its weights are"):
        engine.network(run, "cpu", run.recipe.embed, "of another version")


def test_supports_are_years_counted_from_the_cubes_start() -> None:
    two = Period.parse("2022:2023")
    assert embed.support_of(Period.parse("2023"), Period.parse("2023-03")) == Period.parse("2023")
    assert embed.support_of(Period.parse("2023"), Period.parse("2031")) == Period.parse("2023")
    early, late = embed.support_of(two, Period.parse("2022-02")), embed.support_of(two, Period.parse("2023-11"))
    assert early.start == two.start
    assert late.end == two.end
    assert early.days <= 366
    assert late.days <= 366
    assert embed.support_of(two, two) == two
    long = Period.parse("2020:2023")
    for year in range(2020, 2024):
        support = embed.support_of(long, Period.parse(str(year)))
        assert support.days <= 366
        assert support.start <= Period.parse(str(year)).start
        assert support.end >= Period.parse(str(year)).end


CHILD = """
import sys, torch
from pathlib import Path
from aefcli import embed, field
from aefcli.checkpoint import Run
from aefcli.cube import open_cube
from aefcli.extent import Period
field.CHUNK = 32  # nine tiles
periods = [Period.parse("2023"), Period.parse("2023-07")]
cube, run, out = (Path(text) for text in sys.argv[1:])
embed.embed(open_cube(cube), Run(run), periods, out, device=torch.device("cpu"))
"""


def child(cube: Cube, run: Run, out: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", CHILD, str(cube.path), str(run.path), str(out)])


def test_kill_9_then_the_same_again_gives_the_same_bytes(cube: Cube, run: Run, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole" / "e.zarr", tmp_path / "cut" / "e.zarr"
    whole.parent.mkdir()
    cut.parent.mkdir()
    assert child(cube, run, whole).wait(120) == 0
    process, book = child(cube, run, cut), records_of(cut) / "ledger.jsonl"
    deadline = time.monotonic() + 120
    while not book.exists() or book.read_bytes().count(b"\n") < 2:
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert sum("unit" in json.loads(line) for line in book.read_text().splitlines()) < 18
    with pytest.raises(BadInput, match="incomplete"):
        field.open_field(cut)
    assert child(cube, run, cut).wait(120) == 0
    assert hashes(cut) == hashes(whole)


def test_a_second_writer_is_turned_away(cube: Cube, run: Run, tmp_path: Path) -> None:
    out = tmp_path / "e.zarr"
    process = child(cube, run, out)
    try:
        deadline = time.monotonic() + 60
        while not (records_of(out) / "ledger.jsonl").exists():
            assert time.monotonic() < deadline
            time.sleep(0.005)
        with pytest.raises(Locked):
            embed.embed(cube, run, YEAR_AND_MONTH, out, device=CPU)
    finally:
        process.kill()
        process.wait()


# --- the model that comes with aef ------------------------------------------------------------------------------------

USING = "using the shipped nano, which learned from simulated landscapes"


def test_the_package_has_a_whole_run_with_its_card() -> None:
    run = checkpoint.SHIPPED
    assert {path.name for path in run.path.iterdir()} == {
        "model.safetensors",
        "recipe.toml",
        "card.md",
        "data.json",
    }
    weights, plan = checkpoint.load(run).state_dict(), run.recipe
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())
    fresh = checkpoint.build(plan).state_dict()
    assert any(not torch.equal(tensor, fresh[name]) for name, tensor in weights.items()), "it was trained"
    assert {*plan.statistics} == {*plan.data.sources}
    card, known = (run.path / "card.md").read_text(), checkpoint.identity(run)
    assert card.startswith("# nano\n")
    assert f"hash {known['recipe']}, weights {known['weights']}" in card
    assert "**It learned from simulated landscapes, not from the Earth.**" in card


def test_the_shipped_run_is_the_last_that_is_thought_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert checkpoint.newest_run() == checkpoint.open_run(Path("nano")) == checkpoint.SHIPPED
    begun = checkpoint.new_run(Path("runs/toy-001"), toy_recipe())
    assert checkpoint.newest_run() == checkpoint.SHIPPED, "what has only a recipe cannot be gone on with"
    begun.data.write_text("{}")
    with pytest.raises(BadInput, match="toy-001 is not finished"):
        checkpoint.newest_run()
    mine = untrained_run(Path("runs/mine"))
    assert checkpoint.newest_run() == mine
    assert (mine.name, mine.shipped) == ("runs/mine", False)
    here = untrained_run(Path("nano"))
    assert checkpoint.open_run(Path("nano")) == here
    assert (here.shipped, checkpoint.SHIPPED.shipped, checkpoint.SHIPPED.name) == (False, True, "nano")


def test_embed_without_a_run_takes_the_shipped_one_and_warns_each_time(aef: Aef, tmp_path: Path) -> None:
    made_up_cube(tmp_path / "cube.zarr", side=32, hole=False)
    fallback = f"warning: no run here: {USING} (aef train makes your own)"
    code, out, err = aef("embed", "--period", "2023", "--json")
    document = json.loads(out)
    assert (code, document["model"], document["notes"]) == (0, "nano", [fallback]), err
    assert err.splitlines().count(fallback) == 1
    attrs = field.open_field(tmp_path / "embeddings.zarr").attrs
    assert attrs["aef:model"] == checkpoint.identity(checkpoint.SHIPPED)
    assert attrs["aef:recipe"] == checkpoint.SHIPPED.recipe.to_toml()
    assert attrs["geoemb:model"] == f"pkg:generic/nano@{attrs['aef:model']['weights']}"
    assert aef("embed", "--period", "2023", "-q") == (0, "embeddings.zarr\n", f"{fallback}\n")
    code, out, err = aef("embed", "--period", "2023", "--model", "nano", "--json")
    assert (code, json.loads(out)["notes"]) == (0, [f"warning: {USING}"]), err


def test_a_run_of_ones_own_comes_first(aef: Aef, tmp_path: Path) -> None:
    made_up_cube(tmp_path / "cube.zarr", side=32, hole=False)
    untrained_run(tmp_path / "runs" / "mine-001")
    code, out, err = aef("embed", "--period", "2023", "--json")
    assert (code, json.loads(out)["model"], json.loads(out)["notes"]) == (0, "runs/mine-001", []), err
    assert "shipped" not in err
    assert field.open_field(tmp_path / "embeddings.zarr").attrs["aef:model"]["run"] == "mine-001"


def test_eval_of_a_field_of_the_shipped_run_embeds_and_warns(aef: Aef, tmp_path: Path) -> None:
    cube = made_up_cube(tmp_path / "cube.zarr", side=32, hole=False)
    assert aef("embed", "--period", "2023", "-q")[0] == 0
    rows, columns = (each.ravel() for each in np.mgrid[2:32:6, 2:32:6])
    x, y = cube.grid.transform * (columns + 0.5, rows + 0.5)
    lon, lat = Transformer.from_crs(cube.grid.crs.to_epsg(), 4326, always_xy=True).transform(x, y)
    june = Period.parse("2023-06")
    labels = {"x": lon, "y": lat, "label": rows // 6 % 2 + columns // 6 % 2, "site": columns}
    asked = {"valid_time_start_ms": june.start, "valid_time_end_ms": june.end}
    pd.DataFrame(labels | asked).to_csv(tmp_path / "labels.csv", index=False)
    once = ("--probe", "knn", "--shots", "max", "--baseline", "untrained", "--json")
    code, out, err = aef("eval", "--model", "nano", *once)
    document = json.loads(out)
    assert code == 0, err
    made = "warning: embeddings was made by the shipped nano, which learned from simulated landscapes"
    assert document["notes"] == [made, "25 labels ask embeddings for periods it does not hold: embedded here"]
    assert {row["field"] for row in document["results"]} == {"embeddings", "untrained"}
    unnamed = json.loads(aef("eval", *once)[1])
    assert (unnamed["notes"], unnamed["results"]) == (document["notes"], document["results"])


def test_training_goes_on_from_the_shipped_run_by_its_name(aef: Aef, tmp_path: Path) -> None:
    made_up_cube(tmp_path / "cube.zarr", side=32, hole=False)
    small = ("train.batch=2", "train.agree=1", "data.windows=2", "loss.targets=1")
    code, out, err = aef("train", "--from", "nano", "--steps", "1", *(f"--set={word}" for word in small), "--json")
    assert (code, json.loads(out)["notes"][0]) == (0, f"warning: {USING}"), err
    assert "the weights of nano, whose card" in (tmp_path / "runs" / "nano-001" / "card.md").read_text()
