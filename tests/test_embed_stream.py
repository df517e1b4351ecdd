"""A field straight from a catalog: the vectors of the cube that is not kept, however it was cut up and stopped."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
import torch
from archives import TOY_BOX, Toy, toy_request
from conftest import Aef
from servers import file_server
from test_embed import chunks, hashes, untrained_run
from test_secrets import KEY, SIGNATURE, STEM, host, publish

from aefcli import checkpoint, embed, field, item, ledger
from aefcli.checkpoint import Run
from aefcli.cube import Request, check, fetch, open_cube
from aefcli.cube.fetch import plan as searched
from aefcli.cube.fetch import stacks_of
from aefcli.cube.part import Planned
from aefcli.embed import How
from aefcli.errors import BadInput, NoResources, RemoteFailed
from aefcli.extent import Period, Tile

CPU = torch.device("cpu")
PERIODS = [Period.parse("2023"), Period.parse("2023-08"), Period.parse("2023-09")]
YEAR = embed.years_of(PERIODS)
QUICK = How(seams=False)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return untrained_run(tmp_path_factory.mktemp("runs") / "toy-001")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two slabs of a few tiles each, and items that count only where they lie."""
    shrink(monkeypatch, 64)


def shrink(patch: pytest.MonkeyPatch, slab: int) -> None:
    patch.setattr(field, "CHUNK", 32)
    patch.setattr("aefcli.embed.stream.SLAB", slab)
    patch.setattr("aefcli.cube.part._MARGIN", 0.0)


@pytest.fixture(scope="module")
def patchy(toy: Toy) -> Path:
    """A catalog of which the east has one day alone, the west two others, and all of it one."""
    (first, first_east), (second, _), (_, third_east) = (toy.items[at : at + 2] for at in (0, 2, 4))
    return toy.saved([first, first_east, second, third_east], "patchy.json")


@pytest.fixture(scope="module")
def kept(patchy: Path, run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The field of a cube of the whole."""
    folder = tmp_path_factory.mktemp("kept")
    with pytest.MonkeyPatch.context() as patch:
        shrink(patch, 64)
        fetch(asked(patchy), folder / "cube.zarr")
        embed.embed(open_cube(folder / "cube.zarr"), run, PERIODS, folder / "e.zarr", device=CPU, how=QUICK)
    return folder / "e.zarr"


@pytest.fixture(scope="module")
def made(patchy: Path, run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The field straight from the catalog."""
    out = tmp_path_factory.mktemp("made") / "e.zarr"
    with pytest.MonkeyPatch.context() as patch:
        shrink(patch, 32)  # six slabs of a tile each
        done = embed.from_catalog(asked(patchy), run, PERIODS, out, device=CPU)
    assert (done.parts, done.fetched, done.items, done.field.written) == (6, 6, 4, 18)
    assert done.field.extrapolated == (PERIODS[2],)
    return out


def asked(catalog: Path | str, **changes: Any) -> Request:
    return toy_request(catalog, **{"sources": (), "period": YEAR, **changes})


def test_it_gives_what_a_cube_of_the_whole_gives(made: Path, kept: Path) -> None:
    assert chunks(made) == chunks(kept), "vectors, counts and coordinates"
    codes = field.open_field(made)["embeddings"].values[0]
    assert len(np.unique(codes)) > 50
    assert 0 < (codes == field.NODATA).all(axis=0).mean() < 0.5
    assert ledger.verify(made)[0] == []
    assert not (ledger.records_of(made) / "parts").exists()


def test_the_field_says_what_it_was_made_of(made: Path, patchy: Path) -> None:
    store = field.open_field(made)
    assert "aef:cube" not in store.attrs
    assert store.attrs["aef:request"]["catalog"] == str(patchy)
    assert store["extrapolated"].values.tolist() == [False, False, True]
    assert store["frames_inside"].values.tolist() == [3, 3, 0]


def test_parts_leave_out_the_frames_that_do_not_touch_them(patchy: Path, run: Run, tmp_path: Path) -> None:
    request = replace(asked(patchy), sources=("sentinel-2",))
    plan = stac_plan(request)
    assert [len(stack.times) for stack in plan.stacks] == [3]
    west, east = (plan.part(Tile(0, left, 32, left + 8), [YEAR]).stacks[0] for left in (0, 88))
    assert [len(west.times), len(east.times)] == [2, 2]
    assert set(west.times) | set(east.times) == set(plan.stacks[0].times), "times are those of the whole frames"
    september = plan.part(Tile(0, 0, 32, 8), PERIODS[2:]).stacks[0]
    assert (len(september.times), september.delivered.any()) == (1, False)


def stac_plan(request: Request) -> Planned:
    grid = check(request)
    return Planned(request, grid, tuple(stacks_of(searched(request)["items"], grid, request)))


def test_killed_in_the_middle_and_resumed(patchy: Path, made: Path, run: Run, tmp_path: Path) -> None:
    def after(count: int) -> Callable[[int, int], None]:
        def stop(done: int, total: int) -> None:
            assert total == 18
            if done >= count:
                raise Stop

        return stop

    out = tmp_path / "e.zarr"
    for count in (1, 13):  # in the first part, and in the second
        with pytest.raises(Stop):
            embed.from_catalog(asked(patchy), run, PERIODS, out, device=CPU, how=QUICK, progress=after(count))
    parts = ledger.records_of(out) / "parts"
    found = list(parts.glob("*.zarr"))
    assert [path.name for path in found] == ["0-64.zarr"]
    shutil.copytree(found[0], parts / "0-0.zarr")  # as if it was killed before it removed the first one
    told: list[int] = []

    def look(done: int, total: int) -> None:
        assert not (parts / "0-0.zarr").exists()
        told.append(done)

    done = embed.from_catalog(asked(patchy), run, PERIODS, out, device=CPU, how=QUICK, progress=look)
    assert done.fetched == 1
    assert told[-1] == 18
    assert chunks(out) == chunks(made)
    assert not parts.exists()


def test_where_nothing_was_seen_is_nodata_and_nothing_is_read(toy: Toy, run: Run, tmp_path: Path) -> None:
    """The east of a catalog that has the west alone; its files are behind a server that counts."""
    with file_server(toy.folder) as files:
        west = [one for one in toy.over(files.url) if one["id"].startswith("S2A_33TWM")]
        catalog = toy.saved(west, "west.json")
        out = tmp_path / "e.zarr"
        done = embed.from_catalog(asked(f"{files.url}/west.json"), run, PERIODS[:1], out, device=CPU, how=QUICK)
        assert catalog.exists()
        asked_for = len(files.log)
        assert {line.split("/")[1].split("_")[1] for line in files.log if line.endswith(".tif")} == {"33TWM"}
        codes = field.open_field(out)["embeddings"].values[0]
        empty = (codes == field.NODATA).all(axis=0)
        assert empty[:, 64:].all()
        assert not empty[:, :32].all()
        assert (field.open_field(out)["observations_sentinel-2"].values[0][:, 64:] == 0).all()
        assert 0.3 < done.field.nodata < 1
        before = hashes(out)
        again = embed.from_catalog(asked(f"{files.url}/west.json"), run, PERIODS[:1], out, device=CPU, how=QUICK)
        assert (again.fetched, again.field.written, len(files.log)) == (0, 0, asked_for), "a finished one asks nothing"
        assert hashes(out) == before


def test_another_request_for_the_same_path_is_refused(patchy: Path, made: Path, run: Run) -> None:
    before = hashes(made)
    for change, told in (
        ({"gsd": 120}, "gsd: 60"),
        ({"max_cloud": 5.0}, "max_cloud"),
    ):
        with pytest.raises(BadInput, match=told):
            embed.from_catalog(asked(patchy, **change), run, PERIODS, made, device=CPU)
    with pytest.raises(BadInput, match="dtype"):
        embed.from_catalog(asked(patchy), run, PERIODS, made, device=CPU, how=How(dtype="float32"))
    for period, periods in ((YEAR, PERIODS[:2]), (PERIODS[1], PERIODS[1:2])):
        done = embed.from_catalog(asked(patchy, period=period), run, periods, made, device=CPU)
        assert (done.field.written, done.field.periods) == (0, tuple(PERIODS)), "it holds them already"
    assert hashes(made) == before


class Stop(Exception):
    pass


def stopping(done: int, total: int) -> None:
    raise Stop


def test_a_field_grows_by_further_periods(patchy: Path, made: Path, run: Run, tmp_path: Path) -> None:
    """Of the same year: the catalog, which is gone, is not asked again."""
    catalog, out = Path(shutil.copy(patchy, patchy.with_name("gone.json"))), tmp_path / "e.zarr"

    def grown(*periods: Period, **options: Any) -> embed.Embedded:
        return embed.from_catalog(asked(catalog), run, periods, out, device=CPU, how=QUICK, **options).field

    with pytest.raises(Stop):
        grown(PERIODS[1], progress=stopping)
    with pytest.raises(BadInput, match="is unfinished, and was begun with --period 2023-08-01:2023-08-31"):
        grown(PERIODS[2])
    assert grown(PERIODS[1]).tiles == 6
    first = out / "embeddings" / "c" / "0" / "0" / "0" / "0"
    inode, before = first.stat().st_ino, hashes(out)
    catalog.unlink()
    with pytest.raises(Stop):
        grown(PERIODS[0], PERIODS[2], progress=stopping)
    assert hashes(out) == before, "a stop leaves the old one as it was"
    done = grown(PERIODS[0], PERIODS[2])
    assert (done.written, done.adopted, done.periods) == (10, 0, tuple(PERIODS)), "two units came before the stop"
    assert (out / "embeddings" / "c" / "1" / "0" / "0" / "0").stat().st_ino == inode, "taken over, not computed"
    grown_, whole = (field.open_field(path)["embeddings"].values.astype(int) for path in (out, made))
    assert np.abs(grown_ - whole).max() <= 1
    assert (grown_ != whole).mean() < 1e-3
    assert ledger.verify(out)[0] == []
    assert grown(PERIODS[2]).written == 0


def test_a_field_grows_by_another_year_of_which_alone_it_reads(toy: Toy, run: Run, tmp_path: Path) -> None:
    later = [
        {
            **json.loads(json.dumps(one).replace("2023", "2024")),
            "assets": {key: {"href": asset["href"]} for key, asset in one["assets"].items()},
        }
        for one in toy.items[:2]
    ]
    catalog = with_documents([*toy.items[:3], *later], tmp_path)
    august, next_august = PERIODS[1], Period.parse("2024-08")
    both = embed.from_catalog(
        asked(catalog, period=Period.parse("2023:2024")), run, [august, next_august], tmp_path / "both.zarr", device=CPU
    )
    out = tmp_path / "e.zarr"
    embed.from_catalog(asked(catalog), run, [august], out, device=CPU, how=QUICK)
    for one in toy.items[:3]:
        shutil.rmtree(tmp_path / one["id"])
    after = embed.years_of([next_august])
    done = embed.from_catalog(asked(catalog, period=after), run, [next_august], out, device=CPU)
    assert (both.field.written, done.field.written, done.field.adopted) == (12, 6, 6)
    assert done.field.seam is not None
    codes, whole = (field.open_field(path)["embeddings"].values.astype(int) for path in (out, tmp_path / "both.zarr"))
    assert np.abs(codes - whole).max() <= 1
    assert (codes[0] != codes[1]).mean() > 0.1
    store = field.open_field(out)
    assert store["frames_inside"].values.tolist() == [2, 1]
    assert ledger.verify(out)[0] == []


def test_nothing_secret_is_kept_and_what_was_signed_is_signed_anew(
    toy: Toy, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("web.PATIENCE", 1.0), ("web.TRIES", 2), ("read.TRIES", 2)):
        monkeypatch.setattr(f"aefcli.cube.{name}", value)
    (archive := tmp_path / "archive").mkdir()
    for one in toy.items:
        (archive / one["id"]).symlink_to(toy.folder / one["id"])
    (folder := tmp_path / "field").mkdir()

    def made() -> embed.Streamed:
        request = asked(f"{home.url}/items.json?key={KEY}")
        return embed.from_catalog(request, run, PERIODS[:1], folder / "e.zarr", device=CPU, how=QUICK)

    with host(archive, key=KEY, signature=SIGNATURE) as home:
        publish(home, toy)
        home.answers["B04.tif"] = 503
        with pytest.raises(RemoteFailed, match=r"B04\.tif") as failed:
            made()
        assert STEM not in str(failed.value)
        home.answers.clear()
        home.signature += "two"
        publish(home, toy)
        assert made().field.written == 6
        assert f"sig={home.signature}" in home.told()
    assert [path for path in folder.rglob("*") if path.is_file() and STEM.encode() in path.read_bytes()] == []
    assert field.open_field(folder / "e.zarr").attrs["aef:request"]["catalog"] == f"{home.url}/items.json"


def test_what_is_damaged_is_fetched_and_computed_again_and_nothing_else(
    made: Path, run: Run, tmp_path: Path, aef: Aef
) -> None:
    out = tmp_path / "e.zarr"
    shutil.copytree(made, out)
    shutil.copytree(ledger.records_of(made), ledger.records_of(out))
    before, told = hashes(made), str(run.path)
    lost, flipped = out / "embeddings/c/1/0/0/2", out / "embeddings/c/0/0/1/0"
    lost.unlink()
    flipped.write_bytes(flipped.read_bytes()[:-1] + b"x")
    (out / "zarr.json").write_text("{}")
    code, answer, err = aef("repair", str(out), "--model", told, "--json")
    assert code == 0, err
    hurt = ["zarr.json", *(str(path.relative_to(out)) for path in (lost, flipped))]
    assert sorted(json.loads(answer)["files"]) == sorted(hurt)
    assert json.loads(answer)["changed"] == []
    assert hashes(out) == before
    assert ledger.verify(out)[0] == []
    assert not (ledger.records_of(out) / "parts").exists()
    assert aef("repair", str(out), "--model", told)[0] == 0, "nothing to mend"


def test_it_is_mended_by_its_own_model_and_catalog_alone(made: Path, run: Run, tmp_path: Path, aef: Aef) -> None:
    with torch.no_grad():
        other = untrained_run(tmp_path / "other-001")
        weights = checkpoint.build(other.recipe)
        next(weights.parameters()).add_(1)
    checkpoint.save_weights(other.weights, weights, other.recipe, 0)
    code, _, err = aef("repair", str(made), "--model", str(other.path))
    assert (code, "was made by another model" in err) == (2, True)
    code, _, err = aef("repair", str(made), "--model", str(run.path), "--stac", str(tmp_path / "else.json"))
    assert (code, "--stac takes that address" in err) == (2, True)


def test_an_area_leaves_the_rest_nodata(patchy: Path, made: Path, run: Run, tmp_path: Path) -> None:
    west, south, east, north = (getattr(TOY_BOX, side) for side in ("west", "south", "east", "north"))
    area = shapely.Polygon([(west, south), (west, north), ((west + east) / 2, north)]).wkt
    out = tmp_path / "e.zarr"
    catalog = with_documents(json.loads(patchy.read_text())["features"], tmp_path)
    embed.from_catalog(asked(catalog, area=area), run, PERIODS[:1], out, device=CPU, how=QUICK)
    codes, whole = (field.open_field(path)["embeddings"].values[0] for path in (out, made))
    there = (codes != field.NODATA).any(axis=0)
    assert 0.1 < there.mean() < 0.4
    np.testing.assert_array_equal(codes[:, there], whole[:, there])
    links = json.loads(item.write(out).read_text())["links"]
    assert {link["title"] for link in links if link["rel"] == "derived_from"} == {
        one.parent.name for one in tmp_path.glob("S2A*/*.json")
    }


def with_documents(items: list[dict[str, Any]], folder: Path) -> Path:
    """A catalog of the same files, with each item's document beside its files."""
    moved = []
    for one in items:
        (folder / one["id"]).mkdir()
        assets = {}
        for key, asset in one["assets"].items():
            file = folder / one["id"] / Path(asset["href"]).name
            file.hardlink_to(asset["href"])
            assets[key] = {"href": str(file)}
        moved.append({**one, "assets": assets})
        (folder / one["id"] / f"{one['id']}.json").write_text(json.dumps(moved[-1]))
    path = folder / "items.json"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": moved}))
    return path


def test_a_catalog_without_what_the_model_reads_is_refused_and_too_little_memory(
    toy: Toy, run: Run, tmp_path: Path
) -> None:
    others = [{**one, "collection": "others"} for one in toy.items]
    with pytest.raises(BadInput, match=f"gives nothing that {run.name} reads: sentinel-2: .*landsat: "):
        embed.from_catalog(asked(toy.saved(others, "others.json")), run, PERIODS, tmp_path / "e.zarr", device=CPU)
    with pytest.raises(BadInput, match="nothing to fetch"):
        embed.from_catalog(
            asked(toy, period=Period.parse("2021")), run, [Period.parse("2021")], tmp_path / "e.zarr", device=CPU
        )
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(NoResources, match="--memory 1 MiB"):
        embed.from_catalog(asked(toy), run, PERIODS, tmp_path / "e.zarr", device=CPU, how=How(memory=1 << 20))
    assert not (tmp_path / "e.zarr").exists()


def test_the_years_of_periods() -> None:
    assert embed.years_of([Period.parse("2022-12-31"), Period.parse("2023-01")]) == Period.parse("2022:2023")
    assert embed.years_of([Period.parse("2023")]) == Period.parse("2023")


BOX = ",".join(map(repr, (TOY_BOX.west, TOY_BOX.south, TOY_BOX.east, TOY_BOX.north)))


def test_the_command(patchy: Path, made: Path, run: Run, aef: Aef, tmp_path: Path) -> None:
    words = ["embed", "--stac", str(patchy), "--bbox", BOX, "--gsd", "60", "--model", str(run.path)]
    words += [word for period in PERIODS for word in ("--period", str(period))]
    code, out, err = aef(*words, "--json")
    assert code == 0, err
    told = json.loads(out)
    assert (told["items"], told["parts"], told["parts_fetched"], told["tiles_written"]) == (4, 2, 2, 18)
    assert "2023-09-01:2023-09-30 holds no frame of the catalog" in err
    assert any("landsat" in note for note in told["notes"])
    assert 0 < told["seam_degrees"]["mean"] < 90
    assert chunks(tmp_path / "embeddings.zarr") == chunks(made), "however the ground is cut up"
    assert json.loads((tmp_path / "embeddings.stac.json").read_text())["properties"]["proj:code"] == "EPSG:32633"
    code, out, err = aef(*words, "-q")
    assert (code, out, err) == (0, "embeddings.zarr\n", "")
    assert aef("validate", "embeddings.zarr")[0] == 0
    code, _, err = aef("repair", "embeddings.zarr")
    assert (code, err.count("\n"), "no run here made" in err) == (2, 1, True), err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("cube.zarr", "--stac", "c.json", "--bbox", BOX, "--period", "2023"), "cube.zarr and --stac"),
        (("--stac", "c.json", "--period", "2023"), "--bbox W,S,E,N"),
        (("--stac", "c.json", "--bbox", BOX, "--every", "month"), "give --period"),
        (("--stac", "c.json", "--bbox", BOX, "--period", "9000"), "9000-01-01:9000-12-31 begins in a year to come"),
        (("--stac", "c.json", "--bbox", BOX, "--period", "2023", "--gsd", "0"), "--gsd 0"),
        (("--stac", "c.json", "--bbox", BOX, "--period", "2023", "--max-cloud", "101"), "--max-cloud 101"),
        (("--stac", "c.json", "--bbox", BOX, "--period", "2023"), "c.json"),
        (("--gsd", "20", "--period", "2023"), "--gsd 20 goes with --stac"),
        (("--max-cloud", "0", "--period", "2023"), "--max-cloud 0 goes with --stac"),
    ],
)
def test_what_the_command_refuses(aef: Aef, run: Run, tmp_path: Path, words: tuple[str, ...], says: str) -> None:
    code, out, err = aef("embed", *words, "--model", str(run.path))
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert says in err
    assert list(tmp_path.iterdir()) == []
