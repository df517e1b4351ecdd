"""What an embedding field holds, whoever wrote it, as far as it says it: for `aef info` and for the page of a field."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from aefcli import colours
from aefcli.extent import Period, Tile
from aefcli.field import degrees, open_field
from aefcli.ledger import FORMAT_KEY
from aefcli.published.vectors import POWER

if TYPE_CHECKING:
    import xarray as xr

    from aefcli.published import Vectors

_BLOCKS = 1024  # that are read of a field, 256 x 256 px each; of a larger one its shares are of a sample
_OBSERVED = "observations_"


@dataclass(frozen=True)
class PeriodAbout:
    """One valid period. Shares and means are over the pixels read."""

    period: Period
    nodata: float  # share of the pixels, 0 to 1
    observations: Mapping[str, float]  # by source, the mean number of frames that saw a pixel clearly
    uncertainty: float | None  # mean, degrees, where the field has it
    extrapolated: bool | None  # whether no frame of the cube lies in it; None where the field does not say it
    frames: int | None  # of the cube that lie in it; None where the field does not say it
    share: float | None  # they are of the frames that were read for it

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "period": str(self.period)}


@dataclass(frozen=True)
class FieldAbout:
    """A field: where it lies, how it is stored, where it comes from, and what its periods hold."""

    path: Path
    format: str
    dtype: str
    dimensions: int
    decoding: str
    crs: str  # EPSG:32633; WKT where there is no code
    name: str  # of the CRS
    shape: tuple[int, int]  # rows, columns
    transform: tuple[float, ...]  # affine of the outer corner, as in GeoBox
    gsd: float  # width of a pixel in units of the CRS
    unit: str  # of these: metre, degree ...
    bbox: tuple[float, float, float, float]  # degrees, W S E N
    stored: int  # bytes on disk
    model: str  # "" where the field does not say it, as with those below
    recipe: str
    cube: str
    licence: str
    blocks: tuple[int, int]  # read for the shares, and of how many
    periods: tuple[PeriodAbout, ...]

    def as_dict(self) -> dict[str, Any]:
        """For --json; what a field does not say is null."""
        told = {key: value if value != "" else None for key, value in asdict(self).items()}
        read, blocks = self.blocks
        return {
            **told,
            "path": str(self.path),
            "blocks": {"read": read, "all": blocks},
            "periods": [each.as_dict() for each in self.periods],
        }


def about(vectors: Vectors) -> FieldAbout:
    """Read what a field says, and of its pixels, block by block, all or those of 1024 blocks spread over it."""
    grid = vectors.grid
    assert grid.crs is not None, "a field's grid has a CRS"
    crs, code = grid.crs.proj, grid.crs.to_epsg()
    west, south, east, north = (round(value, 6) for value in degrees(grid))
    rows, columns = (int(size) for size in grid.shape)
    store = open_field(vectors.path) if FORMAT_KEY in vectors.attrs else None
    tiles = list(colours.blocks((rows, columns), vectors.block))
    chosen = _spread(tiles, max(1, _BLOCKS // len(vectors.periods)))
    return FieldAbout(
        path=vectors.path,
        format=str(vectors.attrs.get(FORMAT_KEY, "published")),
        dtype=str(vectors.codes(Tile(0, 0, 1, 1)).dtype),
        dimensions=vectors.dimensions,
        decoding=vectors.decoding,
        crs=f"EPSG:{code}" if code else crs.to_wkt(),
        name=crs.name,
        shape=(rows, columns),
        transform=tuple(float(value) for value in tuple(grid.transform)[:6]),
        gsd=float(grid.transform.a),
        unit=str(crs.axis_info[0].unit_name),
        bbox=(west, south, east, north),
        stored=_on_disk(vectors.path),
        **_lineage(vectors.attrs),
        blocks=(len(chosen), len(tiles)),
        periods=tuple(_period(vectors, store, time, chosen) for time in range(len(vectors.periods))),
    )


def _period(vectors: Vectors, store: xr.Dataset | None, time: int, tiles: Sequence[Tile]) -> PeriodAbout:
    names = [str(name) for name in store.data_vars] if store is not None else []
    counted = [name for name in names if name.startswith(_OBSERVED)]
    sums = dict.fromkeys(counted, 0.0)
    empty, pixels, unsure, sure = 0, 0, 0.0, 0
    for tile in tiles:
        empty += int(_nodata(vectors, tile, time).sum())
        pixels += tile.shape[0] * tile.shape[1]
        window: dict[str, Any] = {"time": time, "y": tile.slices[0], "x": tile.slices[1]}
        for name in counted:
            assert store is not None
            sums[name] += float(store[name].isel(window).values.sum(dtype="float64"))
        if store is not None and "uncertainty" in names:
            values = store["uncertainty"].isel(window).values
            unsure, sure = unsure + float(np.nansum(values, dtype="float64")), sure + int(np.isfinite(values).sum())
    return PeriodAbout(
        period=vectors.periods[time],
        nodata=empty / pixels,
        observations={name.removeprefix(_OBSERVED): total / pixels for name, total in sums.items()},
        uncertainty=unsure / sure if sure else None,
        extrapolated=bool(found) if (found := _of_time(store, "extrapolated", time)) is not None else None,
        frames=int(found) if (found := _of_time(store, "frames_inside", time)) is not None else None,
        share=float(found) if (found := _of_time(store, "share_inside", time)) is not None else None,
    )


def _of_time(store: xr.Dataset | None, name: str, time: int) -> Any:
    """A coordinate's value at a time; None where the field has none of that name."""
    return None if store is None or name not in store.variables else store[name].values[time]


def _nodata(vectors: Vectors, tile: Tile, time: int) -> np.ndarray:
    """bool (h, w)."""
    codes, scales = vectors.stored(tile, time)
    if vectors.decoding == POWER:
        return codes[0] == -128  # in all dimensions at once, so that nothing has to be decoded
    return np.isnan(vectors.decode(codes, scales)[0])


def _spread(tiles: Sequence[Tile], most: int) -> list[Tile]:
    """All of them, or so many at random places."""
    if len(tiles) <= most:
        return list(tiles)
    return [tiles[index] for index in sorted(np.random.default_rng(0).choice(len(tiles), most, replace=False))]


def _lineage(attrs: Mapping[str, Any]) -> dict[str, str]:
    """Model, recipe, cube and licence, by our own attributes or those of the geoemb convention."""
    model = attrs.get("aef:model", "")
    if isinstance(model, Mapping):
        named = [str(model[key]) for key in ("run", "weights") if model.get(key)]
        model = ", weights ".join(named)
    recipe = ""
    if told := attrs.get("aef:recipe"):
        try:
            recipe = str(tomllib.loads(str(told)).get("name", ""))
        except tomllib.TOMLDecodeError:
            recipe = ""  # a hash or a name of somebody else's
    return {
        "model": str(model or attrs.get("geoemb:model", "")),
        "recipe": recipe,
        "cube": str(attrs.get("aef:cube", "")),
        "licence": str(attrs.get("license", attrs.get("licence", attrs.get("geoemb:license", "")))),
    }


def _on_disk(path: Path) -> int:
    """Bytes of a store's files, or of a raster's; a TESSERA tile's scales count."""
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    scales = path.with_name(f"{path.stem}_scales.npy")
    return path.stat().st_size + (scales.stat().st_size if scales.is_file() else 0)


def place(about: FieldAbout) -> str:
    """The grid in words: 256 rows x 256 columns of 10 m."""
    size = f"{about.gsd:g} m" if about.unit == "metre" else f"{about.gsd:.6g} {about.unit}s"
    area = math.prod(about.shape) * about.gsd**2 / 1e6
    covered = f", {area:,.4g} km2" if about.unit == "metre" else ""
    return f"{about.shape[0]} rows x {about.shape[1]} columns of {size}{covered}"


def frames(each: PeriodAbout) -> str:
    """How many frames of the cube lie in a period, and how much that is of those it was made of: 12 (8%)."""
    return f"{each.frames:,}" + ("" if each.share is None else f" ({each.share:.0%})")
