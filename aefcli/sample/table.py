"""The table of samples: which windows of which cubes, of which periods, are trained on and which are held out.

Drawn once per run from the recipe's seed; printed, saved and used again. A window lies inside one site, a square of a
fixed grid of its cube; validation takes whole sites, and no ground is in both splits.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from aefcli.batch import DAY
from aefcli.cube import Cube, CubeSource
from aefcli.errors import BadInput, NoResources
from aefcli.extent import Period, Tile, tiles
from aefcli.ledger import digest, write_atomically
from aefcli.recipe import Recipe
from aefcli.sample.ground import Grounds, shared
from aefcli.sample.window import in_period
from aefcli.text import Placed, Texts, on

YEAR = 366 * DAY  # a support period is at most this long
_TWO_YEARS = 730 * DAY
_TRIES = 100  # draws of a window in a site before giving up on one with data
_LEAST = 0.5  # share of a window's pixels that some frame of the support must have seen clearly
_LOOKED = 8  # frames of a support that are looked at for it
_FORMAT = b"aef:samples"
_CUBES = b"aef:cubes"

Split = Literal["train", "validation"]


def generator(seed: int, *key: int) -> np.random.Generator:
    """Numbers that hang on the seed and the key alone. Keys of samples begin with their step, others with 0."""
    return np.random.default_rng([seed, *key])


@dataclass(frozen=True, eq=False)
class Samples:
    """Rows of the table, a column each; all of one length."""

    cube: np.ndarray  # str, the path that the cube was opened by
    site: np.ndarray  # str, CRS and north-west corner: one name for one ground, in any cube
    top: np.ndarray  # int64, px of the cube's grid
    left: np.ndarray
    side: np.ndarray
    start: np.ndarray  # int64, ms since 1970 UTC, half open: the support period
    end: np.ndarray
    split: np.ndarray  # str, "train" or "validation"
    cubes: Mapping[str, str]  # path and key of all that it was drawn from, those without a row too

    def __len__(self) -> int:
        return len(self.top)

    def at(self, rows: np.ndarray) -> Samples:
        """Some of the rows, by a mask or by number."""
        return replace(self, **{name: getattr(self, name)[rows] for name in COLUMNS})

    def of(self, split: Split) -> Samples:
        return self.at(self.split == split)

    def middle(self, side: int) -> Samples:
        """The same places, of each window its middle alone, so many pixels wide."""
        top, left = self.top + (self.side - side) // 2, self.left + (self.side - side) // 2
        return replace(self, top=top, left=left, side=np.full(len(self), side))

    def counts(self) -> dict[str, int]:
        """Rows of each split, and sites."""
        train, validation = (int((self.split == split).sum()) for split in ("train", "validation"))
        return {"train": train, "validation": validation, "sites": len(np.unique(self.site))}

    def csv(self) -> str:
        """The table as text: windows in pixels of their cube, supports with their first and last day."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(("cube", "site", "top", "left", "side", "first", "last", "split"))
        first, last = ((at // DAY).astype("datetime64[D]") for at in (self.start, self.end - 1))
        rows = zip(self.cube, self.site, self.top, self.left, self.side, first, last, self.split, strict=True)
        writer.writerows(rows)
        return text.getvalue()

    def save(self, path: Path) -> Path:
        """Write the table as Parquet, whole or not at all."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        columns = {name: pa.array(getattr(self, name)) for name in COLUMNS}
        about = {_FORMAT: b"1", _CUBES: json.dumps(dict(self.cubes)).encode()}
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table(columns).replace_schema_metadata(about), sink)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, sink.getvalue())
        except OSError as error:
            raise NoResources(
                f"cannot write {path}: {error.strerror or error}", "make room or give leave, or name another --out"
            ) from error
        return path

    @classmethod
    def read(cls, path: Path) -> Samples:
        """Read a table that `save` wrote, as it was written. Raises BadInput where it is none."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        hint = "aef samples CUBE ... makes one"
        if not path.is_file():
            raise BadInput(f"there is no table of samples {path}", hint)
        try:
            table = pq.read_table(path)
        except (pa.ArrowInvalid, OSError) as error:
            raise BadInput(f"{path} is no Parquet file, or damaged", hint) from error
        about = table.schema.metadata or {}
        if about.get(_FORMAT) != b"1" or set(COLUMNS) - set(table.column_names):
            raise BadInput(f"{path} is no table of samples", hint)
        columns = {name: table[name].to_numpy() for name in COLUMNS}
        return cls(**columns, cubes=json.loads(about[_CUBES]))

    @classmethod
    def load(cls, path: Path, cubes: Sequence[Cube], recipe: Recipe) -> Samples:
        """Read a table for these cubes and this recipe. Raises BadInput where it is not of them, and as `read` does."""
        samples = cls.read(path)
        try:
            return _fitted(samples, cubes, recipe)
        except BadInput as error:
            raise BadInput(f"{path}: {error.what}", error.hint) from error


COLUMNS = tuple(field.name for field in fields(Samples) if field.name != "cubes")


def _fitted(samples: Samples, cubes: Sequence[Cube], recipe: Recipe) -> Samples:
    """The table under the paths that the cubes are opened by now."""
    if (odd := samples.side != recipe.data.patch).any():
        side = samples.side[odd][0]
        raise BadInput(f"its windows are of {side} px, the recipe's data.patch is {recipe.data.patch}", "draw another")
    if not len(samples.of("train")):
        raise BadInput("it has no row to train on", "draw another")
    paths = np.empty(len(samples), dtype=object)
    for path, cube in _paired(samples, cubes).items():
        mine = samples.cube == path
        _check_inside(samples.at(mine), cube)
        paths[mine] = str(cube.path)
    return replace(samples, cube=paths, cubes={str(cube.path): cube.key for cube in cubes})


def _paired(samples: Samples, cubes: Sequence[Cube]) -> dict[str, Cube]:
    """Which cube each path of the table is: the one of that path, else the one of that key, which was moved."""
    left, found = list(cubes), {}
    for same in (_same_path, _same_key):
        for path, key in samples.cubes.items():
            if path not in found and (those := [cube for cube in left if same(cube, path, key)]):
                found[path] = those[0]
                left.remove(those[0])
    if absent := sorted(set(samples.cubes) - set(found)):
        raise BadInput(f"it was drawn from {absent[0]} too, which is not given", "give all the cubes that it is of")
    if left:
        raise BadInput(f"it was not drawn from {left[0].path}", "aef samples CUBE ... draws a table from all of them")
    return found


def _same_path(cube: Cube, path: str, key: str) -> bool:
    return cube.path.resolve() == Path(path).resolve()


def _same_key(cube: Cube, path: str, key: str) -> bool:
    return cube.key == key


def _check_inside(rows: Samples, cube: Cube) -> None:
    bottom, right = rows.top + rows.side, rows.left + rows.side
    inside = (np.minimum(rows.top, rows.left) >= 0) & (bottom <= cube.shape[0]) & (right <= cube.shape[1])
    if not inside.all():
        size = f"{cube.shape[0]}x{cube.shape[1]} px"
        raise BadInput(f"{(~inside).sum()} of its windows lie outside {cube.path}, {size}", "draw another")
    known = (rows.start >= cube.period.start) & (rows.end <= cube.period.end)
    if not known.all():
        raise BadInput(f"{(~known).sum()} of its periods lie outside {cube.period} of {cube.path}", "draw another")


# --- drawing --------------------------------------------------------------------------------------------------------


def check(cubes: Sequence[Cube], recipe: Recipe) -> None:
    """Refuse a cube without an input of the recipe, smaller than its patch or with other pixels than the first.

    It may lack any of the targets.
    """
    for cube in cubes:
        if not set(cube.sources) & set(recipe.data.sources):
            raise BadInput(
                f"{cube.path} has {sorted(cube.sources)}, the recipe reads {list(recipe.data.sources)}",
                "choose another --recipe",
            )
        if min(cube.shape) < recipe.data.patch:
            raise BadInput(
                f"{cube.path} is {cube.shape[0]}x{cube.shape[1]} px, smaller than the recipe's patch of "
                f"{recipe.data.patch}",
                "fetch a larger box, or lower data.patch",
            )
        if (gsd := cube.grid.resolution.x) != cubes[0].grid.resolution.x:
            raise BadInput(
                f"{cube.path} has pixels of {gsd:g} m, {cubes[0].path} of {cubes[0].grid.resolution.x:g} m",
                "train on cubes of one --gsd",
            )


def draw(cubes: Sequence[Cube], recipe: Recipe, texts: Texts | None = None) -> Samples:
    """The table of a run, from the recipe's seed. Half of the windows of a site with texts hold one of them.

    Raises BadInput where `check` does, and where no site has data.
    """
    check(cubes, recipe)
    told = texts is not None and "text" in recipe.data.targets
    rows: list[tuple[Any, ...]] = []
    for index, cube in enumerate(cubes):
        placed = on(texts, cube) if told and texts is not None else None
        for number, site in enumerate(tiles(cube.shape, recipe.data.site, least=recipe.data.patch)):
            rng = generator(recipe.train.seed, 0, 1 + index, number)
            for row, column, support in _windows(cube, site, placed, recipe, rng):
                rows.append((index, _name(cube, site), row, column, support.start, support.end))
    if not rows:
        size = recipe.data.patch
        raise BadInput(
            f"{', '.join(str(cube.path) for cube in cubes)}: no {size}x{size} px place with data found in {_TRIES} "
            "draws a site",
            "fetch a box or a period with more data",
        )
    which, names, top, left, start, end = (np.array(column) for column in zip(*rows, strict=True))
    boxes = np.stack([top, left, top + recipe.data.patch, left + recipe.data.patch], axis=1)
    split = _split(names, Grounds(cubes).of(which, boxes), recipe)
    paths = np.array([str(cube.path) for cube in cubes], dtype=object)
    side = np.full(len(which), recipe.data.patch)
    known = {str(cube.path): cube.key for cube in cubes}
    samples = Samples(paths[which], names.astype(object), top, left, side, start, end, split, known)
    return samples.at(split != "")


def _split(site: np.ndarray, windows: np.ndarray, recipe: Recipe) -> np.ndarray:
    """Which split each row is of, by its site; "" where a window to train on shares ground with one held out."""
    names = np.unique(site)
    count = round(recipe.data.validation * len(names))
    chosen = generator(recipe.train.seed, 0, 0, 1).permutation(names)[:count]
    held = np.isin(site, chosen)
    split = np.where(held, "validation", "train").astype(object)
    if held.any():
        train = np.flatnonzero(~held)
        split[train[shared(windows[train], windows[held])[0]]] = ""
        if not (split == "train").any():
            raise BadInput(
                f"data.validation = {recipe.data.validation:g} leaves no ground of {len(names)} sites to train on",
                "lower it, or give cubes of more ground",
            )
    return split


def _name(cube: Cube, site: Tile) -> str:
    """One name for one ground, in any cube: CRS, west and north of the site."""
    step, crs = cube.grid.resolution.x, cube.grid.crs
    west, north = cube.grid.transform.c + step * site.left, cube.grid.transform.f - step * site.top
    name = str(crs) if len(str(crs)) < 16 else digest(str(crs))[:8]
    return f"{name}/{west:.0f}/{north:.0f}"


def _windows(
    cube: Cube, site: Tile, placed: Placed | None, recipe: Recipe, rng: np.random.Generator
) -> Iterator[tuple[int, int, Period]]:
    """Windows of a site, apart from one another by a pixel at least, with each support in which they hold data."""
    size = recipe.data.patch
    supports = supports_of(cube.period, rng)
    names = [name for name in recipe.data.sources if name in cube.sources]
    seen = {support: [_clear(cube.sources[name], site, support) for name in names] for support in supports}
    points = _points(placed, site) if placed else np.zeros((0, 2), int)
    found: set[tuple[int, int]] = set()
    for attempt in range(_TRIES + recipe.data.windows):
        if len(found) == recipe.data.windows:
            return
        corner = np.array([rng.integers(extent - size + 1) for extent in site.shape])
        if len(points) and attempt % 2 == 0:
            point = points[rng.integers(len(points))]
            corner = np.clip(point - rng.integers(size, size=2), 0, np.array(site.shape) - size)
        top, left = map(int, corner)
        if (top, left) in found:
            continue
        for support, maps in seen.items():
            if max(float(clear[top : top + size, left : left + size].mean()) for clear in maps) >= _LEAST:
                found.add((top, left))
                yield site.top + top, site.left + left, support


def _points(placed: Placed, site: Tile) -> np.ndarray:
    """The texts' pixels in a site, from its corner."""
    pixels = placed.pixels - (site.top, site.left)
    return pixels[((pixels >= 0) & (pixels < site.shape)).all(axis=1)]


def _clear(source: CubeSource, site: Tile, support: Period) -> np.ndarray:
    """Where some of a few frames of the support saw the site clearly: bool (h, w)."""
    if not len(frames := in_period(source, support)):
        return np.zeros(site.shape, dtype=bool)
    weight = source.clear(site, frames[:: max(1, len(frames) // _LOOKED)])
    return np.asarray((weight > 0).any(axis=0))


def supports_of(period: Period, rng: np.random.Generator) -> list[Period]:
    """The period, or a year of it at random where it is longer, or two years apart where it has them."""
    length = period.end - period.start
    if length < _TWO_YEARS:
        start = period.start + int(rng.integers(max(0, length - YEAR) + 1))
        return [Period(start, min(start + YEAR, period.end))]
    year = min(YEAR, length // 2)
    first = period.start + int(rng.integers(length - 2 * year + 1))
    second = int(rng.integers(first + year, period.end - year + 1))
    return [Period(first, first + year), Period(second, second + year)]
