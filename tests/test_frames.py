"""Items into frames: numbers, duplicates, passes, years; held to recorded real answers."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pystac
import pytest
from items import HERE, LANDSAT, S1, S2, WORLD, YEAR, catalog_of, item, mapped

from aefcli import stac
from aefcli.cube import frames_of
from aefcli.cube.derive import slope_and_aspect
from aefcli.cube.frames import boa_offset, is_doubtful, keep, offset_of
from aefcli.extent import BBox, Period
from aefcli.sources import SOURCES

# ---------------------------------------------------------------- recorded real answers


def recorded(real: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every item in the answers, with the folder it lies in."""
    for path in sorted((real / "stac-answers").rglob("*")):
        document = json.loads(path.read_text()) if path.suffix in (".json", ".geojson") else []
        if isinstance(document, dict) and document.get("type") in ("Feature", "FeatureCollection"):
            yield from ((path.parent.name, one) for one in document.get("features", [document]))


def test_every_recorded_item_is_understood_or_refused_with_a_reason(real: Path, tmp_path: Path) -> None:
    """One at a time, as the sources that its collection names, or that name none, could read it."""
    understood, reasons, unclaimed = Counter[str](), Counter[str](), Counter[str]()
    for where, one in recorded(real):
        found = catalog_of(tmp_path, one)
        (collection,) = found.collections
        (read,) = found.search(collection, WORLD, None)
        serving = [s for s in SOURCES.values() if collection in (*s.collections, *s.knowingly, "")]
        if not serving:
            unclaimed[collection] += 1
        for source in serving:
            row = source.of(collection)
            kept, dropped = keep([read], row, YEAR)
            if not kept:
                assert sum(dropped.values()) == 1
                reasons[next(iter(dropped))] += 1
                continue
            (frame,) = frames_of(kept, row)
            assert frame.items == (read,)
            assert any(frame.delivered)
            assert np.isfinite([frame.scale, frame.offset]).all()
            understood[f"{where}/{source.name}"] += 1
    assert understood == {
        "odc-stac/sentinel-2": 25,
        "odc-stac/landsat": 1,
        "pystac-client/sentinel-2": 52,
        "pystac-client/sentinel-1": 3,
        "pystac-client/landsat": 27,
        "pgstac/sentinel-1": 1,
        "stactools-sentinel2/sentinel-2": 14,
        "stactools-landsat/landsat": 2,
    }
    assert set(unclaimed) == {"fc_percentile_albers_annual", "landsat-c2-l1", "landsat-c2l2-st", "lidar_collection"}
    assert reasons["whose landsat:collection_category is not T1 or RT"] > 20
    assert reasons["without a band of sentinel-2"] == 11  # asked for without assets, and one of another sensor


@pytest.mark.filterwarnings("ignore:Could not parse bucket")
def test_offsets_of_recorded_items_are_those_that_honest_catalogs_announce(real: Path) -> None:
    """All but earth-search's older collections of L2A, of which every recorded item had its offset removed."""
    compared = 0
    for _, one in recorded(real):
        if "blue" not in one.get("assets", {}) or not one["properties"].get("platform", "").startswith("sentinel-2"):
            continue
        read = pystac.Item.from_dict(one)
        announced = read.assets["blue"].extra_fields["raster:bands"][0]["offset"]
        (frame,) = frames_of([read], S2)
        removed = read.properties.get("earthsearch:boa_offset_applied")
        assert frame.offset[0] == (0.0 if removed else announced), read.id
        compared += 1
    assert compared > 30


@pytest.mark.filterwarnings("ignore:Could not parse bucket")
def test_the_same_scene_in_three_collections_differs_by_its_offset_alone(real: Path) -> None:
    """L1C and collection 1 keep the +1000, the older collection of L2A has it removed; all announce it."""
    scene = [one for _, one in recorded(real) if one["properties"].get("grid:code") == "MGRS-24MUV"]
    found = {one["collection"]: frames_of([pystac.Item.from_dict(one)], S2)[0] for one in scene}
    assert {collection: frame.offset for collection, frame in found.items()} == {
        "sentinel-2-c1-l2a": (-0.1,) * 5,
        "sentinel-2-l1c": (-0.1,) * 5,
        "sentinel-2-l2a": (0.0,) * 5,
    }
    assert len({frame.time for frame in found.values()}) == 1


# ---------------------------------------------------------------- numbers


@pytest.mark.parametrize(
    ("asset", "scale", "offset"),
    [
        ({}, 2.75e-5, -0.2),
        ({"raster:bands": []}, 2.75e-5, -0.2),
        ({"raster:bands": [{}]}, 2.75e-5, -0.2),
        ({"raster:bands": None}, 2.75e-5, -0.2),
        ({"raster:bands": ["x"]}, 2.75e-5, -0.2),
        ({"raster:bands": {"scale": 2.0, "offset": 1.0}}, 2.0, 1.0),
        ({"raster:bands": [{"scale": 2, "offset": 1}]}, 2.0, 1.0),
        ({"raster:bands": [{"scale": [2.0], "offset": [1.0]}]}, 2.0, 1.0),
        ({"raster:bands": [{"scale": "2", "offset": True}]}, 2.75e-5, -0.2),
        ({"raster:bands": [{"scale": 0, "offset": 0}]}, 2.75e-5, -0.2),
        ({"raster:bands": [{"scale": float("nan"), "offset": 0.5}]}, 2.75e-5, 0.5),
        ({"raster:bands": [{"offset": 0}]}, 2.75e-5, 0.0),
        ({"raster:scale": 2.0, "raster:offset": 1.0}, 2.0, 1.0),  # STAC 1.1
        ({"bands": [{"raster:scale": 2.0, "raster:offset": 1.0}]}, 2.0, 1.0),
    ],
)
def test_scale_and_offset_as_catalogs_announce_them(asset: dict[str, Any], scale: float, offset: float) -> None:
    (frame,) = frames_of([item(collection="landsat-c2-l2", assets={"blue": asset})], LANDSAT)
    assert (frame.scale[0], frame.offset[0]) == (scale, offset)
    assert frame.delivered == (True, False, False, False, False, False)


@pytest.mark.parametrize(
    ("changes", "offset"),
    [
        ({"collection": "sentinel-2-l1c"}, -0.1),
        ({"collection": "sentinel-2-l1c", "s2__processing_baseline": "03.01"}, 0.0),
        ({"collection": "sentinel-2-pre-c1-l2a", "s2__processing_baseline": "04.00"}, -0.1),
        ({"collection": "sentinel-s2-l2a-cogs", "sentinel__boa_offset_applied": True}, 0.0),
        ({"s2__processing_baseline": None, "s2__datatake_id": None, "processing__version": "05.11"}, -0.1),
        ({"s2__processing_baseline": None, "s2__datatake_id": None,
          "sentinel__product_id": "S2A_MSIL2A_20200714T115221_N0214_R123_T28QCH_20200714T191310"}, 0.0),
    ],
)  # fmt: skip
def test_offset_by_collection_baseline_and_names(changes: dict[str, Any], offset: float) -> None:
    assert boa_offset(item(**changes)) == offset


def test_an_announced_offset_is_taken_where_the_catalog_can_be_believed() -> None:
    """ESA states it per band in its metadata; below baseline 04.00 there is none, whatever is announced."""
    assets = {"blue": {"raster:bands": [{"offset": -0.7}]}, "red": {}, "scl": {}}
    assert frames_of([item(assets=assets)], S2)[0].offset[:3] == (-0.7, -0.1, -0.1)
    assert frames_of([item(assets=assets, s2__processing_baseline="03.01")], S2)[0].offset == (0.0,) * 5
    lying = item(assets=assets, earthsearch__boa_offset_applied=True)
    assert frames_of([lying], S2)[0].offset == (0.0,) * 5
    nameless = {"s2__processing_baseline": None, "s2__datatake_id": None}
    assert frames_of([item(assets=assets, **nameless)], S2)[0].offset[0] == -0.7


def test_a_baseline_that_nothing_tells_is_no_baseline() -> None:
    nothing = {"s2__processing_baseline": None, "s2__datatake_id": None}
    odd = {"s2__processing_baseline": "new", "s2__datatake_id": "x"}
    kept, dropped = keep([item("a"), item("b", **nothing), item("c", **odd)], S2, YEAR)
    assert [one.id for one in kept] == ["a"]
    assert dropped == {"without a processing baseline, so that their numbers cannot be read": 2}


def test_doubtful_flags_are_settled_by_the_pixels() -> None:
    """earth-search's flag errs in one direction: the offset is said to be still there, and is not."""
    assert is_doubtful(item(earthsearch__boa_offset_applied=False))
    assert not is_doubtful(item(earthsearch__boa_offset_applied=True))
    assert not is_doubtful(item())
    assert not is_doubtful(item(earthsearch__boa_offset_applied=False, s2__processing_baseline="03.01"))
    assert not is_doubtful(item(collection="sentinel-2-c1-l2a", earthsearch__boa_offset_applied=False))
    reflectance = np.random.default_rng(0).gamma(2, 300, (64, 64))  # dark vegetation and water among it
    for added, offset in ((1000, -0.1), (0, 0.0)):
        stored = np.round(reflectance + added).astype("uint16") + 1
        stored[:8] = 0  # not delivered
        assert offset_of(stored) == offset
    assert offset_of(np.zeros((4, 4), "uint16")) == -0.1


def test_real_pixels_settle_their_offset(real: Path) -> None:
    """These items have it removed, as their flag says and raster:bands do not."""
    import rasterio

    seen = 0
    for path in sorted((real / "earth-search-33T").glob("sentinel-2-l2a/*/B04.tif")):
        with rasterio.open(path) as file:
            numbers = file.read(1)
        if np.percentile(numbers[numbers > 0], 50) < 3000:  # not all under cloud
            assert offset_of(numbers) == 0.0
            assert offset_of(numbers + np.uint16(1000) * (numbers > 0)) == -0.1
            seen += 1
    assert seen >= 5


# ---------------------------------------------------------------- offsets, duplicates, passes


@pytest.mark.parametrize(
    ("changes", "offset"),
    [
        ({"earthsearch__boa_offset_applied": True}, 0.0),
        ({"earthsearch__boa_offset_applied": False}, -0.1),
        ({}, -0.1),
        ({"s2__processing_baseline": "03.01"}, 0.0),
        ({"s2__processing_baseline": "02.14", "earthsearch__boa_offset_applied": False}, 0.0),
        ({"s2__processing_baseline": "04.00"}, -0.1),
        ({"s2__processing_baseline": "05.10"}, -0.1),
        # The date says nothing: old scenes are processed again, new ones came with the old baseline for a while.
        ({"s2__processing_baseline": "05.00", "datetime": "2019-01-01T10:00:00Z"}, -0.1),
        ({"s2__processing_baseline": "03.01", "datetime": "2022-02-01T10:00:00Z"}, 0.0),
        ({"collection": "sentinel-2-c1-l2a"}, -0.1),
        ({"collection": "sentinel-2-c1-l2a", "earthsearch__boa_offset_applied": True}, -0.1),
        # Baseline in the names alone.
        ({"s2__processing_baseline": None}, -0.1),
        ({"s2__processing_baseline": None, "s2__datatake_id": "GS2A_20230815T095031_042547_N03.01"}, 0.0),
        (
            {
                "s2__processing_baseline": None,
                "s2__datatake_id": None,
                "s2__product_uri": "S2A_MSIL2A_20230815T095031_N0509_R079_T33TWM_20230815T155057.SAFE",
            },
            -0.1,
        ),
    ],
)
def test_offset_is_decided_by_the_item(changes: dict[str, Any], offset: float) -> None:
    scene = item(**changes)
    assert boa_offset(scene) == offset
    assert frames_of([scene], S2)[0].offset == (offset,) * 5


def test_older_processing_of_the_same_data_is_dropped() -> None:
    old = item("S2A_33TWM_20230815_0_L2A", s2__processing_baseline="05.08", earthsearch__boa_offset_applied=True)
    new = item("S2A_33TWM_20230815_1_L2A", earthsearch__boa_offset_applied=True)
    again = item("S2A_33TWM_20230815_2_L2A", s2__generation_time="2023-08-15T15:50:56.000000Z")
    for items in ([old, new, again], [again, new, old], [new, old, again]):
        (frame,) = frames_of(items, S2)
        assert [one.id for one in frame.items] == ["S2A_33TWM_20230815_1_L2A"]


def test_tiles_of_a_pass_share_a_frame_in_order() -> None:
    late = item("A", grid__code="MGRS-33TWL", datetime="2023-08-15T09:58:11Z")
    early = item("B", datetime="2023-08-15T09:57:57Z")
    (frame,) = frames_of([late, early], S2)
    assert [one.id for one in frame.items] == ["B", "A"]
    assert frame.time == 1692093477000


def test_two_orbits_on_one_day_stay_two_frames() -> None:
    radar = [
        item(name, collection="sentinel-1-rtc", assets=("vv", "vh"), platform="sentinel-1a", datetime=when,
                sat__relative_orbit=orbit, sat__orbit_state=state, grid__code=None, s2__datatake_id=None)
        for name, when, orbit, state in (
            ("up", "2023-08-15T16:42:00Z", 73, "ascending"),
            ("down", "2023-08-15T05:10:00Z", 22, "descending"),
            ("up2", "2023-08-15T16:42:25Z", 73, "ascending"),
        )
    ]  # fmt: skip
    frames = frames_of(radar, SOURCES["sentinel-1"])
    assert [[one.id for one in frame.items] for frame in frames] == [["down"], ["up", "up2"]]
    assert [frame.orbit for frame in frames] == ["descending", "ascending"]
    assert frames[0].delivered == (True, True, False, False)


def test_items_that_number_differently_never_share_a_frame() -> None:
    neighbour = {"grid__code": "MGRS-33TWL", "earthsearch__boa_offset_applied": True}
    assert len(frames_of([item("A"), item("B", **neighbour)], S2)) == 2
    assert len(frames_of([item("A"), item("B", **neighbour | {"earthsearch__boa_offset_applied": False})], S2)) == 1
    lacking = item("B", grid__code="MGRS-33TWL", assets=("blue", "green", "red", "nir", "scl"))
    assert [frame.delivered[4] for frame in frames_of([item("A"), lacking], S2)] == [True, False]


@pytest.mark.parametrize("box", [None, [15.0, 46.0, 100.0, 15.2, 46.2, 900.0], [179.9, -17.0, -179.9, -16.0]])
def test_items_without_a_box_with_heights_or_across_180_degrees(box: list[float] | None) -> None:
    assert len(frames_of([item(bbox=box)], S2)) == 1


def test_solar_day_across_180_degrees_is_that_of_the_far_side() -> None:
    """10:30 local at 180 degrees east is 22:30 UTC of the day before: two tiles a minute apart about 12:00 solar."""
    ids = {"s2__datatake_id": None, "sat__relative_orbit": 72}
    a = item("A", bbox=[179.0, -17, 179.9, -16], datetime="2023-08-14T23:59:30Z", **ids)
    b = item("B", bbox=[179.5, -18, -179.5, -17], datetime="2023-08-15T00:00:10Z", grid__code="MGRS-60KXF", **ids)
    assert len(frames_of([a, b], S2)) == 1


# ---------------------------------------------------------------- which items, which frames


def test_what_cannot_serve_is_left_out_and_counted_by_reason() -> None:
    scenes = [
        item("good", platform="LANDSAT_8", landsat__collection_category="T1", assets=("blue", "qa_pixel")),
        item("old", platform="landsat-7", assets=("blue", "qa_pixel")),
        item("nameless", platform=None, assets=("blue", "qa_pixel")),
        item("tier", platform="landsat-9", landsat__collection_category="T2", assets=("blue", "qa_pixel")),
        item("night", platform="landsat-8", view__sun_elevation=-12.5, assets=("blue", "qa_pixel")),
        item("dawn", platform="landsat-8", view__sun_elevation=0.5, assets=("SR_B2.TIF", "QA_PIXEL.TIF")),
        item("bare", platform="landsat-8", assets=("qa_pixel",)),
        item("blind", platform="landsat-8", assets=("blue",)),
        item("cloudy", platform="landsat-8", eo__cloud_cover=60.5, assets=("blue", "qa_pixel")),
        item("fair", platform="landsat-8", eo__cloud_cover=60, assets=("blue", "qa_pixel")),
    ]
    kept, dropped = keep(scenes, LANDSAT, YEAR, max_cloud=60)
    assert [one.id for one in kept] == ["good", "dawn", "fair"]  # one that says nothing of clouds stays
    assert dropped == {
        "of other platforms": 2,
        "whose landsat:collection_category is not T1 or RT": 1,
        "taken at night": 1,
        "without a band of landsat": 1,
        "without a layer that says what is clear": 1,
        "of more than 60% cloud": 1,
    }
    assert [one.id for one in keep(scenes, LANDSAT, YEAR)[0]] == ["good", "dawn", "cloudy", "fair"]
    radar = [item(mode, sar__instrument_mode=mode, view__sun_elevation=-40, assets=("vv",)) for mode in ("IW", "EW")]
    assert keep(radar, S1, YEAR)[1] == {"whose sar:instrument_mode is not IW": 1}


def test_top_of_atmosphere_has_no_scene_classification_and_statistics_of_its_own() -> None:
    row = S2.of("sentinel-2-l1c")
    scene = item(collection="sentinel-2-l1c", assets=("blue", "green", "red", "nir", "swir16"))
    assert keep([scene], S2, YEAR)[1]
    assert keep([scene], row, YEAR) == ([scene], {})
    assert frames_of([scene], row)[0].delivered == (True,) * 5
    assert [band.name for band in row.bands] == [band.name for band in S2.bands]
    assert all(ours.mean != theirs.mean for ours, theirs in zip(row.bands, S2.bands, strict=True) if ours.name != "B11")
    assert S2.of("sentinel-2-c1-l2a") == S2.of("anything") == S2


def test_two_parts_of_a_tile_are_no_duplicates() -> None:
    """Where the reception changed within a tile, its pass comes as two products of one baseline."""
    strips = [f"S2C_OPER_MSI_L2A_DS_2CPS_20250729T2200{n}_S20250729T{start}_N05.11" for n, start in
              enumerate(("180310", "175521"))]  # fmt: skip
    parts = [
        item("up", s2__datastrip_id=strips[0], datetime="2023-08-15T18:03:19Z"),
        item("down", s2__datastrip_id=strips[1], datetime="2023-08-15T18:03:12Z"),
    ]
    (frame,) = frames_of(parts, S2)
    assert [one.id for one in frame.items] == ["down", "up"]
    newer = item("again", s2__datastrip_id=strips[1].replace("05.11", "05.12"), s2__processing_baseline="05.12")
    (frame,) = frames_of([*parts, newer], S2)
    assert [one.id for one in frame.items] == ["again"]


def test_a_newer_processing_that_covers_less_stands_first_beside_the_older() -> None:
    old = item("old", s2__processing_baseline="05.00")
    half = item("half", bbox=[15.0, 46.0, 15.1, 46.2], datetime="2023-08-15T09:58:57Z")
    other = item("other", grid__code="MGRS-33TWL", datetime="2023-08-15T09:58:10Z")
    (frame,) = frames_of([old, half, other], S2)
    assert [one.id for one in frame.items] == ["half", "other", "old"]
    assert frame.time == stac.instant(old)


def test_reprocessed_scenes_of_landsat_and_radar() -> None:
    rows = {"platform": "landsat-8", "landsat__wrs_path": "033", "landsat__wrs_row": "032", "grid__code": None}
    first = item("RT", datetime="2023-08-15T17:37:26.65Z", created="2023-08-15T22:00:00Z", **rows)
    second = item("T1", datetime="2023-08-15T17:37:26.66Z", created="2023-08-30T22:00:00Z", **rows)
    below = item("below", datetime="2023-08-15T17:37:50Z", **rows | {"landsat__wrs_row": "033"})
    (frame,) = frames_of([second, below, first], LANDSAT)
    assert [one.id for one in frame.items] == ["T1", "below"]
    name = "S1A_IW_GRDH_1SDV_20220428T034417_20220428T034442_042968_05213C"
    radar = {"assets": ("vv",), "s2__datatake_id": None, "grid__code": None, "platform": "SENTINEL-1A"}
    twice = [item(f"{name}_28ED_rtc", created="2022-05-01", **radar), item(f"{name}_91AA_rtc", created="2023", **radar)]
    (frame,) = frames_of(twice, S1)
    assert [one.id for one in frame.items] == [f"{name}_91AA_rtc"]


def test_passes_without_a_track_are_told_apart_by_time() -> None:
    bare = {"assets": ("vv",), "s2__datatake_id": None, "grid__code": None, "platform": "sentinel-1a"}
    times = ("05:10:00", "05:10:25", "16:42:00", "16:42:25")
    radar = [item(when, datetime=f"2023-08-15T{when}Z", **bare) for when in times]
    assert [[one.id for one in frame.items] for frame in frames_of(radar, S1)] == [list(times[:2]), list(times[2:])]


def test_static_sources_give_the_nearest_mapped_years() -> None:
    crops = SOURCES["cdl"]
    years = [mapped(f"{year}", year, assets=("cropland",)) for year in (2008, 2019, 2021, 2022)]

    def chosen(period: str) -> list[str]:
        return [one.id for one in keep(years, crops, Period.parse(period))[0]]

    assert chosen("2021") == ["2021"]
    assert chosen("2021-06:2022-05") == ["2021"]
    assert chosen("2021-09:2022-08") == ["2022"]
    assert chosen("2020") == ["2021"]  # 2019 is farther by a leap day
    assert chosen("2024") == ["2022"]
    assert chosen("1990") == ["2008"]
    assert chosen("2021:2022") == ["2021", "2022"]
    assert chosen("2019:2023") == ["2019", "2021", "2022"]
    assert keep(years, crops, Period.parse("2021"))[1] == {"of other years": 3}
    (frame,) = frames_of(keep(years, crops, Period.parse("2021"))[0], crops)
    assert np.datetime64(frame.time, "ms").astype("datetime64[D]") == np.datetime64("2021-07-02")


def test_each_tile_of_a_static_source_has_its_own_nearest_year() -> None:
    """Mosaics are not made everywhere each year; tiles of one year are one frame."""
    east = {"bbox": [15.2, 46.0, 15.4, 46.2]}
    tiles = [mapped("w20", 2020, assets=("map",)), mapped("w21", 2021, assets=("map",)),
             mapped("e20", 2020, assets=("map",), **east)]  # fmt: skip
    cover = SOURCES["worldcover"]
    kept, _ = keep(tiles, cover, Period.parse("2021"))
    assert [[one.id for one in frame.items] for frame in frames_of(kept, cover)] == [["e20"], ["w21"]]
    kept, _ = keep(tiles, cover, Period.parse("2020"))
    assert [[one.id for one in frame.items] for frame in frames_of(kept, cover)] == [["e20", "w20"]]


def test_heights_of_all_tiles_are_one_frame_whose_other_bands_are_derived() -> None:
    heights = SOURCES["glo-30"]
    same = {"datetime": "2021-04-22T00:00:00Z", "grid__code": None, "s2__datatake_id": None, "assets": ("data",)}
    tiles = [item("N46E015", **same), item("N46E016", bbox=[15.2, 46.0, 15.4, 46.2], **same)]
    kept, dropped = keep(tiles, heights, YEAR)
    (frame,) = frames_of(kept, heights)
    assert not dropped
    assert len(frame.items) == 2
    assert frame.delivered == (True,) * 4
    assert [band.derived for band in heights.bands] == [False, True, True, True]


def test_search_finds_what_a_static_source_mapped_long_ago(tmp_path: Path) -> None:
    catalog = catalog_of(tmp_path, mapped("2012", 2012, collection="usda-cdl").to_dict(include_self_link=False))
    assert catalog.search("usda-cdl", HERE, YEAR) == []
    assert [one.id for one in catalog.search("usda-cdl", HERE, None)] == ["2012"]
    assert catalog.search("usda-cdl", BBox(20, 46, 21, 47), None) == []


# ---------------------------------------------------------------- slope and aspect


def plane(east: float, north: float, spacing: float = 30.0, shape: tuple[int, int] = (7, 9)) -> np.ndarray:
    """Heights that rise by so many metres per metre to the east and to the north."""
    rows, columns = np.indices(shape)
    return (100 + east * spacing * columns - north * spacing * rows).astype("float32")


@pytest.mark.parametrize(
    ("east", "north", "slope", "aspect"),
    [
        (0.0, -1.0, 45.0, 0.0),  # falls to the north
        (-1.0, 0.0, 45.0, 90.0),
        (0.0, 1.0, 45.0, 180.0),
        (1.0, 0.0, 45.0, 270.0),
        (-0.3, -0.3, np.degrees(np.arctan(np.hypot(0.3, 0.3))), 45.0),
    ],
)
def test_slope_and_aspect_of_planes(east: float, north: float, slope: float, aspect: float) -> None:
    for spacing in (30.0, 60.0):
        bands = slope_and_aspect(plane(east, north, spacing), spacing)
        assert list(bands) == [band.name for band in SOURCES["glo-30"].bands]
        assert {values.shape for values in bands.values()} == {(5, 7)}
        assert {values.dtype.name for values in bands.values()} == {"float32"}
        np.testing.assert_array_equal(bands["elevation"], plane(east, north, spacing)[1:-1, 1:-1])
        np.testing.assert_allclose(bands["slope"], slope, rtol=1e-4)
        np.testing.assert_allclose(bands["aspect_sine"], np.sin(np.radians(aspect)), atol=1e-4)
        np.testing.assert_allclose(bands["aspect_cosine"], np.cos(np.radians(aspect)), atol=1e-4)


def test_slope_and_aspect_are_horns_by_a_loop() -> None:
    height = np.random.default_rng(0).normal(500, 20, (6, 8)).astype("float32")
    bands, z = slope_and_aspect(height, 30.0), height.astype("float64")
    for row in range(1, 5):
        for column in range(1, 7):
            (a, b, c), (d, _, f), (g, h, i) = z[row - 1 : row + 2, column - 1 : column + 2]
            east, south = (c + 2 * f + i - a - 2 * d - g) / 240, (g + 2 * h + i - a - 2 * b - c) / 240
            at = row - 1, column - 1
            assert bands["slope"][at] == pytest.approx(np.degrees(np.arctan(np.hypot(east, south))), rel=1e-5)
            facing = np.arctan2(-east, south)  # downhill, clockwise from north
            assert bands["aspect_sine"][at] == pytest.approx(np.sin(facing), abs=1e-5)
            assert bands["aspect_cosine"][at] == pytest.approx(np.cos(facing), abs=1e-5)


def test_flat_ground_faces_nowhere_and_holes_spread_by_one_cell() -> None:
    flat = slope_and_aspect(np.full((5, 5), 2000.0, "float32"), 30.0)
    assert all((flat[name] == 0).all() and not np.signbit(flat[name]).any() for name in flat if name != "elevation")
    hole = plane(0.1, 0.2)
    hole[0, 0] = hole[4, 4] = np.nan
    bands = slope_and_aspect(hole, 30.0)
    lacking = np.zeros((5, 7), bool)
    lacking[0, 0] = lacking[2:5, 2:5] = True
    for name in ("slope", "aspect_sine", "aspect_cosine"):
        np.testing.assert_array_equal(np.isnan(bands[name]), lacking)
    assert np.isnan(bands["elevation"]).sum() == 1


def test_the_slope_of_a_real_island(real: Path) -> None:
    """Copernicus GLO-30 of an island with a steep volcano, on its own grid of degrees near the equator."""
    import rasterio

    with rasterio.open(next((real / "scenes/copernicus-dem-30m").rglob("*.tif"))) as file:
        height = file.read(1)
        spacing = abs(file.transform.e) * 111_320
    rows, columns = np.nonzero(height > 50)
    bands = slope_and_aspect(height[rows.min() : rows.max(), columns.min() : columns.max()], spacing)
    land = bands["elevation"] > 50
    assert land.sum() > 10_000
    assert np.isfinite(bands["slope"]).all()
    assert 5 < np.median(bands["slope"][land]) < 45
    np.testing.assert_allclose(np.hypot(bands["aspect_sine"], bands["aspect_cosine"])[bands["slope"] > 0], 1, atol=1e-5)
