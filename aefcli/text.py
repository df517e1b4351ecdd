"""Text as a target: vectors that a frozen language model gives texts, at points with a period [paper S1; method.md 8].

Owns the table of texts (CSV, Parquet, GeoJSON, GeoPackage), the call of the language model, the table of vectors that
comes of it, and the draw of one text for a patch. Knows neither tensors nor the losses. The language model runs once,
before training; training reads the vectors alone.

    text.parquet          GeoParquet, a row per text that was kept
      lon, lat            float64, degrees, WGS 84
      start, end          int64, ms since 1970 UTC, half open: the period that the text tells of
      vector              list of v float32, of unit length
      geometry            the point again, as WKB
    metadata `aef:text`   JSON: format, the language model's name and hash, what was kept and left out
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from aefcli.errors import BadInput, NoResources, counted
from aefcli.extent import Period, Tile
from aefcli.field import locate
from aefcli.ledger import digest, write_atomically
from aefcli.table import PLACES, check_globe, coordinates, named, numbers, open_table

if TYPE_CHECKING:
    from aefcli.cube import Cube
    from aefcli.recipe import Recipe

FORMAT = "text-vectors/1"
_KEY = b"aef:text"  # of the table's metadata

_DAY = 86_400_000
_SHORTEST = 4 * _DAY + 1  # ms; a valid period is longer than four days [paper eq. 3]
_WORDS = 100  # the paper keeps texts of at least this many
_FARTHEST = 240.0  # metres; the paper leaves out positions that are less certain
_AT_ONCE = 256  # texts between two reports of progress
_COLUMNS = ("lon", "lat", "start", "end", "vector")
_MODEL_FILES = ("*.json", "*.txt", "*.model", "*.safetensors")  # what is read of a model's name, and hashed of any

Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Texts:
    """Vectors of texts, row by row."""

    lon: np.ndarray  # float64 (n), degrees, WGS 84
    lat: np.ndarray
    start: np.ndarray  # int64 (n), ms since 1970 UTC, half open
    end: np.ndarray
    vectors: np.ndarray  # float32 (n, v), of unit length
    path: Path | None = None  # of the table that they were read from; None where cubes hold them

    def __len__(self) -> int:
        return len(self.lon)

    @property
    def key(self) -> str:
        """A hash of all of it."""
        parts = (self.lon, self.lat, self.start, self.end, self.vectors)
        return hashlib.sha256(b"".join(np.ascontiguousarray(part).tobytes() for part in parts)).hexdigest()


@dataclass(frozen=True, eq=False)
class Placed:
    """The texts that lie on one cube."""

    pixels: np.ndarray  # int64 (m, 2), row and column of the cube's grid
    start: np.ndarray  # int64 (m)
    end: np.ndarray
    vectors: np.ndarray  # float32 (m, v)

    def __len__(self) -> int:
        return len(self.pixels)


class Drawn(NamedTuple):
    """One text of a patch."""

    vector: np.ndarray  # float32 (v)
    pixel: tuple[int, int]  # row and column in the tile
    valid: tuple[int, int]  # ms since 1970 UTC, half open; longer than four days, inside the support


@dataclass(frozen=True)
class Encoded:
    """What `encode` did: the table, its rows, the vectors' width, what it left out or doubts, and whether it wrote."""

    path: Path
    texts: int
    width: int
    model: str
    notes: tuple[str, ...]
    written: bool


# --- texts in training ----------------------------------------------------------------------------------------------


def on(texts: Texts, cube: Cube) -> Placed:
    """The texts that lie on the cube's grid, with their pixels. Pixels own their north and west edges."""
    rows, columns, inside = locate(cube.grid, texts.lon, texts.lat)
    pixels = np.stack([rows, columns], axis=1)[inside].astype("int64")
    return Placed(pixels, texts.start[inside], texts.end[inside], texts.vectors[inside])


def draw(placed: Placed, tile: Tile, support: Period, rng: np.random.Generator) -> Drawn | None:
    """One text at random of those in the tile whose period meets the support; None where there is none.

    Its valid period is its own, clipped to the support and, if that leaves four days or less, widened inside it.
    """
    corner = np.array([tile.top, tile.left])
    here = ((placed.pixels >= corner) & (placed.pixels < corner + tile.shape)).all(axis=1)
    found = np.flatnonzero(here & (placed.start < support.end) & (placed.end > support.start))
    if not len(found):
        return None
    one = found[rng.integers(len(found))]
    row, column = (placed.pixels[one] - corner).tolist()
    valid = _valid(int(placed.start[one]), int(placed.end[one]), support)
    return Drawn(placed.vectors[one], (row, column), valid)


def _valid(start: int, end: int, support: Period) -> tuple[int, int]:
    start, end = max(start, support.start), min(end, support.end)
    lack = _SHORTEST - (end - start)
    if lack <= 0:
        return start, end
    start = max(min(start - lack // 2, support.end - _SHORTEST), support.start)
    return start, min(start + _SHORTEST, support.end)


def check(texts: Texts, recipe: Recipe, cubes: Sequence[Cube]) -> int:
    """How many texts lie on the cubes. Refuses a recipe that has no text or another width, and texts on no cube."""
    if "text" not in recipe.data.targets:
        raise BadInput(
            f"the recipe {recipe.name} has text not among its data.targets {list(recipe.data.targets)}",
            f"add it, with model.text = {texts.vectors.shape[1]}, or leave --text out",
        )
    if recipe.model.text != texts.vectors.shape[1]:
        raise BadInput(
            f"the texts' vectors hold {texts.vectors.shape[1]} numbers, the recipe's model.text is {recipe.model.text}",
            f"set model.text = {texts.vectors.shape[1]}, or encode with another language model",
        )
    count = sum(len(on(texts, cube)) for cube in cubes)
    if not count:
        raise BadInput(
            f"of {counted(len(texts), 'text')} none lies on {', '.join(str(cube.path) for cube in cubes)}",
            "texts and cubes must be of one region; lon comes before lat",
        )
    return count


def held(cubes: Sequence[Cube]) -> Texts | None:
    """The texts that cubes hold themselves (`aef attach --source text`), of all of them; None where none has any."""
    import zarr

    from aefcli.cube.chunks import CubeStore, small

    names = ("lon", "lat", "start", "end", "vector")
    paths = [cube.path for cube in cubes if "text" in cube.attrs.get("aef:points", ())]
    stores = [CubeStore(path, read_only=True) for path in paths]
    tables = [[small(zarr.open_array(store, path=f"text/{name}", mode="r")) for name in names] for store in stores]
    if not tables:
        return None
    if len(widths := {table[-1].shape[1] for table in tables}) > 1:
        raise BadInput(f"the cubes hold vectors of {sorted(widths)} numbers", "--text names a table for all of them")
    lon, lat, start, end, vectors = (np.concatenate(parts) for parts in zip(*tables, strict=True))
    return Texts(lon, lat, start, end, vectors)


# --- the table of vectors -------------------------------------------------------------------------------------------


def read(path: Path) -> Texts:
    """Read a table that `encode` wrote, or any Parquet table with its columns. Raises BadInput for anything else."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.is_file():
        raise BadInput(f"there is no table of text vectors {path}", "aef text TABLE --model PATH makes one")
    try:
        names = pq.read_schema(path).names
        if lacking := [name for name in _COLUMNS if name not in names]:
            hint = "aef text TABLE --model PATH makes one" if "text" in names else f"it needs {', '.join(_COLUMNS)}"
            raise BadInput(f"{path} is no table of text vectors: it has no column {lacking[0]!r}", hint)
        table = pq.read_table(path, columns=list(_COLUMNS))
    except pa.ArrowInvalid as error:
        raise BadInput(f"{path} is no Parquet file, or damaged", "aef text TABLE --model PATH makes one") from error
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error}", "aef text TABLE --model PATH makes one") from error
    try:
        return replace(_texts(table), path=path.resolve())
    except BadInput as error:
        raise BadInput(f"{path}: {error.what}", error.hint) from error


def _texts(table: Any) -> Texts:
    """The table's columns as arrays, checked."""
    import pyarrow.types as kinds

    if not table.num_rows:
        raise BadInput("it has no rows", "encode some texts")
    for name in _COLUMNS:
        if absent := table[name].null_count:
            raise BadInput(f"{counted(absent, 'row')} without {name}", "fill them in, or remove them")
    for name in ("start", "end"):
        if not kinds.is_integer(table.schema.field(name).type):
            kind = table.schema.field(name).type
            raise BadInput(f"{name} is of type {kind}", "it counts milliseconds since 1970 in UTC, as int64")
    lon, lat = (_degrees(table, name) for name in ("lon", "lat"))
    _check_places(lon, lat)
    start, end = (table[name].to_numpy().astype("int64") for name in ("start", "end"))
    if empty := int((end <= start).sum()):
        raise BadInput(f"{counted(empty, 'row')} with an end not after the start", "the period is half open")
    return Texts(lon, lat, start, end, _unit(_matrix(table["vector"])))


def _degrees(table: Any, name: str) -> np.ndarray:
    import pyarrow.types as kinds

    kind = table.schema.field(name).type
    if not (kinds.is_floating(kind) or kinds.is_integer(kind)):
        raise BadInput(f"{name} is of type {kind}", "it is in degrees, as float64")
    return np.asarray(table[name].to_numpy(), dtype="float64")


def _matrix(column: Any) -> np.ndarray:
    """A column of lists of numbers as float32 (n, v)."""
    import pyarrow.types as kinds

    kind = column.type
    if not (kinds.is_list(kind) or kinds.is_large_list(kind) or kinds.is_fixed_size_list(kind)):
        raise BadInput(f"vector is of type {kind}", "it is a list of float32, the same length in every row")
    if not kinds.is_floating(kind.value_type):
        raise BadInput(f"vector holds {kind.value_type}", "it is a list of float32")
    joined = column.combine_chunks()
    flat = joined.flatten().to_numpy(zero_copy_only=False)
    width, rest = divmod(len(flat), len(joined))
    lengths = {len(row) for row in joined} if not kinds.is_fixed_size_list(kind) else {width}
    if rest or lengths != {width} or not width:
        raise BadInput(f"vectors differ in length: {sorted(lengths)[:5]}", "one language model gives one length")
    return flat.reshape(len(joined), width).astype("float32")


def _unit(vectors: np.ndarray) -> np.ndarray:
    """The vectors (n, v) at unit length; what has no direction is refused."""
    length = np.linalg.norm(vectors.astype("float64"), axis=1, keepdims=True)
    if bad := int((~((length > 0) & np.isfinite(length))).sum()):
        raise BadInput(f"{counted(bad, 'vector')} of length zero, or not finite", "remove them, or encode them anew")
    return (vectors / length).astype("float32")


# --- encoding -------------------------------------------------------------------------------------------------------


def encode(
    table: Path,
    model: str,
    out: Path,
    *,
    device: str = "cpu",
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Encoded:
    """Have a sentence-transformers model read a table's texts, and write their vectors as a table at `out`.

    `table` is a CSV, Parquet, GeoJSON or GeoPackage with lon, lat (or point geometries), text, and start and end or
    one `period`, as Period.parse reads them; optionally `uncertainty`, metres: rows above 240 are left out [paper S1].
    `model` is the folder of a model, or a name on the Hugging Face hub for those who are online. A text longer than
    the model reads is cut there. Nothing is done where `out` holds the answer to the same request. Raises BadInput.
    """
    rows = _rows(table)
    folder = _folder(model)
    request = {"format": FORMAT, "table": _hash_of([table]), "model": _hash_of(_files(folder))}
    key = digest(request)
    if found := _existing(out, key, overwrite):
        return Encoded(out, found["texts"], found["width"], found["model"], tuple(found["notes"]), written=False)
    vectors, cut = _vectors(folder, rows.text, device, progress)
    notes = [*rows.notes, *([_cut_note(cut, len(rows.text))] if cut else [])]
    name = "/".join(folder.resolve().parts[-2:]) if Path(model).exists() else model
    about = {"texts": len(rows.text), "width": vectors.shape[1], "model": name, "notes": notes}
    _write(out, rows, vectors, {**request, "key": key, **about})
    return Encoded(out, len(rows.text), vectors.shape[1], name, tuple(notes), written=True)


def _cut_note(cut: int, of: int) -> str:
    return f"of {cut} of {counted(of, 'text')} the model read the beginning alone: it reads no more"


def _existing(out: Path, key: str, overwrite: bool) -> dict[str, Any] | None:
    """What a finished table at `out` says of itself, if it answers this request; refuses what may not be replaced."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not out.exists():
        return None
    try:
        about = json.loads((pq.read_schema(out).metadata or {})[_KEY])
    except (OSError, pa.ArrowInvalid, KeyError, ValueError) as error:
        raise BadInput(f"{out} exists and was not written by aef text", "choose another --out") from error
    if overwrite:
        return None
    if about["key"] == key:
        return dict(about)
    raise BadInput(f"{out} was made by another request, with {about['model']}", "--overwrite, or another --out")


def _write(out: Path, rows: _Rows, vectors: np.ndarray, about: dict[str, Any]) -> None:
    """The whole table or none of it. GeoParquet 1.1, whose default CRS is WGS 84 with longitude first."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    import shapely

    points = shapely.to_wkb(shapely.points(rows.lon, rows.lat))
    width = vectors.shape[1]
    columns = {
        "lon": pa.array(rows.lon),
        "lat": pa.array(rows.lat),
        "start": pa.array(rows.start),
        "end": pa.array(rows.end),
        "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), width),
        "geometry": pa.array(points, pa.binary()),
    }
    geometry = {"encoding": "WKB", "geometry_types": ["Point"]}
    geo = {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": geometry}}
    table = pa.table(columns).replace_schema_metadata({b"geo": json.dumps(geo), _KEY: json.dumps(about)})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(out, sink.getvalue())
    except OSError as error:
        raise NoResources(
            f"cannot write {out}: {error.strerror or error}", "make room or give leave, or name another --out"
        ) from error


# --- the language model ---------------------------------------------------------------------------------------------


def _folder(model: str) -> Path:
    """The folder of a model: itself, or where the hub's client has put the model of that name."""
    path = Path(model).expanduser()
    if path.is_dir():
        if not any((path / name).is_file() for name in ("modules.json", "config.json")):
            raise BadInput(f"the folder {model} holds no model", "--model is a folder with config.json and weights")
        return path
    if path.exists() or model.startswith(("/", ".", "~")) or model.count("/") > 1:
        raise BadInput(f"there is no folder {model} of a model", "--model is a folder with config.json and weights")
    with _language_models():
        from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model, allow_patterns=list(_MODEL_FILES)))
    except (OSError, ValueError) as error:
        raise BadInput(
            f"--model {model} is no folder here, and could not be downloaded: {_first_line(error)}",
            "name the folder of a sentence-transformers model, or go online",
        ) from error


@contextmanager
def _language_models() -> Iterator[None]:
    """Imports of the extra `text`; its absence is one line."""
    try:
        yield
    except ImportError as error:
        raise BadInput(
            f"reading texts needs sentence-transformers: {_first_line(error)}", "pip install 'aefcli[text]'"
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__


def _files(folder: Path) -> list[Path]:
    """The files that make a model what it is, in one order."""
    return sorted({path for pattern in (*_MODEL_FILES, "*.bin") for path in folder.rglob(pattern) if path.is_file()})


def _hash_of(files: Sequence[Path]) -> str:
    whole = hashlib.sha256()
    for path in files:
        with path.open("rb") as handle:
            whole.update(hashlib.file_digest(handle, "sha256").digest())
    return whole.hexdigest()


def _vectors(folder: Path, text: Sequence[str], device: str, progress: Progress | None) -> tuple[np.ndarray, int]:
    """Unit vectors float32 (n, v) of the texts, and how many texts were cut."""
    model = _load(folder, device)
    parts, cut, known = [], 0, False
    for start in range(0, len(text), _AT_ONCE):
        if progress:
            progress(start, len(text))
        some = list(text[start : start + _AT_ONCE])
        parts.append(model.encode(some, show_progress_bar=False, convert_to_numpy=True).astype("float32"))
        too_long, any_known = _tokens(model, some)
        cut, known = cut + too_long, known or any_known
    if not known:
        raise BadInput(f"the model in {folder} knows no word of the texts", "its tokenizer's files may be missing")
    return _unit(np.concatenate(parts)), cut


def _load(folder: Path, device: str) -> Any:
    with _language_models():
        from safetensors import SafetensorError
        from sentence_transformers import SentenceTransformer
        from transformers.utils import logging
    logging.disable_progress_bar()
    try:
        return SentenceTransformer(str(folder), device=device, local_files_only=True)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise BadInput(
            f"{folder} holds no sentence-transformers model that can be read: {_first_line(error)}",
            "--model is a folder with config.json, a tokenizer and weights",
        ) from error


def _tokens(model: Any, text: list[str]) -> tuple[int, bool]:
    """How many texts have more tokens than the model reads, and whether any token is one that it knows.

    A model whose tokenizer is of another kind than transformers' own is taken to read all.
    """
    from transformers import PreTrainedTokenizerBase

    if not isinstance(model.tokenizer, PreTrainedTokenizerBase):
        return 0, True
    most, special = model.max_seq_length or math.inf, set(model.tokenizer.all_special_ids)
    found = model.tokenizer(text, truncation=False, verbose=False)["input_ids"]
    return sum(len(ids) > most for ids in found), any(set(ids) - special for ids in found)


# --- the table of texts ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Rows:
    """Texts as read, those of uncertain position left out; `notes` count what a reader should know."""

    lon: np.ndarray
    lat: np.ndarray
    start: np.ndarray
    end: np.ndarray
    text: list[str]
    notes: tuple[str, ...]


def _rows(path: Path) -> _Rows:
    table = open_table(path, "table of texts", as_text=True)
    with named(path):
        return _parsed(table)


def _parsed(table: Any) -> _Rows:
    if not len(table):
        raise BadInput("no rows", "add texts")
    lon, lat = coordinates(table, "texts", PLACES[::-1])
    _check_places(lon, lat)
    text, start, end = _filled(table, "text"), *_periods(table)
    near = _certain(table)
    if not near.any():
        raise BadInput(f"every position is uncertain by more than {_FARTHEST:g} m", "such rows are left out")
    kept = [words for words, here in zip(text, near, strict=True) if here]
    return _Rows(lon[near], lat[near], start[near], end[near], kept, tuple(_notes(kept, len(near))))


def _notes(kept: Sequence[str], rows: int) -> Iterator[str]:
    if len(kept) < rows:
        left_out = f"{rows - len(kept)} of {counted(rows, 'text')} left out"
        yield f"{left_out}, for positions uncertain by more than {_FARTHEST:g} m"
    if short := sum(len(text.split()) < _WORDS for text in kept):
        which = f"{short} of {counted(len(kept), 'text')}"
        yield f"{which} with fewer than {_WORDS} words; the paper leaves such out, here they stay"


def _check_places(lon: np.ndarray, lat: np.ndarray) -> None:
    if absent := int((np.isnan(lon) | np.isnan(lat)).sum()):
        what = f"{absent} of {counted(len(lon), 'row')} without coordinates"
        raise BadInput(what, "fill them in, or remove them")
    check_globe(lon, lat)


def _filled(table: Any, name: str) -> list[str]:
    """A column as text without blanks around it; dates as 2023-08-31, in UTC. A row without is refused."""
    import pandas as pd

    if name not in table.columns:
        raise BadInput(f"no column {name!r}; its columns: {', '.join(map(str, table.columns))}", "add or rename it")
    column = table[name]
    if pd.api.types.is_datetime64_any_dtype(column):
        column = pd.to_datetime(column, utc=True).dt.strftime("%Y-%m-%d")
    words = ["" if missing else str(cell).strip() for cell, missing in zip(column, column.isna(), strict=True)]
    if absent := words.count(""):
        what = f"{absent} of {counted(len(words), 'row')} without {name}"
        raise BadInput(what, "fill them in, or remove them")
    return words


def _periods(table: Any) -> tuple[np.ndarray, np.ndarray]:
    """Starts and ends, int64 (n) ms, half open, of `start` and `end`, else of `period`."""
    if "period" in table.columns and not {"start", "end"} & set(table.columns):
        words = _filled(table, "period")
    elif {"start", "end"} & set(table.columns):
        both = zip(_filled(table, "start"), _filled(table, "end"), strict=True)
        words = [f"{start}:{end}" for start, end in both]
    else:
        names = ", ".join(map(str, table.columns))
        raise BadInput(f"no columns 'start' and 'end', and no 'period'; its columns: {names}", "say when a text holds")
    known = {text: Period.parse(text) for text in set(words)}
    return (
        np.array([known[text].start for text in words], dtype="int64"),
        np.array([known[text].end for text in words], dtype="int64"),
    )


def _certain(table: Any) -> np.ndarray:
    """Where the position is certain to 240 m, or its uncertainty is not stated: bool (n)."""
    if "uncertainty" not in table.columns:
        return np.ones(len(table), dtype=bool)
    stated = [str(cell).strip() not in ("", "None", "nan", "<NA>") for cell in table["uncertainty"]]
    metres = numbers(table["uncertainty"])
    if (wrong := np.array(stated) & ~(metres >= 0)).any():
        first, rows = table["uncertainty"].iloc[int(np.argmax(wrong))], counted(int(wrong.sum()), "row")
        raise BadInput(f"{rows} with no number of metres as uncertainty: {first!r}", "leave unknown ones empty")
    return ~(metres > _FARTHEST)
