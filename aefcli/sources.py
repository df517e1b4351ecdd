"""Every sensor the toolkit knows, in one table.

Owns what is fixed about a source: its bands and how catalogs name them, its spacing, how a stored number becomes
a physical value and that value becomes a model input, how its quality layer says "clear", and its loss settings.
Does not read anything. To add a sensor, add a row.

Numbers: method.md section 8 and sources.md (paper S1, Tables S1 and S2). `mean` and `std` are of the transformed
physical values; a run names the ones that it was trained with, and is refused under others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from aefcli.errors import unknown

if TYPE_CHECKING:
    import numpy as np

Transform = Literal["log", "db", "linear"]


@dataclass(frozen=True)
class Band:
    """One band. `assets` are the keys catalogs use for it, the first found wins; gsd in metres."""

    name: str
    assets: tuple[str, ...]
    gsd: int
    transform: Transform
    mean: float
    std: float
    scale: float = 1.0  # of the stored number, where an item announces none
    offset: float = 0.0
    valid: tuple[float, float] | None = None  # transformed values outside it count as not delivered


@dataclass(frozen=True)
class Quality:
    """The product's own per-pixel quality layer. Exactly one of `clear_values` and `cloud_bits` is used."""

    name: str
    assets: tuple[str, ...]
    dtype: str
    nodata: int
    clear_values: tuple[int, ...] = ()
    cloud_bits: tuple[int, ...] = ()

    def clear(self, layer: np.ndarray) -> np.ndarray:
        """True where the product calls the pixel clear; same shape as `layer`, any integer dtype."""
        import numpy as np

        if self.clear_values:
            return np.isin(layer, self.clear_values)
        return (layer & sum(1 << bit for bit in self.cloud_bits)) == 0


@dataclass(frozen=True)
class Source:
    """A sensor or product. Spacings in metres; collections in order of preference."""

    name: str
    gsd: int
    bands: tuple[Band, ...]
    collections: tuple[str, ...]
    dtype: str
    nodata: float  # nan where the provider uses it
    quality: Quality | None = None
    platforms: tuple[str, ...] = ()  # only these, if any are named
    role: Literal["input+target", "target"] = "input+target"
    kind: Literal["continuous", "categorical", "text"] = "continuous"
    classes: tuple[int, ...] = ()  # codes of a categorical source; its one band holds them
    static: bool = False  # describes a whole year or all times: the frame nearest to the support serves at any instant
    meta: tuple[str, ...] = ()  # acquisition geometry that its decoder is told, a number each
    weight: float = 1.0  # of its error in the loss
    shift: int = 0  # metres: the error is the smallest over planar shifts of up to this
    regrid: int = 0  # metres: both sides of the error are averaged to this spacing first; 0 for not at all

    @property
    def outputs(self) -> int:
        """Numbers that its decoder gives per pixel: bands, or the logits of its classes."""
        return len(self.classes) or len(self.bands)

    def band(self, name: str) -> Band:
        for band in self.bands:
            if band.name == name:
                return band
        raise unknown(f"band of {self.name}", name, [band.name for band in self.bands])


_SENTINEL_2 = Source(
    name="sentinel-2",
    gsd=10,
    # L2A: surface reflectance, stored as 10,000 times it, less the item's offset.
    bands=(
        Band("B02", ("blue", "B02"), 10, "log", 6.55, 0.80, scale=1e-4),
        Band("B03", ("green", "B03"), 10, "log", 6.80, 0.65, scale=1e-4),
        Band("B04", ("red", "B04"), 10, "log", 6.70, 0.85, scale=1e-4),
        Band("B08", ("nir", "B08"), 10, "log", 7.85, 0.50, scale=1e-4),
        Band("B11", ("swir16", "B11"), 20, "log", 7.45, 0.60, scale=1e-4),
    ),
    collections=("sentinel-2-c1-l2a", "sentinel-2-l2a"),
    dtype="uint16",
    nodata=0,
    shift=20,
    # Scene classification: dark, vegetation, bare, water, unclassified, snow are clear.
    quality=Quality("scl", ("scl", "SCL"), "uint8", 0, clear_values=(2, 4, 5, 6, 7, 11)),
)

_SENTINEL_1 = Source(
    name="sentinel-1",
    gsd=10,
    # RTC: terrain-corrected gamma nought, linear power; both orbit directions.
    bands=(
        Band("VV", ("vv", "VV"), 10, "db", -11.0, 4.0, valid=(-30.0, 10.0)),
        Band("VH", ("vh", "VH"), 10, "db", -17.5, 4.5, valid=(-30.0, 10.0)),
        Band("HH", ("hh", "HH"), 10, "db", -11.0, 4.0, valid=(-30.0, 10.0)),
        Band("HV", ("hv", "HV"), 10, "db", -17.5, 4.5, valid=(-30.0, 10.0)),
    ),
    collections=("sentinel-1-rtc",),
    dtype="float32",
    nodata=-32768.0,
    meta=("orbit",),  # 1 ascending, -1 descending; with the latitude it fixes the heading
    shift=20,
)

_LANDSAT = Source(
    name="landsat",
    gsd=30,
    # Collection 2 level 2: surface reflectance, and surface temperature in kelvin.
    bands=(
        Band("B2", ("blue", "SR_B2"), 30, "log", 6.55, 0.80, scale=2.75e-5, offset=-0.2),
        Band("B3", ("green", "SR_B3"), 30, "log", 6.80, 0.65, scale=2.75e-5, offset=-0.2),
        Band("B4", ("red", "SR_B4"), 30, "log", 6.70, 0.85, scale=2.75e-5, offset=-0.2),
        Band("B5", ("nir08", "SR_B5"), 30, "log", 7.85, 0.50, scale=2.75e-5, offset=-0.2),
        Band("B6", ("swir16", "SR_B6"), 30, "log", 7.45, 0.60, scale=2.75e-5, offset=-0.2),
        Band("B10", ("lwir11", "ST_B10"), 30, "linear", 291.0, 13.0, scale=0.00341802, offset=149.0),
    ),
    collections=("landsat-c2-l2",),
    dtype="uint16",
    nodata=0,
    regrid=30,
    # Fill, dilated cloud, cirrus, cloud, shadow: bits 0-4 of QA_PIXEL.
    quality=Quality("qa_pixel", ("qa_pixel",), "uint16", 1, cloud_bits=(0, 1, 2, 3, 4)),
    platforms=("landsat-8", "landsat-9"),
)

SOURCES: dict[str, Source] = {source.name: source for source in (_SENTINEL_2, _SENTINEL_1, _LANDSAT)}
INPUTS = tuple(name for name, source in SOURCES.items() if source.role == "input+target")


def statistics() -> dict[str, dict[str, tuple[str, float, float]]]:
    """Transform, mean and std of every band: what a model's inputs hang on beside its weights."""
    return {
        name: {band.name: (band.transform, band.mean, band.std) for band in source.bands}
        for name, source in SOURCES.items()
    }


def source(name: str) -> Source:
    """The row of that name; an unknown one is refused with the nearest."""
    if name not in SOURCES:
        raise unknown("source", name, SOURCES)
    return SOURCES[name]


def transform(values: Any, kind: Transform) -> Any:
    """Physical values to the scale that is standardised [paper S1]; numpy in, numpy out, any shape.

    log: natural log of (1 + 10,000 x reflectance), negatives as 0. db: 10 log10 of linear power. Zero power is -inf,
    which every `valid` range excludes.
    """
    import numpy as np

    if kind == "log":
        return np.log1p(np.maximum(values, 0) * 1e4)
    if kind == "db":
        with np.errstate(divide="ignore", invalid="ignore"):
            return 10 * np.log10(values)
    return values
