"""Small things that several tests are made of: a toy recipe, frames of noise, a made-up cube."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import psutil
import torch

from aefcli import recipe, sample
from aefcli.batch import DAY, Batch, Frames
from aefcli.cube import Cube, open_cube, write_cube
from aefcli.extent import Period
from aefcli.sample import batches, draw
from aefcli.sources import INPUTS, SOURCES
from aefcli.text import Texts

YEAR = Period.parse("2023")


def toy_recipe(**tables: dict[str, object]) -> recipe.Recipe:
    """`nano` with everything as small as the architecture allows."""
    model = {
        "blocks": 4,
        "precision": 16,
        "time": 32,
        "space": 32,
        "head": 16,
        "mlp_ratio": 2,
        "pool_heads": 2,
        "pool_width": 4,
        "pool_value": 4,
        "pool_detail": 6,
        "neighbours": 1,
        "decoder": 32,
    }
    small = {
        "data": {"frames": [6, 4, 4], "patch": 32, "windows": 4, "site": 48},
        "model": model,
        "loss": {
            "uniformity": 0.05,
            "consistency": 0.02,
            "whole_support": 0.3,
            "pixels": 256,
            "targets": 1,
            "student_every": 1,
        },
        "train": {"steps": 3, "batch": 2, "warmup": 1, "agree": 1, "settle": 1, "save_every": 2, "look_every": 2},
        "embed": {"patch": 48, "halo": 8},
    }
    plan = recipe.load("nano").replace(**small)
    return plan.replace(**tables) if tables else plan


def stream(
    cubes: Sequence[Cube], plan: recipe.Recipe, texts: Texts | None = None, **options: int
) -> Generator[Batch, None, None]:
    """Training batches of a table of samples drawn for them."""
    return sample.batches(cubes, sample.draw(cubes, plan, texts), plan, texts=texts, **options)


def first_batch(cube: Cube, plan: recipe.Recipe, seed: int = 0) -> Batch:
    """The first batch of training on one cube."""
    plan = plan.replace(train={"seed": seed})
    with closing(batches([cube], draw([cube], plan), plan)) as stream:
        return next(stream)


def noise_frames(name: str, *, b: int = 2, t: int = 4, side: int = 32, seed: int = 0) -> Frames:
    """Frames of noise in 2023, all present and clear; of a categorical source random classes."""
    rng = torch.Generator().manual_seed(seed)
    source = SOURCES[name]
    bands, shape = len(source.bands), (b, t, len(source.bands), side, side)
    day = torch.randint(0, 365, (b, t), generator=rng)
    classes = torch.randint(0, len(source.classes), shape, generator=rng).float() if source.classes else None
    return Frames(
        pixels=torch.randn(shape, generator=rng) if classes is None else classes,
        present=torch.ones(b, t, side, side, dtype=torch.bool),
        bands=torch.ones(b, t, bands, dtype=torch.bool),
        weight=torch.ones(b, t, side, side),
        time=YEAR.start + day * DAY,
        meta=torch.zeros(b, t, len(source.meta)),
    )


def noise_inputs(**options: int) -> dict[str, Frames]:
    return {name: noise_frames(name, seed=index, **options) for index, name in enumerate(INPUTS)}


def made_up_cube(path: Path, *, side: int = 96, seed: int = 0, hole: bool = True, epsg: int = 32633) -> Cube:
    """A cube of two smooth land covers with seasons: Sentinel-2 every 12 days, Sentinel-1 every 24, at 10 m.

    With `hole`, the top left 12x12 px are clouded in every frame, so that the field has nodata there.
    """
    import rioxarray  # noqa: F401 - adds .rio
    import xarray as xr

    rng = np.random.default_rng(seed)
    y, x = 5_000_000 - 10 * (np.arange(side) + 0.5), 500_000 + 10 * (np.arange(side) + 0.5)
    cover = (np.add.outer(np.arange(side) // 16, np.arange(side) // 24) % 2).astype(float)
    start = np.datetime64("2023-01-05", "ms")

    def dataset(name: str, every: int, level: float, swing: float, noise: float) -> xr.Dataset:
        days = np.arange(0, 355, every)
        season = np.sin(2 * np.pi * days / 365)[:, None, None] * (2 * cover - 1)
        variables = {}
        for index, band in enumerate(SOURCES[name].bands[: 2 if name == "sentinel-1" else 5]):
            values = level * (1 + swing * season * (index + 1) / 5) * (1 + noise * rng.standard_normal(season.shape))
            variables[band.name] = (("time", "y", "x"), values.astype(SOURCES[name].dtype))
        if name == "sentinel-2":
            scl = np.full(season.shape, 4, dtype="uint8")
            scl[:, :12, :12] = 9 if hole else 4
            variables["scl"] = (("time", "y", "x"), scl)
        elif hole:
            for _, values in variables.values():
                values[:, :12, :12] = SOURCES[name].nodata
        coords = {"time": start + days * np.timedelta64(1, "D"), "y": y, "x": x}
        return xr.Dataset(variables, coords).rio.write_crs(epsg)

    made = {
        "sentinel-2": dataset("sentinel-2", 12, 2000.0, 0.5, 0.05),
        "sentinel-1": dataset("sentinel-1", 24, 0.1, 0.5, 0.2),
    }
    return open_cube(write_cube(path, made, YEAR))


def sub_pixel_share(field: torch.Tensor) -> float:
    """Share of the variance of embeddings (b, d, h, w) that the place in the 2x2 cell explains."""
    cells = field.unflatten(-1, (-1, 2)).unflatten(2, (-1, 2))  # b d y 2 x 2
    phase = cells.mean(dim=(0, 2, 4)).var(dim=(1, 2), unbiased=False).sum()
    return (phase / field.var(dim=(0, 2, 3), unbiased=False).sum()).item()


def workers() -> list[psutil.Process]:
    """The workers of a cluster of this process. multiprocessing's keeper of semaphores is a child as well."""
    found = []
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            if "--multiprocessing-fork" in child.cmdline():
                found.append(child)
    return found
