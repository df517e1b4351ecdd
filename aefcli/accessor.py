"""Fields in Python: `aefcli.open_field`, and what `ds.aef` adds to the xarray dataset of a field, opened in any way.

    >>> import aefcli
    >>> field = aefcli.open_field("embeddings.zarr")
    >>> print(field.aef.periods[0])
    2023-01-01:2023-12-31
    >>> field.aef.decode()  # doctest: +ELLIPSIS
    <xarray.DataArray 'embeddings' (time: 2, embedding: 64, y: 75, x: 70)> Size: 3MB
    dask.array<...>
    ...
    >>> field.aef.sample([3.004, 3.006], [48.751, 48.752]).sizes
    Frozen({'point': 2, 'time': 2, 'embedding': 64})
    >>> alike = field.aef.similarity(3.004, 48.751)  # lazy; alike.plot(col="time") computes and draws it
    >>> float(alike.max().compute().round(3))
    1.0
    >>> window = field.isel(time=0).sel(x=slice(500_200, 500_400))
    >>> window.aef.rgb().dims
    ('band', 'y', 'x')

`xr.open_zarr` does as well, with `mask_and_scale` or without, once `import aefcli.accessor` has made `ds.aef` known.

`open_field` gives arrays that are read when they are indexed, straight from Zarr and without dask, unless `chunks` asks
for it: opening is quick at any size, and points and windows are read two to three times as fast. What the accessor
computes over pixels is always dask, block by block as stored: a field may be far larger than memory.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from aefcli import colours
from aefcli.errors import BadInput
from aefcli.extent import Period, Tile
from aefcli.field import CHUNK, NODATA, coded, decode, degrees, geobox, sample
from aefcli.field import open_field as _open

if TYPE_CHECKING:
    from odc.geo.geobox import GeoBox


def open_field(path: Path | str, chunks: Any = None) -> xr.Dataset:
    """Open a finished field: `embeddings` (time, embedding, y, x) as stored, and what lies beside them. Reads none.

    `chunks` as xarray takes them ("auto", {}, {"y": 512, "x": 512}) makes every array dask; {} takes the chunks
    stored. Of several fields in a group one is opened by its own path, `region.zarr/a`. Raises BadInput where there is
    no finished field.
    """
    found = _open(Path(path))
    if chunks is None:
        return found
    return found.chunk(_preferred(found["embeddings"]) if chunks == {} else chunks)


@xr.register_dataset_accessor("aef")
class FieldAccessor:
    """`ds.aef`, of a field or of a window of one: slices of y and x, any periods, one period.

    Raises BadInput where the dataset has no embeddings, or where too little of them is left.
    """

    def __init__(self, dataset: xr.Dataset) -> None:
        embeddings = dataset.get("embeddings")
        if embeddings is None or "embedding" not in embeddings.dims:
            raise BadInput("the dataset has no embeddings with a dimension `embedding`", "open a field: see aefcli")
        self._field = dataset

    @property
    def grid(self) -> GeoBox:
        """Where the pixels lie, to the last digit; of a window, where those of the window do."""
        self._needs("y", "x")
        return geobox(self._field)

    @property
    def periods(self) -> tuple[Period, ...]:
        """The valid period of each time, half open."""
        if "time_bnds" not in self._field.variables:
            raise BadInput("the dataset has no time_bnds", "keep that coordinate")
        bounds = np.asarray(self._field["time_bnds"].values).astype("datetime64[ms]").astype("int64").reshape(-1, 2)
        return tuple(Period(int(start), int(end)) for start, end in bounds)

    def decode(self, chunks: Any = None) -> xr.DataArray:
        """Unit vectors, float32, of the embeddings' shape (time, embedding, y, x); NaN throughout where nodata.

        Lazy, block by block. `chunks` ({"y": 512, "x": 512}) are taken instead of those that the field has or was
        opened with; all 64 dimensions stay together, as each vector is divided by its length.
        """
        stored = self._lazy(chunks)
        is_coded = coded(stored)
        return self._mapped(
            lambda values: decode(values, codes=is_coded), stored, np.float32, output=["embedding"]
        ).assign_attrs(long_name="embedding, a unit vector", units="1")

    def mask(self) -> xr.DataArray:
        """bool (time, y, x): True where there is data. Lazy."""
        stored = self._lazy()

        def there(values: np.ndarray) -> np.ndarray:
            nodata = values == NODATA if values.dtype == np.int8 else ~np.isfinite(values)
            return ~nodata.any(axis=-1) & (values != 0).any(axis=-1)

        return self._mapped(there, stored, bool).rename("mask").assign_attrs(long_name="whether there is data")

    def sample(self, lon: Any, lat: Any) -> xr.DataArray:
        """Vectors at points: float32 (point, time, embedding) of unit length; NaN where outside or nodata.

        lon, lat: (n,) or single numbers, degrees (WGS 84). A point takes the pixel it lies in. The coordinates `lon`,
        `lat` and `inside` (whether on the grid) go with the points. Reads at once, and only the chunks that hold
        points, each once.
        """
        longitudes, latitudes = (np.atleast_1d(np.asarray(each, dtype="float64")) for each in (lon, lat))
        if not longitudes.shape == latitudes.shape == (longitudes.size,):
            raise BadInput(f"lon {longitudes.shape} and lat {latitudes.shape} are not two lists of points", "give both")
        self._needs("y", "x")
        self._whole()
        found = self._field
        if "time" not in found["embeddings"].dims:
            found = found[["embeddings"]].chunk(_preferred(found["embeddings"])).expand_dims("time")
        vectors, inside = sample(found, longitudes, latitudes)
        along = {name: found[name].variable for name in ("time", "embedding") if name in found.coords}
        points = {"lon": ("point", longitudes), "lat": ("point", latitudes), "inside": ("point", inside)}
        whole = xr.DataArray(vectors, {**along, **points}, ("point", "time", "embedding"), "embeddings")
        return whole if found is self._field else whole.isel(time=0)

    def similarity(self, lon: float, lat: float) -> xr.DataArray:
        """Cosine of every pixel's vector with that of the pixel at a place, in the same period: (time, y, x), float32.

        lon, lat: degrees (WGS 84). NaN where nodata, and in all of a period that has no data at the place. The place is
        read at once, the rest is lazy. Raises BadInput where the place is outside, or without data in all periods.
        """
        here = self.sample(lon, lat).isel(point=0, drop=True)
        if not np.isfinite(here.values).any():
            what = f"there is no data at {float(lon):g}, {float(lat):g}"
            raise BadInput(
                what, f"the field covers {','.join(f'{value:.4f}' for value in degrees(self.grid))} (W,S,E,N)"
            )
        stored = self._lazy()
        is_coded = coded(stored)

        def cosine(values: np.ndarray, reference: np.ndarray) -> np.ndarray:
            return np.clip(np.einsum("...k,...k->...", decode(values, codes=is_coded), reference), -1, 1)

        found = self._mapped(cosine, stored, np.float32, here.reset_coords(drop=True)).rename("similarity")
        return found.assign_attrs(long_name=f"cosine similarity to {float(lon):g}, {float(lat):g}", units="1")

    def rgb(self) -> xr.DataArray:
        """The first three principal components as colours: uint8 (time, band, y, x), red, green, blue and alpha.

        One fit for all periods, on a sample of the blocks, which is read at once; the painting is lazy. Alpha is 0
        where nodata. `rgb().isel(time=0).plot.imshow()` draws a period. A window has a fit of its own.
        """
        stored = self._lazy()
        fitted = self._fitted

        def paint(values: np.ndarray) -> np.ndarray:
            vectors = decode(values, codes=is_coded)
            return fitted.paint(vectors.reshape(-1, vectors.shape[-1])).reshape(*vectors.shape[:-1], 4)

        is_coded = coded(stored)
        found = self._mapped(paint, stored, np.uint8, output=["band"], sizes={"band": 4})
        bands = np.array(["red", "green", "blue", "alpha"])
        return found.rename("rgb").assign_coords(band=bands).assign_attrs(long_name="principal components as colours")

    @cached_property
    def _fitted(self) -> colours.Colours:
        stored = self._field["embeddings"]
        self._needs("y", "x")
        times = stored.sizes.get("time", 1)

        def read(tile: Tile, time: int) -> np.ndarray:
            rows, columns = tile.slices
            at: dict[Hashable, Any] = {"y": rows, "x": columns, **({"time": time} if "time" in stored.dims else {})}
            window = stored.isel(at)
            return decode(window.transpose("embedding", "y", "x").values, axis=0, codes=coded(stored))

        return colours.fit(read, (stored.sizes["y"], stored.sizes["x"]), times, (CHUNK, CHUNK))

    def _needs(self, *dims: str) -> None:
        for name in dims:
            if name not in self._field["embeddings"].dims:
                raise BadInput(
                    f"no dimension {name} is left of the field", f"take a window, as isel({name}=slice(9, 10))"
                )

    def _lazy(self, chunks: Any = None) -> xr.DataArray:
        """The embeddings as dask, with whole vectors in every block."""
        stored = self._whole()
        if chunks is not None or stored.chunks is None:
            stored = stored.chunk({**_preferred(stored), **(chunks or {})})
        return stored.chunk(embedding=-1)

    def _whole(self) -> xr.DataArray:
        """The embeddings, if all of each vector are left."""
        stored = self._field["embeddings"]
        labels = stored.sizes["embedding"]
        if (whole := self._field.attrs.get("geoemb:dimensions", labels)) != labels:
            raise BadInput(f"{labels} of {whole} dimensions are left of each vector", "keep all: its length needs them")
        return stored

    def _mapped(
        self,
        function: Callable[..., np.ndarray],
        stored: xr.DataArray,
        dtype: Any,
        *others: xr.DataArray,
        output: list[str] | None = None,
        sizes: dict[Hashable, int] | None = None,
    ) -> xr.DataArray:
        """`function` over blocks of vectors (..., d), lazily; the output's own dimension goes where `embedding` was."""
        found = xr.apply_ufunc(
            function,
            stored,
            *others,
            input_core_dims=[["embedding"]] * (1 + len(others)),
            output_core_dims=[output or []],
            dask="parallelized",
            output_dtypes=[dtype],
            dask_gufunc_kwargs={"output_sizes": sizes} if sizes else None,
            keep_attrs=False,
        )
        order = [name for dim in stored.dims for name in ((output or []) if dim == "embedding" else [dim])]
        found = found.transpose(*order)
        if "grid_mapping" in {**stored.attrs, **stored.encoding}:
            found.encoding["grid_mapping"] = {**stored.attrs, **stored.encoding}["grid_mapping"]
        return found


def _preferred(stored: xr.DataArray) -> dict[Hashable, int]:
    """The chunks of the array as stored; the usual ones where it came from elsewhere."""
    usual = {"time": 1, "embedding": stored.sizes["embedding"], "y": CHUNK, "x": CHUNK}
    chunks = {**usual, **stored.encoding.get("preferred_chunks", {})}
    return {name: chunks[name] for name in stored.dims if name in chunks}
