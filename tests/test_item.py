"""The STAC items beside a field are valid, the same from the same field, and name its lineage and nothing secret."""

from __future__ import annotations

import hashlib
import json
import shutil
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pystac
import pytest
import shapely
import torch
import xarray as xr
from affine import Affine
from archives import make_toy, toy_request
from odc.geo.geobox import GeoBox
from pyproj import Transformer
from pystac.validation.stac_validator import JsonSchemaSTACValidator
from shapely.geometry import Point, shape
from toys import toy_recipe

from aefcli import checkpoint, cube, embed, field, item, ledger
from aefcli.checkpoint import SHIPPED, Run
from aefcli.errors import BadInput
from aefcli.extent import Period

PERIODS = [Period.parse("2023"), Period.parse("2023-08")]
TOKEN = "SENTINEL7f3a"
# What the schema of embeddings 0.0.1 lets properties of an item hold.
EMB = {"runtime_parameters", "preprocessing", "postprocessing", "fit_for_use", "uncertainty", "quantization", "energy"}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an archive of two years, its cube, an untrained run and a field of the first year."""
    home = tmp_path_factory.mktemp("home")
    (home / "archive").mkdir()
    toy = make_toy(home / "archive")
    for number, one in enumerate(toy.items):
        if number >= 4:  # the last pass is a year later
            late = json.loads(json.dumps(one).replace("2023", "2024"))
            (toy.folder / one["id"]).rename(toy.folder / late["id"])
            toy.items[number] = one = late
        (toy.folder / one["id"] / f"{one['id']}.json").write_text(json.dumps(one))
    cube.fetch(toy_request(toy.saved(toy.items), period=Period.parse("2023:2024")), home / "cube.zarr")
    plan = toy_recipe(data={"sources": ["sentinel-2"], "frames": [4], "patch": 32})
    run = checkpoint.new_run(home / "runs/toy-001", plan)
    checkpoint.save_weights(run.weights, checkpoint.build(plan), plan, 0)
    embedded(home, home / "embeddings.zarr")
    return home


def embedded(home: Path, out: Path) -> None:
    opened = cube.open_cube(home / "cube.zarr")
    embed.embed(opened, Run(home / "runs/toy-001"), PERIODS, out, device=torch.device("cpu"))


@pytest.fixture
def copy(home: Path, tmp_path: Path) -> Path:
    """A copy of that folder, to be changed."""
    return shutil.copytree(home, tmp_path / "copy", ignore=shutil.ignore_patterns("*.stac.json"))


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def links(document: dict[str, Any], rel: str) -> dict[str, str]:
    return {link["title"]: link["href"] for link in document["links"] if link["rel"] == rel}


def test_the_item_says_where_when_and_what(copy: Path) -> None:
    store = copy / "embeddings.zarr"
    path = item.write(store, copy / "cube.zarr", Run(copy / "runs/toy-001"))
    assert path == copy / "embeddings.stac.json"
    found = read(path)
    opened = pystac.Item.from_file(str(path))
    assert (found["stac_version"], opened.datetime) == ("1.1.0", None)
    common = opened.common_metadata
    assert common.start_datetime == datetime.fromisoformat("2023-01-01T00:00:00+00:00")
    assert common.end_datetime == datetime.fromisoformat("2023-12-31T23:59:59.999000+00:00")
    grid, attrs = cube.open_cube(copy / "cube.zarr").grid, field.open_field(store).attrs
    outline = shape(found["geometry"])
    x, y = grid.extent.centroid.coords[0]
    lon, lat = Transformer.from_crs(32633, 4326, always_xy=True).transform(x, y)
    assert outline.contains(Point(lon, lat))
    assert outline.bounds == pytest.approx(found["bbox"], abs=2e-7)
    assert outline.area == pytest.approx(grid.extent.to_crs("EPSG:4326").area, rel=1e-3)
    properties = found["properties"]
    assert properties["proj:code"] == "EPSG:32633"
    assert properties["proj:transform"] == attrs["spatial:transform"]
    assert properties["proj:bbox"] == attrs["spatial:bbox"]
    assert properties["proj:shape"] == [grid.shape[0], grid.shape[1]]
    assert properties["emb:runtime_parameters"]["valid_periods"] == ["2023-01-01/2023-12-31", "2023-08-01/2023-08-31"]
    assert properties["emb:runtime_parameters"]["patch"] == 48
    assert {key.removeprefix("emb:") for key in properties if key.startswith("emb:")} <= EMB
    assert set(properties["emb:quantization"]) == {"method", "original_dtype", "quantized_dtype", "link"}
    asset = found["assets"]["embeddings"]
    assert (asset["href"], asset["data_type"], asset["nodata"]) == ("./embeddings.zarr", "int8", -128)
    assert asset["roles"] == ["data", "embeddings"]
    assert (path.parent / asset["href"]).is_dir()


def test_the_items_of_the_frames_that_were_read_are_named(copy: Path) -> None:
    found = read(item.write(copy / "embeddings.zarr"))
    derived = links(found, "derived_from")
    assert derived == links(found, "emb:source-data")
    items = [read(copy / href) for href in derived.values()]
    assert [one["id"] for one in items] == sorted(derived)
    assert {one["collection"] for one in items} == {"sentinel-2-l2a"}
    planned = {one["id"]: one for one in read(copy / "cube.zarr.build/plan.json")["plan"]["items"]["sentinel-2"]}
    first = {name for name, one in planned.items() if one["properties"]["datetime"] < "2024"}
    assert (len(first), len(planned)) == (4, 6)
    assert set(derived) == first


def test_addresses_at_an_api_hold_nothing_secret(copy: Path) -> None:
    plan_file = copy / "cube.zarr.build/plan.json"
    plan = read(plan_file)
    plan["request"]["catalog"] = f"https://{TOKEN}:{TOKEN}@api.example.org/v1/?key={TOKEN}#{TOKEN}"
    plan["key"] = ledger.digest(plan["request"])
    for one in plan["plan"]["items"]["sentinel-2"]:
        one["properties"]["preview"] = f"https://api.example.org/x.png?sig={TOKEN}"
        for asset in one["assets"].values():
            asset["href"] = f"https://files.example.org/{one['id']}.tif?sig={TOKEN}"
    plan["plan"]["items"]["sentinel-2"][0]["collection"] = "a b/c"
    plan_file.write_text(ledger.canonical(plan))
    path = item.write(copy / "embeddings.zarr", run=Run(copy / "runs/toy-001"))
    derived = links(read(path), "derived_from")
    one = plan["plan"]["items"]["sentinel-2"][0]["id"]
    assert derived.pop(one) == f"https://api.example.org/v1/collections/a%20b%2Fc/items/{one}"
    assert len(derived) == 3
    for name, href in derived.items():
        assert href == f"https://api.example.org/v1/collections/sentinel-2-l2a/items/{name}"
    assert all(TOKEN not in made.read_text() for made in copy.glob("*.stac.json"))


def test_the_cube_is_known_by_what_is_read_of_it(copy: Path) -> None:
    found = xr.open_zarr(copy / "cube.zarr", group="sentinel-2", mask_and_scale=False, decode_coords="all")
    values = np.ones((1, found.sizes["y"], found.sizes["x"]), "float32")
    coords = {"time": np.array(["2021-01-01"], "datetime64[ms]"), "y": found.y, "x": found.x}
    made = xr.Dataset({"elevation": (("time", "y", "x"), values)}, coords)
    assert cube.add_source(copy / "cube.zarr", "glo-30", made.assign_coords(spatial_ref=found.spatial_ref), {})
    assert len(links(read(item.write(copy / "embeddings.zarr")), "derived_from")) == 4


@pytest.mark.parametrize("change", ["gone", "unrecorded", "another request", "other frames"])
def test_what_is_not_known_of_the_cube_is_not_said(copy: Path, change: str) -> None:
    if change == "another request":
        root = read(copy / "cube.zarr/zarr.json")
        root["attributes"]["aef:request"]["max_cloud"] = 50
        (copy / "cube.zarr/zarr.json").write_text(json.dumps(root))
    elif change == "other frames":
        root = read(copy / "embeddings.zarr/zarr.json")
        root["attributes"]["aef:request"]["periods"][1][2] = "0" * 16
        (copy / "embeddings.zarr/zarr.json").write_text(json.dumps(root))
    else:
        shutil.rmtree(copy / ("cube.zarr" if change == "gone" else "cube.zarr.build"))
    assert read(item.write(copy / "embeddings.zarr"))["links"] == []


def test_the_model_is_named_with_its_weights(copy: Path) -> None:
    run = Run(copy / "runs/toy-001")
    found = read(item.write(copy / "embeddings.zarr", run=run))
    assert links(found, "emb:model") == {"the model": "./embeddings.model.stac.json"}
    made = read(item.model_beside(copy / "embeddings.zarr"))
    properties, asset = made["properties"], made["assets"]["model"]
    assert {"mlm:name", "mlm:architecture", "mlm:tasks", "mlm:input", "mlm:output"} <= set(properties)
    model = checkpoint.load(run)
    assert properties["mlm:total_parameters"] == sum(weight.numel() for weight in model.parameters())
    bands = properties["mlm:input"][0]["bands"]
    assert bands == ["B02", "B03", "B04", "B08", "B11"] == [band["name"] for band in asset["bands"]]
    assert len(properties["mlm:input"][0]["value_scaling"]) == len(bands)
    assert properties["mlm:output"][0]["result"]["shape"][2] == 64
    digest = hashlib.sha256(run.weights.read_bytes()).hexdigest()
    assert asset["file:checksum"] == "1220" + digest
    assert (copy / asset["href"]).samefile(run.weights)
    assert "mlm:model" in asset["roles"]
    with pytest.raises(BadInput, match="not made by"):
        item.write(copy / "embeddings.zarr", run=SHIPPED)


def test_a_model_that_came_with_the_package_is_named_by_its_package() -> None:
    made = item.model(Path("embeddings.zarr"), SHIPPED)
    href = made["assets"]["model"]["href"]
    assert href.startswith("pkg:pypi/aefcli@")
    assert href.endswith("#aefcli/shipped/nano/model.safetensors")
    assert str(SHIPPED.path) not in json.dumps(made)


def test_both_are_valid_items(copy: Path) -> None:
    """Against the schema of STAC 1.1 that pystac carries; those of the extensions are on the network."""
    path = item.write(copy / "embeddings.zarr", run=Run(copy / "runs/toy-001"))
    for found in (path, item.model_beside(copy / "embeddings.zarr")):
        document = read(found)
        again = pystac.Item.from_dict(document).to_dict(include_self_link=False, transform_hrefs=False)
        assert again == document
        JsonSchemaSTACValidator().validate_core(document, pystac.STACObjectType.ITEM, document["stac_version"])
        del document["properties"]["datetime"]
        with pytest.raises(pystac.STACValidationError):
            JsonSchemaSTACValidator().validate_core(document, pystac.STACObjectType.ITEM, document["stac_version"])


def test_the_same_field_has_the_same_items(copy: Path, tmp_path: Path) -> None:
    """Embedded again in another folder, and written over."""
    other = tmp_path / "other"
    shutil.copytree(copy, other)
    shutil.rmtree(other / "embeddings.zarr")
    shutil.rmtree(other / "embeddings.zarr.build")
    embedded(other, other / "embeddings.zarr")
    for folder in (copy, other):
        item.write(folder / "embeddings.zarr", folder / "cube.zarr", Run(folder / "runs/toy-001"))
    again = item.write(copy / "embeddings.zarr", copy / "cube.zarr", Run(copy / "runs/toy-001"))
    names = {path.name for path in copy.glob("*.stac.json")}
    assert names == {"embeddings.stac.json", "embeddings.model.stac.json"}
    for name in names:
        made = (copy / name).read_bytes().replace(str(copy).encode(), b"")
        assert made == (other / name).read_bytes().replace(str(other).encode(), b"")
    assert not list(copy.glob("*.part"))
    assert again.read_text().endswith("}\n")


def test_a_field_that_is_not_finished_has_none(copy: Path) -> None:
    root = read(copy / "embeddings.zarr/zarr.json")
    root["attributes"]["state"] = "building"
    (copy / "embeddings.zarr/zarr.json").write_text(json.dumps(root))
    with pytest.raises(BadInput, match="incomplete"):
        item.write(copy / "embeddings.zarr")
    assert not list(copy.glob("*.stac.json"))


def test_a_grid_across_the_antimeridian_is_cut_in_two() -> None:
    """Zone 1 around 180 degrees: 30 km wide, 12 km of it west of the line."""
    x, y = Transformer.from_crs(4326, 32601, always_xy=True).transform(180, -16.8)
    grid = GeoBox((1000, 3000), Affine(10, 0, round(x) - 12_000, 0, -10, round(y) + 10_000_000), "EPSG:32701")
    bbox, geometry = item.place(grid)
    west, south, east, north = bbox
    assert 179 < west < 180
    assert -180 < east < -179
    assert -17 < south < north < -16
    halves = shape(geometry)
    assert geometry["type"] == "MultiPolygon"
    assert halves.is_valid
    widths = sorted(part.bounds[2] - part.bounds[0] for part in halves.geoms)
    assert widths[1] / widths[0] == pytest.approx(18 / 12, rel=0.05)
    assert all(shapely.is_ccw(part.exterior) for part in halves.geoms)


def test_a_wide_outline_follows_its_curved_edges() -> None:
    """The north edge of a 100 km tile bows by a hundred metres in degrees, which its corners do not tell."""
    grid = GeoBox((1000, 1000), Affine(100, 0, 500_000, 0, -100, 6_700_020), "EPSG:32633")
    _, geometry = item.place(grid)
    exact = grid.extent.to_crs("EPSG:4326", resolution=100).geom
    assert shape(geometry).symmetric_difference(exact).area < 1e-4 * exact.area
    assert len(geometry["coordinates"][0]) < 80
