"""Every sensor the toolkit knows, in one table.

Owns what is fixed about a source: its bands and how catalogs name them, its spacing, how a stored number becomes
a physical value and that value becomes a model input, how its quality layer says "clear", and its loss settings.
Does not read anything. To add a sensor, add a row.

Numbers: method.md section 8 and sources.md (paper S1, Tables S1 and S2). `mean` and `std` are of the transformed
physical values; a run names the ones that it was trained with, and is refused under others. Those of the target-only
sources are rounded guesses for the land of the Earth: no global sample was at hand, and tests/test_sources.py holds
ERA5's temperature, GEDI and NLCD against one real file each.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from aefcli.errors import unknown

if TYPE_CHECKING:
    import numpy as np

Transform = Literal["log", "db", "amplitude", "linear"]


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
    derived: bool = False  # computed from the asset after it was brought onto the grid, not read from it


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
        """True where the product calls the pixel clear; same shape as `layer`, of unsigned integers."""
        import numpy as np

        if self.clear_values:
            return np.logical_or.reduce([layer == value for value in self.clear_values])
        return (layer & sum(1 << bit for bit in self.cloud_bits)) == 0


@dataclass(frozen=True)
class Source:
    """A sensor or product. Spacings in metres; collections in order of preference, none where no catalog has it.

    `knowingly` are the collections that are read only where somebody names them; `of` says how their numbers differ.
    A text source has no bands: its vectors come from a table of points, and `loss.text` of the recipe is its weight.
    """

    name: str
    gsd: int
    bands: tuple[Band, ...]
    collections: tuple[str, ...]
    dtype: str
    nodata: float  # nan where the provider uses it
    quality: Quality | None = None
    knowingly: tuple[str, ...] = ()
    platforms: tuple[str, ...] = ()  # only these, if any are named
    takes: tuple[tuple[str, tuple[str, ...]], ...] = ()  # property of an item, and its values that are taken, if stated
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

    def of(self, collection: str) -> Source:
        """The row as this collection has it: other statistics, another quality layer, other numbers [sources.md]."""
        return replace(self, **_PRODUCTS.get((self.name, collection), {}))

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
    collections=("sentinel-2-c1-l2a", "sentinel-2-l2a", "sentinel-s2-l2a-cogs"),
    knowingly=("sentinel-2-l1c", "sentinel-2-pre-c1-l2a"),
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
    knowingly=("sentinel-1-grd",),
    takes=(("sar:instrument_mode", ("IW",)),),
    dtype="float32",
    nodata=-32768.0,
    # 1 ascending, -1 descending. The heading and the band of the angle of incidence are not in the catalogs.
    meta=("orbit",),
    shift=20,
)

_LANDSAT = Source(
    name="landsat",
    gsd=30,
    # Collection 2 level 2: surface reflectance, and surface temperature in kelvin.
    bands=(
        Band("B2", ("blue", "SR_B2", "SR_B2.TIF"), 30, "log", 6.55, 0.80, scale=2.75e-5, offset=-0.2),
        Band("B3", ("green", "SR_B3", "SR_B3.TIF"), 30, "log", 6.80, 0.65, scale=2.75e-5, offset=-0.2),
        Band("B4", ("red", "SR_B4", "SR_B4.TIF"), 30, "log", 6.70, 0.85, scale=2.75e-5, offset=-0.2),
        Band("B5", ("nir08", "SR_B5", "SR_B5.TIF"), 30, "log", 7.85, 0.50, scale=2.75e-5, offset=-0.2),
        Band("B6", ("swir16", "SR_B6", "SR_B6.TIF"), 30, "log", 7.45, 0.60, scale=2.75e-5, offset=-0.2),
        Band("B10", ("lwir11", "ST_B10", "ST_B10.TIF"), 30, "linear", 291.0, 13.0, scale=0.00341802, offset=149.0),
    ),
    collections=("landsat-c2-l2", "landsat-8-c2-l2", "landsat-c2l2-sr"),
    dtype="uint16",
    nodata=0,
    regrid=30,
    # Fill, dilated cloud, cirrus, cloud, shadow: bits 0-4 of QA_PIXEL.
    quality=Quality("qa_pixel", ("qa_pixel", "QA_PIXEL", "QA_PIXEL.TIF"), "uint16", 1, cloud_bits=(0, 1, 2, 3, 4)),
    platforms=("landsat-8", "landsat-9"),
    takes=(("landsat:collection_category", ("T1", "RT")),),  # tier 2 lies up to 12 m and more off
)

_PALSAR_2 = Source(
    name="palsar-2",
    gsd=25,
    # ScanSAR L2.2: terrain-flattened gamma nought in dB, the local incidence angle in radians (stored as 0.01 degrees).
    # Catalogs have the yearly mosaics alone.
    bands=(
        Band("HH", ("HH",), 25, "amplitude", -9.0, 4.5),
        Band("HV", ("HV",), 25, "amplitude", -16.0, 5.0),
        Band("LIN", ("linci",), 25, "linear", 0.65, 0.20, scale=1.7453293e-4),
    ),
    collections=("alos-palsar-mosaic",),
    dtype="uint16",
    nodata=0,
    role="target",
    meta=("pass", "look"),  # 1 ascending, -1 descending; 1 right, -1 left
    regrid=30,
)

_ERA5_LAND = Source(
    name="era5-land",
    gsd=11_000,
    # Of a month: total precipitation in metres with its driest and wettest day; air temperature and dew point 2 m above
    # ground in kelvin, and surface pressure in pascal, each the mean, the lowest and the highest of its hours.
    bands=(
        Band("total_precipitation_sum", (), 11_000, "linear", 0.065, 0.080),
        Band("total_precipitation_min", (), 11_000, "linear", 0.0002, 0.0010),
        Band("total_precipitation_max", (), 11_000, "linear", 0.014, 0.014),
        Band("temperature_2m", (), 11_000, "linear", 284.0, 14.0),
        Band("temperature_2m_min", (), 11_000, "linear", 273.0, 17.0),
        Band("temperature_2m_max", (), 11_000, "linear", 296.0, 13.0),
        Band("dewpoint_temperature_2m", (), 11_000, "linear", 277.0, 13.0),
        Band("dewpoint_temperature_2m_min", (), 11_000, "linear", 266.0, 16.0),
        Band("dewpoint_temperature_2m_max", (), 11_000, "linear", 285.0, 12.0),
        Band("surface_pressure", (), 11_000, "linear", 94_500.0, 7_500.0),
        Band("surface_pressure_min", (), 11_000, "linear", 93_400.0, 7_500.0),
        Band("surface_pressure_max", (), 11_000, "linear", 95_500.0, 7_500.0),
    ),
    collections=(),
    dtype="float32",
    nodata=math.nan,
    role="target",
)

_GEDI = Source(
    name="gedi",
    gsd=25,
    # L2A: metres above ground below which n % of a shot's energy came back. Low ones lie below the ground's middle.
    bands=tuple(Band(f"RH{n}", (), 25, "linear", 0.14 * n - 4.0, 0.07 * n + 2.0) for n in range(101)),
    collections=(),
    dtype="float32",
    nodata=math.nan,
    role="target",
    regrid=20,
)

_GRACE = Source(
    name="grace",
    gsd=55_000,
    # Mascons, monthly: water on and below the ground as a depth in centimetres, less the mean of 2004 to 2009.
    bands=(Band("lwe_thickness", (), 55_000, "linear", 0.0, 15.0),),
    collections=(),
    dtype="float32",
    nodata=math.nan,
    role="target",
    weight=0.5,
    regrid=1280,
)

_GLO_30 = Source(
    name="glo-30",
    gsd=30,
    # Elevation in metres above the geoid, slope in degrees, where it faces as an angle from north; flat is 0 and 0.
    bands=(
        Band("elevation", ("data",), 30, "linear", 650.0, 800.0),
        Band("slope", ("data",), 30, "linear", 6.0, 8.0, derived=True),
        Band("aspect_sine", ("data",), 30, "linear", 0.0, 0.7, derived=True),
        Band("aspect_cosine", ("data",), 30, "linear", 0.0, 0.7, derived=True),
    ),
    collections=("cop-dem-glo-30",),
    dtype="float32",
    nodata=math.nan,
    role="target",
    static=True,
    regrid=30,
)

_NLCD = Source(
    name="nlcd",
    gsd=30,
    bands=(Band("land_cover", (), 30, "linear", 0.0, 1.0),),
    collections=(),
    dtype="uint8",
    nodata=0,
    role="target",
    kind="categorical",
    # Water, ice; developed; bare; forest; shrub (51 in Alaska); herbs (72-74 in Alaska); pasture, crops; wetlands.
    classes=(11, 12, 21, 22, 23, 24, 31, 41, 42, 43, 51, 52, 71, 72, 73, 74, 81, 82, 90, 95),
    static=True,  # the nearest mapped year
    weight=0.5,
    regrid=30,
)

_CROPS = (
    *(*range(1, 7), *range(10, 15), *range(21, 40), *range(41, 62), *range(63, 73), *range(74, 78), 82, 83, 87, 92),
    *(111, 112, *range(121, 125), 131, *range(141, 144), 152, 176, 190, 195, *range(204, 251), 254),
)
_CDL = Source(
    name="cdl",
    gsd=30,
    # Cropland Data Layer: crops of the United States; its clouds (81) and what it calls undefined (88) are no class.
    bands=(Band("crop", ("cropland",), 30, "linear", 0.0, 1.0),),
    collections=("usda-cdl",),
    dtype="uint8",
    nodata=0,
    role="target",
    kind="categorical",
    classes=_CROPS,
    static=True,  # the nearest mapped year
    weight=0.5,
    regrid=30,
)

_WORLDCOVER = Source(
    name="worldcover",
    gsd=10,
    bands=(Band("cover", ("map",), 10, "linear", 0.0, 1.0),),
    collections=("esa-worldcover",),
    dtype="uint8",
    nodata=0,
    role="target",
    kind="categorical",
    # Trees, shrubs, grass, crops, built-up, bare, snow and ice, water, herbaceous wetland, mangroves, moss and lichen.
    classes=(10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 100),
    static=True,  # the nearest mapped year
    weight=0.5,
)

_TEXT = Source(
    name="text",
    gsd=0,
    bands=(),
    collections=(),
    dtype="float32",
    nodata=math.nan,
    role="target",
    kind="text",
)

_INPUTS = (_SENTINEL_2, _SENTINEL_1, _LANDSAT)
_TARGETS = (_PALSAR_2, _ERA5_LAND, _GEDI, _GRACE, _GLO_30, _NLCD, _CDL, _WORLDCOVER, _TEXT)
SOURCES: dict[str, Source] = {source.name: source for source in (*_INPUTS, *_TARGETS)}
# Words of acquisition geometry, as the numbers that decoders are given.
WORDS = {"ascending": 1.0, "descending": -1.0, "right": 1.0, "left": -1.0}
INPUTS = tuple(name for name, source in SOURCES.items() if source.role == "input+target")


# Whose the data are and what they may be used for, in a line. Catalogs that process them anew may ask for more.
LICENCES: dict[str, str] = {
    "sentinel-2": "Copernicus Sentinel terms: free and open; say 'contains modified Copernicus Sentinel data'",
    "sentinel-1": "Copernicus Sentinel terms: free and open; say 'contains modified Copernicus Sentinel data'",
    "landsat": "public domain; credit the U.S. Geological Survey",
    "palsar-2": "JAXA's terms for the ALOS and ALOS-2 products; credit JAXA",
    "era5-land": "terms of the Copernicus Climate Change Service: free; credit it",
    "gedi": "NASA open data; citation asked for",
    "grace": "NASA open data; citation asked for",
    "glo-30": "licence of the Copernicus DEM: free; say that it was produced using Copernicus WorldDEM-30",
    "nlcd": "public domain; credit the U.S. Geological Survey",
    "cdl": "public domain; credit USDA NASS",
    "worldcover": "CC BY 4.0; credit the ESA WorldCover project",
    "text": "those of whoever wrote the texts",
}
SIMULATED = "CC0: made up by aef simulate"

# What differs where a collection has something else under a source's name. Top-of-atmosphere reflectance is brighter
# in blue and has no scene classification; means and deviations are rounded guesses, as those of the targets.
_TOA = {"B02": (7.20, 0.45), "B03": (7.05, 0.50), "B04": (6.90, 0.65), "B08": (7.80, 0.45), "B11": (7.40, 0.60)}
_PRODUCTS: dict[tuple[str, str], dict[str, Any]] = {
    ("sentinel-2", "sentinel-2-l1c"): {
        "bands": tuple(replace(band, mean=_TOA[band.name][0], std=_TOA[band.name][1]) for band in _SENTINEL_2.bands),
        "quality": None,
    },
    # Digital numbers without calibration, in the geometry of the radar: as power, none is a valid value.
    ("sentinel-1", "sentinel-1-grd"): {"nodata": 0.0},
    # One image of the whole year, its angle in whole degrees; layover and shadow are not clear.
    ("palsar-2", "alos-palsar-mosaic"): {
        "bands": (*_PALSAR_2.bands[:2], replace(_PALSAR_2.bands[2], scale=math.pi / 180)),
        "quality": Quality("mask", ("mask",), "uint8", 0, clear_values=(50, 255)),
        "static": True,
    },
}


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
    which every `valid` range excludes. amplitude: dB of PALSAR's digital numbers, 10 log10(DN^2) - 83.
    """
    import numpy as np

    if kind == "log":
        return np.log1p(np.maximum(values, 0) * 1e4)
    if kind == "db":
        with np.errstate(divide="ignore", invalid="ignore"):
            return 10 * np.log10(values)
    if kind == "amplitude":
        return 20 * np.log10(values) - 83
    return values


def valid(stored: np.ndarray, nodata: float) -> np.ndarray:
    """True where a value was delivered. NaN is never one, whatever the provider's nodata."""
    import numpy as np

    delivered = np.ones(stored.shape, bool) if math.isnan(nodata) else stored != nodata
    return delivered & np.isfinite(stored) if stored.dtype.kind == "f" else delivered
