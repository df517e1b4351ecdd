"""The made-up world itself: what grows, what happens, what the sensors see of it, and how hard it is to tell."""

from __future__ import annotations

import ast
import dataclasses
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rasterio.warp import transform
from scipy.ndimage import find_objects

from aefcli.baselines import DESIGNED, designed
from aefcli.cube import cube_of, open_cube, write_cube
from aefcli.extent import Period, Tile
from aefcli.probe import best, evaluate, labels_of, read_labels
from aefcli.sample import normalise
from aefcli.simulate import archive, events, imagine, kinds, others, simulate
from aefcli.simulate import world as memory
from aefcli.simulate.canvas import Canvas
from aefcli.simulate.climate import LATITUDES, draw_climate
from aefcli.simulate.kinds import CLASSES, CODE, CROPS, KINDS
from aefcli.simulate.labels import TASKS, edges, tables
from aefcli.simulate.land import NORTH, WEST, Grid, Site, draw_site
from aefcli.simulate.latents import latents
from aefcli.simulate.optics import reflectance
from aefcli.simulate.passes import LANDSAT, S1, S2, Pass, passes
from aefcli.simulate.radar import LOOKS, backscatter, speckled
from aefcli.simulate.season import canopy_on
from aefcli.simulate.sky import sky_of
from aefcli.simulate.streams import stream
from aefcli.simulate.world import observe
from aefcli.sources import SOURCES

YEARS = (2022, 2023)
SITES, SIZE = 3, 48
YEAR = np.arange(365)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every eighth pass."""
    for module in (memory, archive):
        monkeypatch.setattr(module, "passes", lambda *plan: passes(*plan)[::8])


@pytest.fixture(scope="module")
def land() -> list[Site]:
    """Many sites: drawing one takes some milliseconds."""
    return [draw_site(6, site, 64, *YEARS) for site in range(60)]


@pytest.fixture(scope="module")
def truth(land: list[Site]) -> dict[str, pd.DataFrame]:
    return tables(6, Grid(len(land), 64), land, YEARS)


def pixel_of(table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the rectangle."""
    east, north = transform("EPSG:4326", "EPSG:32633", table.x.to_numpy(), table.y.to_numpy())
    row, col = (NORTH - np.array(north)) / 10 - 0.5, (np.array(east) - WEST) / 10 - 0.5
    assert np.abs(row - np.rint(row)).max() < 1e-3
    return np.rint(row).astype(int), np.rint(col).astype(int)


def painted(site: Site, name: str) -> Site:
    """The same land with one class on every parcel, where nothing happens."""
    code = CODE[name]
    calm = dataclasses.replace(
        site.events, what=0 * site.events.what, year=0 * site.events.year, old=0 * site.events.old,
        new=0 * site.events.new,
    )  # fmt: skip
    return dataclasses.replace(
        site, kind=np.full_like(site.kind, code), grown=np.full_like(site.grown, code), events=calm
    )


# ------------------------------------------------------------------------------------------------------------- classes


def test_there_are_22_classes_in_7_groups_and_ten_crops():
    assert len(CLASSES) == len(set(CLASSES)) == 22
    assert {kind.group for kind in KINDS} == set(kinds.GROUPS)
    assert len(kinds.GROUPS) == 7
    assert [kind.group for kind in KINDS[:CROPS]] == ["crop"] * 10
    assert KINDS[CROPS].group != "crop"


@pytest.mark.parametrize(
    ("pair", "differ"),
    [
        (("wheat", "barley"), {"up", "down", "harvest"}),
        (("soy", "sunflower"), {"volume", "bounce", "grade"}),
        (("broadleaf", "plantation"), {"volume", "bounce"}),
        (("grassland", "pasture"), {"cuts", "bite", "map"}),
        (("orchard", "savanna"), {"up", "down", "floor", "grain", "map", "tall"}),
    ],
)
def test_twins_differ_in_what_they_should_and_in_nothing_else(pair, differ):
    assert pair in (*kinds.TWINS, *kinds.RADAR_TWINS)
    mine, yours = (dataclasses.asdict(KINDS[CODE[name]]) for name in pair)
    assert {key for key in mine if mine[key] != yours[key]} == {"name", *differ}


def test_the_cereals_are_apart_by_a_twentieth_of_thermal_time(land):
    wheat, barley = (KINDS[CODE[name]] for name in ("wheat", "barley"))
    for when in ("up", "down", "harvest"):
        assert getattr(wheat, when) - getattr(barley, when) == pytest.approx(0.05)
    days = np.arange(0, 300)
    site = next(site for site in land if not site.climate.south)
    green = [canopy_on(painted(site, name), days).green for name in ("wheat", "barley")]
    faded = [(one[:, ::-1] > 0.4).argmax(1) for one in green]  # from the end: when it was green last
    apart = faded[1] - faded[0]
    assert 3 <= np.median(apart) <= 25


def test_twins_of_radar_are_equal_to_the_eye_on_every_day(land):
    days, site = np.arange(5, 365, 40), land[0]
    for pair in kinds.RADAR_TWINS:
        one, other = (painted(site, name) for name in pair)
        assert np.array_equal(reflectance(one, days), reflectance(other, days))
        power = [10 * np.log10(backscatter(each, np.arange(0, 365, 15), np.zeros(25, int))) for each in (one, other)]
        assert np.abs(power[0] - power[1]).mean((2, 3)).max() > 0.8


# ------------------------------------------------------------------------------------------------------------- seasons


def test_both_hemispheres_have_their_summer(land):
    south = np.array([site.climate.south for site in land])
    assert (south.reshape(-1, 3).sum(1) == 1).all()
    for site in land[:20]:
        warmest = np.argsort(site.climate.at(site.climate.celsius, YEAR))[-60:]
        off = warmest - (15 if site.climate.south else 197)
        assert abs(np.angle(np.exp(2j * np.pi * off / 365).mean())) * 365 / (2 * np.pi) < 40


def test_dates_differ_by_region_because_the_warmth_does(land):
    """The day on which maize is half green, in the north; thermal time is the same."""
    dates, warmth = [], []
    for site in [site for site in land if not site.climate.south][:25]:
        green = canopy_on(painted(site, "maize"), YEAR).green.mean(0)
        dates.append(int((green > 0.4).argmax()))
        warmth.append(site.climate.mean)
        heat = site.climate.thermal(0, np.array(dates[-1:]))[0]
        assert abs(heat - KINDS[CODE["maize"]].up) < 0.06
    assert np.ptp(dates) > 25
    assert np.corrcoef(dates, warmth)[0, 1] < -0.6


def test_special_seasons(land):
    site = next(site for site in land if not site.climate.south)
    curves = {name: canopy_on(painted(site, name), YEAR) for name in CLASSES}
    assert curves["rapeseed"].flower.max(1).mean() > 0.3
    assert ((curves["rapeseed"].flower > 0.1).sum(1) < 50).all()
    assert curves["rice"].water.max() > 0.7
    assert curves["water"].green.max() == curves["bare"].green.max() == 0
    assert curves["conifer"].green.min() > 0.4
    assert np.ptp(curves["broadleaf"].green, 1).mean() > 0.5
    mown = (np.diff(curves["meadow"].green, axis=1) < -0.12).sum(1)
    assert mown.max() >= 3
    assert (np.diff(curves["grassland"].green, axis=1) < -0.12).sum() == 0
    first, second = curves["double_crop"].green[:, :190].max(1), curves["double_crop"].green[:, 200:].max(1)
    between = curves["double_crop"].green[:, 120:260].min(1)
    assert (np.minimum(first, second) > between + 0.2).mean() > 0.8


def test_winter_crops_stand_over_new_year_without_a_jump(land):
    site = next(site for site in land if not site.climate.south)
    green = canopy_on(painted(site, "wheat"), np.array([364, 365])).green
    assert np.abs(np.diff(green)).max() < 0.06
    assert green.mean() > 0.1


def test_a_dry_year_shows_in_the_green_and_less_where_there_is_water(land):
    site = next(site for site in land if not site.climate.south and 0.1 < (site.irrigated).mean() < 0.9)
    parched = dataclasses.replace(site.climate, wet=np.full_like(site.climate.wet, 0.15))
    for rows, least, most in ((~site.irrigated, 0.25, 0.45), (site.irrigated, 0.0, 0.1)):
        lush = dataclasses.replace(site.climate, wet=np.full_like(site.climate.wet, 0.6))
        dry, wet = (
            canopy_on(dataclasses.replace(painted(site, "maize"), climate=climate), YEAR).green[rows].max(1)
            for climate in (parched, lush)
        )
        assert least < np.median(1 - dry / wet) < most


# -------------------------------------------------------------------------------------------------------------- events


def happened(land: list[Site], what: int) -> list[tuple[Site, int]]:
    return [(site, row) for site in land for row in np.flatnonzero(site.events.what == what).tolist()]


def test_all_events_happen_and_only_some_change_the_group_of_the_land(land, truth):
    table = truth["change"]
    assert set(table.event) == set(events.NAMES)
    changed = table.label_before != table.label_after
    assert (changed == (table.label == 1)).all()
    names = {events.NAMES[what] for what in events.CHANGES}
    assert (changed == table.event.isin(names)).all()
    assert 0.25 < changed.mean() < 0.55
    assert (table.valid_time_end_before_ms == table.valid_time_start_after_ms).all()
    rotated = table[(table.event == "none") & (table.label_before == 0)]
    assert len(rotated) > 20  # fields with another crop each year have not changed


def test_fires_and_floods_pass_and_felled_woods_stay_felled(land):
    for what, back in ((events.FIRE, True), (events.FLOOD, True), (events.CLEARCUT, False)):
        found = happened(land, what)
        assert found
        for site, row in found[:6]:
            calm = dataclasses.replace(site, events=dataclasses.replace(site.events, what=0 * site.events.what))
            middle = int(site.events.day[row])
            days = np.array([middle + 8, middle + 500])
            lost = canopy_on(calm, days).standing[row] - canopy_on(site, days).standing[row]
            if back:
                assert abs(lost[1]) < 0.02
            else:
                structure = [kinds.table("tall")[site.kind[year, row]] for year in (0, 1)]
                assert structure[0] > 10 > structure[1]


def test_what_changes_takes_its_time(land):
    """Nothing but a clear-cut is abrupt: building takes months, thinning weeks and leaves most of the wood."""
    days = np.arange(-400, 900)
    for what, least, most in ((events.BUILDING, 60, 200), (events.THINNING, 20, 90), (events.CLEARCUT, 1, 8)):
        site, row = happened(land, what)[0]
        done = site.events.done(days)[row]
        assert least < ((done > 0.1) & (done < 0.9)).sum() < most
    site, row = happened(land, events.THINNING)[0]
    assert 0.35 < site.events.left(1)[row] < 0.8


def test_nothing_happens_in_a_world_of_one_year():
    site = draw_site(6, 0, 64, 2023, 2023)
    assert not site.events.what.any()
    assert "change" not in tables(6, Grid(1, 64), [site], (2023, 2023))


def test_crops_rotate_in_the_north_and_all_else_stays(land):
    for site in land[:10]:
        crop = (site.kind[0] < CROPS) & (site.events.what == 0)
        other = (site.kind[0] >= CROPS) & (site.events.what == 0)
        assert (site.kind[0] != site.kind[1])[crop].all() != site.climate.south
        assert (site.kind[0] == site.kind[1])[other].all()


# ------------------------------------------------------------------------------------------------------------- sensors


def test_clouds_leave_a_little_less_than_half_and_a_third_of_the_haze_escapes():
    plan = [one for seed in range(4) for one in passes(seed, 2022, 2022) if one.collection == S2]
    hazy, missed, slips, clear = [], [], [], []
    for site in range(12):
        rngs = [stream(9, site, frame) for frame in range(len(plan))]
        sky = sky_of(rngs, plan, float(stream(8, site).normal(0, 0.4)), 48)
        there = sky.haze.max((1, 2)) > 0
        hazy.append(there.mean())
        missed += (sky.noticed[there] == 0).tolist()
        slips.append((sky.slip > 0).mean())
        told = sky.flags()
        clear.append(((told[0] < 0.2) & (told[1] < 0.25) & (told[2] < 0.04)).mean())
    assert 0.38 < np.mean(clear) < 0.52
    assert 0.27 < np.mean(missed) < 0.40
    assert 0.02 < np.mean(slips) < 0.09
    assert 0.3 < np.mean(hazy) < 0.5


def test_speckle_has_about_five_looks_and_many_sites_see_one_orbit(land):
    plan = [Pass(S1, day, day, 0, datetime(2022, 1, 1, tzinfo=UTC)) for day in range(0, 60, 6)]
    site = dataclasses.replace(
        next(site for site in land if not (site.kind[0] == kinds.WATER).any()), orbits=(True, True)
    )
    ratio = speckled(6, site, plan) / backscatter(site, np.array([one.day for one in plan]), np.zeros(10, int))
    assert ratio.mean() == pytest.approx(1, abs=0.02)
    assert 1 / ratio.var() == pytest.approx(LOOKS, rel=0.05)
    single = np.mean([sum(site.orbits) == 1 for site in land])
    assert 0.4 < single < 0.8
    assert all(any(site.orbits) for site in land)


def test_one_more_site_leaves_the_others_as_they_were(short):
    world, more = (imagine(5, sites, SIZE, YEARS) for sites in (SITES, SITES + 1))
    for name in ("sentinel-2", "sentinel-1"):
        for band in world.datasets[name]:
            mine, theirs = world.datasets[name][band], more.datasets[name][band]
            if mine.dims == ("time", "y", "x"):
                assert np.array_equal(mine[:, :SIZE], theirs[:, :SIZE])
                assert np.array_equal(mine[:, SIZE:, :SIZE], theirs[:, SIZE:, :SIZE])
    for task, table in world.truth.items():
        theirs = more.truth[task][more.truth[task].site < SITES].reset_index(drop=True)
        pd.testing.assert_frame_equal(table, theirs)


def test_a_pass_is_the_same_alone_and_among_others():
    grid, plan = Grid(2, 32), passes(4, *YEARS)
    land = [draw_site(4, site, 32, *YEARS) for site in range(2)]
    for collection in (S2, S1, LANDSAT):
        some = [one for one in plan if one.collection == collection][:5]
        whole, alone = observe(4, grid, land, some), observe(4, grid, land, some[3:4])
        for key, stack in whole.items():
            assert np.array_equal(stack[3], alone[key][0])


def test_memory_and_disk_hold_the_same_world(tmp_path, short):
    import rasterio

    held = imagine(2, 2, 32, (2023, 2023))
    made = simulate(tmp_path / "out", seed=2, sites=2, size=32)
    for name, collection, keys in (("sentinel-1", S1, {"vv": "VV"}), ("landsat", LANDSAT, {"red": "B4"})):
        scenes = sorted((made.catalog.parent / collection).glob("*/*.json"))
        dataset = held.datasets[name]
        assert len(scenes) == dataset.sizes["time"]
        for key, band in keys.items():
            files = {}
            for scene in scenes:
                with rasterio.open(scene.with_name(f"{key}.tif")) as file:
                    files[scene.name.split("T1_")[0]] = file.read(1)
            stored = {values.tobytes() for values in files.values()}
            assert stored == {values.tobytes() for values in dataset[band].to_numpy()}
    pd.testing.assert_frame_equal(held.truth["cover"], pd.read_parquet(made.labels))


def test_every_source_goes_through_the_door_of_the_cube(tmp_path, short):
    world = imagine(5, 2, 32, YEARS)
    datasets = world.datasets | {"gedi": world.datasets["gedi"][["RH0", "RH50", "RH100"]]}  # a hundred take long
    assert list(datasets) == [
        "sentinel-2", "sentinel-1", "landsat", "glo-30", "era5-land", "gedi", "palsar-2", "grace", "nlcd",
    ]  # fmt: skip
    cube = open_cube(write_cube(tmp_path / "cube.zarr", datasets, world.period))
    held = cube_of(datasets, world.period)
    whole = Tile(0, 0, *cube.shape)
    for name, source in cube.sources.items():
        frames = np.arange(len(source.times))
        values, there = normalise(source.read(whole, frames)[0], source, frames, {})
        again, _ = normalise(held.sources[name].read(whole, frames)[0], held.sources[name], frames, {})
        assert np.array_equal(values, again)
        assert there.any(), name
        if SOURCES[name].kind == "continuous":
            spread = np.abs(values.transpose(1, 0, 2, 3)[:, there])
            assert np.median(spread) < 3, name  # sigmas of real data
    period = world.period
    for name, dataset in world.datasets.items():
        moments = dataset.time.to_numpy().astype("int64")
        assert ((moments >= period.start) & (moments < period.end)).all(), name


def test_tracks_are_thin_and_tell_of_height(land):
    lidar = others.rasters(6, Grid(9, 64), land[:9], YEARS)["gedi"].bands
    there = ~np.isnan(lidar["RH100"])
    assert 0.001 < there.mean() < 0.05
    profile = np.stack([lidar[f"RH{n}"][there] for n in range(101)])
    assert (np.diff(profile, axis=0) >= 0).all()
    assert profile[100].max() > 8


def test_captions_are_long_enough_and_name_no_class(land):
    captions = others.captions(6, Grid(len(land), 64), land, YEARS)
    assert len(captions) == 2 * len(land)
    words = [set(text.lower().replace(".", " ").replace(",", " ").split()) for text in captions.text]
    assert min(len(text.split()) for text in captions.text) >= 100
    said = set().union(*words)
    named = {part for kind in KINDS for part in (*kind.name.split("_"), *kind.group.split())} - {"open", "water"}
    assert not said & (named | {f"{name}s" for name in named} | {"wood", "woods", "field", "fields", "tree", "trees"})


# -------------------------------------------------------------------------------------------------------------- labels


def test_points_keep_their_distance_and_classes_their_balance(land, truth):
    table = truth["cover"].drop_duplicates(["x", "y"])
    assert table.groupby("site").size().between(38, 45).all()
    counts = truth["crops"].label_name.value_counts()
    assert set(counts.index) == set(CLASSES[:CROPS])
    assert counts.min() > 0.5 * counts.max()
    row, col = pixel_of(table)
    apart = np.hypot(row[:, None] - row, col[:, None] - col) + 1e9 * np.eye(len(row))
    assert apart.min() >= 4
    for site in land[:8]:
        here = (table.site == site.number).to_numpy()
        parcel = site.parcel[row[here] % 64, col[here] % 64]
        assert np.bincount(parcel).max() <= 4


def test_every_table_is_read_and_holds_what_the_land_holds(land, truth, tmp_path):
    assert tuple(truth) == TASKS
    for task, table in truth.items():
        table.to_parquet(tmp_path / f"{task}.parquet")
        read, held = read_labels(tmp_path / f"{task}.parquet"), labels_of(table)
        assert len(read) == len(held) == len(table)
        assert (read.kind == "value") == (task in ("yield", "height"))
        assert read.site is not None
        row, col = pixel_of(table)
        assert (table.site == row // 64 * 8 + col // 64).all()
        if "label_name" in table:
            year = (table.valid_time_start_ms > Period.parse("2022").start).to_numpy().astype(int)
            kind = [
                land[site].kind[at, land[site].parcel[y % 64, x % 64]]
                for site, at, y, x in zip(table.site, year, row, col, strict=True)
            ]
            assert kind == table.label.tolist()
    assert set(truth["sar"].label_name) == {name for pair in kinds.RADAR_TWINS for name in pair}
    assert set(truth["twins"].label_name) == {name for pair in kinds.TWINS for name in pair}


def test_edges_are_distances_to_another_class():
    kind = np.zeros((9, 12), int)
    kind[:, 7:] = 3
    assert edges(kind)[4].tolist() == [7, 6, 5, 4, 3, 2, 1, 1, 2, 3, 4, 5]
    assert (edges(np.zeros((4, 4), int)) == 4).all()


def test_means_are_those_of_the_pixels_that_exist():
    grid, rng = Grid(3, 35), np.random.default_rng(0)
    stack = rng.random((3, 35, 35), np.float32)
    whole = np.full((72, 72), np.nan)
    whole[:35, :35], whole[:35, 35:70], whole[35:70, :35] = stack
    for factor in (2, 3):
        canvas = Canvas(grid, factor, 1)
        for site, square in enumerate(stack):
            canvas.add(site, square[None])
        means = canvas.mean()[0]
        assert means.shape == grid.shape(10 * factor)
        for row, col in np.ndindex(means.shape):
            cell = whole[row * factor : (row + 1) * factor, col * factor : (col + 1) * factor]
            known = cell[~np.isnan(cell)]
            assert means[row, col] == pytest.approx(known.mean() if known.size else np.nan, nan_ok=True, abs=1e-6)


def test_parcels_of_a_large_site_keep_apart():
    site = draw_site(1, 0, 700, 2023, 2023)
    scattered = np.isin(site.kind[0], [kinds.WATER, kinds.TOWN, kinds.ROAD, CODE["wetland"]])
    boxes = find_objects(site.parcel + 1)
    assert (
        max(side.stop - side.start for box, many in zip(boxes, scattered, strict=True) if not many for side in box) < 80
    )


def test_coordinates_tell_nothing_of_the_climate():
    """The latitude is drawn: it is no function of the place, nor of how many sites there are."""
    means = [draw_climate(seed, 0, *YEARS).mean for seed in range(40)]
    assert np.ptp(means) > 0.3 * (LATITUDES[1] - LATITUDES[0])


# ---------------------------------------------------------------------------------------------------------- difficulty


def test_the_oracle_knows_the_crops_and_its_latents_have_no_noise(land, truth):
    """1-NN over the latents of other sites; the twins by season are what it errs on."""
    table = truth["crops"]
    row, col = pixel_of(table)
    year = (table.valid_time_start_ms > Period.parse("2022").start).to_numpy().astype(int)
    states = [np.stack([latents(site, one) for one in (0, 1)]) for site in land]
    known = np.stack(
        [
            states[site][at][:, land[site].parcel[y % 64, x % 64]]
            for site, at, y, x in zip(table.site, year, row, col, strict=True)
        ]
    )
    test, label = (table.site % 3 == 0).to_numpy(), table.label.to_numpy()
    near = ((known[test][:, None] - known[~test][None]) ** 2).sum(-1).argmin(1)
    hit = label[~test][near] == label[test]
    recall = [hit[label[test] == crop].mean() for crop in range(CROPS)]
    assert np.mean(recall) > 0.9
    assert min(recall[2:]) > 0.93


@pytest.mark.slow
def test_it_is_as_hard_as_it_was():
    """240 sites, split by site, best transfer at max; without radar too. Takes three minutes on one core."""
    world = imagine(200, 240, 64, YEARS)
    cube = cube_of({name: world.datasets[name] for name in ("sentinel-2", "sentinel-1", "landsat")}, world.period)
    blind = dataclasses.replace(cube, sources={n: one for n, one in cube.sources.items() if n != "sentinel-1"})
    names = [name for name in DESIGNED if name not in ("xyz", "mosaiks")]
    found = {}
    for task in ("crops", "sar"):
        table = world.truth[task]
        row, col = pixel_of(table)
        year = (table.valid_time_start_ms > Period.parse("2022").start).to_numpy().astype(int)
        periods, every = [Period.parse(str(one)) for one in YEARS], np.arange(len(table))
        fields = {f"{n}": one[every, year] for n, one in designed(cube, names, row, col, periods).items()}
        without = designed(blind, [name for name in names if name != "xy"], row, col, periods)
        fields |= {f"{name}, no radar": one[every, year] for name, one in without.items()}
        fields["oracle"] = world.oracle[year, :, row, col]
        done = evaluate(fields, labels_of(table), task=task, shots=("max",), max_folds=4)
        found[task] = {name: best(done, name, "max")[1] for name in fields}
    for task, scores in found.items():
        eyes = {name: score for name, score in scores.items() if name not in ("oracle", "xy")}
        told = {dark: max(eyes[name] for name in eyes if name.endswith("no radar") == dark) for dark in (False, True)}
        assert told[False] - told[True] > 0.05, (task, scores)
    crops = found["crops"]
    assert crops["oracle"] > 0.9
    assert 0.5 < max(crops[name] for name in names) < 0.7, crops
    assert 0.25 < crops["composite"] < 0.42
    assert crops["xy"] < 0.15


def test_nothing_that_learns_or_embeds_can_reach_the_world():
    """Only the command line and the suites import it; the rest has what fetch reads."""
    package = Path(simulate.__code__.co_filename).parent.parent
    reached = set()
    for path in package.rglob("*.py"):
        own = path.relative_to(package).parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            module = node.module or "" if isinstance(node, ast.ImportFrom) else ""
            if any(f"{module}.{name}".lstrip(".").startswith("aefcli.simulate") for name in names):
                reached.add(own)
    assert "cli" in reached
    assert reached <= {"simulate", "cli", "suite"}
