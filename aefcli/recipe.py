"""An experiment as a file: which sources, which model, which losses, how it is trained and applied.

Owns the recipe's shape, its reading and writing (TOML, one level of tables, no inheritance) and its hash, which goes
wherever results go. A recipe is data: it names no code, and keys it does not know are refused with the nearest
one that it does. Numbers of the paper: method.md sections 3-9.
"""

from __future__ import annotations

import tomllib
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from aefcli.errors import BadInput, unknown
from aefcli.ledger import digest
from aefcli.sources import SOURCES

Positive = Annotated[int, Field(gt=0)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Dtype = Literal["float32", "bfloat16"]
Multiple16 = Annotated[int, Field(gt=0, multiple_of=16)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=False)


class Data(_Table):
    """What training reads. `frames[i]` is the most frames taken of `sources[i]` per sample."""

    sources: tuple[str, ...]  # inputs, and targets too
    frames: tuple[Positive, ...]
    targets: tuple[str, ...]  # sources that are decoded alone
    patch: Multiple16  # side of what the model sees, in pixels of the cube

    @model_validator(mode="after")
    def _matching(self) -> Data:
        for name in (*self.sources, *self.targets):
            if name not in SOURCES:
                raise ValueError(str(unknown("source", name, SOURCES)))
            if (SOURCES[name].role == "target") != (name in self.targets):
                raise ValueError(f"{name} belongs in {'targets' if name in self.sources else 'sources'} alone")
        if len(set(self.targets)) != len(self.targets):
            raise ValueError(f"targets {list(self.targets)} repeat one")
        if len(self.sources) != len(self.frames) or len(set(self.sources)) != len(self.sources):
            raise ValueError(
                f"sources {list(self.sources)} and frames {list(self.frames)} must pair up, without repeats"
            )
        return self


class Model(_Table):
    """Sizes of the network; names as in the paper's Fig. 2D where it has them."""

    blocks: Annotated[int, Field(ge=4)]  # below four the staggered start never reaches the full exchange
    precision: Positive  # D_P, at L/2
    time: Positive  # D_T, at L/8
    space: Positive  # D_S, at L/16
    head: Positive  # width of an attention head
    mlp_ratio: Positive
    precision_expansion: Positive
    exchange_kernel: Annotated[int, Field(ge=1, le=3)]
    pool_heads: Positive  # of the summariser
    pool_width: Positive  # width of one of them
    embedding: Literal[64]  # d; the fields that users share hold 64
    kappa: Annotated[float, Field(gt=0)]
    decoder: Positive  # width of the decoders' two hidden layers
    text: Annotated[int, Field(ge=0)]  # width of the language model's vectors; 0 without text

    @model_validator(mode="after")
    def _divisible(self) -> Model:
        for name in ("time", "space"):
            if getattr(self, name) % self.head:
                raise ValueError(f"{name} = {getattr(self, name)} is not a multiple of head = {self.head}")
        if self.head % 4:
            raise ValueError(f"head = {self.head} is not a multiple of 4")  # rows and columns turn pairs of features
        if self.precision % 16:
            raise ValueError(f"precision = {self.precision} is not a multiple of 16")  # the groups of its norm
        if self.exchange_kernel % 2 == 0:
            raise ValueError(f"exchange_kernel = {self.exchange_kernel} must be 1 or 3")
        return self


class Loss(_Table):
    """Weights a, b, c, d of equation 3, what is decoded, and how valid periods are drawn."""

    reconstruction: Weight
    uniformity: Weight
    consistency: Weight
    text: Weight
    pixels: Positive  # decoded per sample and source; where a source is re-gridded, whole cells of about as many
    whole_support: Annotated[float, Field(ge=0, le=1)]  # share of valid periods that are the support; our choice


class Train(_Table):
    """Adam with a linear rise to `lr` over `warmup` steps, then linearly to 0 [paper S2.3]."""

    steps: Positive
    batch: Annotated[int, Field(ge=2)]  # uniformity pairs every sample with another
    lr: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    warmup: Annotated[int, Field(ge=0)]
    clip: Annotated[float, Field(gt=0)]  # norm of the gradient; our choice, the paper names none
    dtype: Dtype  # of what autocast may round; weights and losses stay float32
    checkpointing: bool  # keep the states between blocks and compute what lies between again
    compile: bool  # the operators, by torch.compile
    save_every: Positive
    seed: int


class Embed(_Table):
    """How the model is laid over a cube: patches of `patch` px, of which `halo` px on each side are trimmed."""

    patch: Multiple16
    dtype: Dtype
    halo: Annotated[int, Field(ge=0)]

    @model_validator(mode="after")
    def _room(self) -> Embed:
        if 2 * self.halo >= self.patch:
            raise ValueError(f"halo = {self.halo} leaves nothing of patch = {self.patch}")
        return self


class Recipe(_Table):
    """The whole experiment."""

    name: str
    data: Data
    model: Model
    loss: Loss
    train: Train
    embed: Embed

    @model_validator(mode="after")
    def _text(self) -> Recipe:
        if ("text" in self.data.targets) != (self.model.text > 0):
            raise ValueError(f"model.text = {self.model.text} does not fit data.targets = {list(self.data.targets)}")
        return self

    @property
    def hash(self) -> str:
        """Twelve hex digits of the SHA-256 of the resolved recipe."""
        return digest(self.model_dump(mode="json"))[:12]

    def to_toml(self) -> str:
        return tomli_w.dumps(self.model_dump(mode="json"))

    def replace(self, **tables: dict[str, Any]) -> Recipe:
        """The recipe with some values changed, as in `replace(train={"steps": 10})`; checked anew."""
        whole = self.model_dump(mode="json")
        for table, values in tables.items():
            whole[table] = {**whole[table], **values}
        return check(whole, "the changed recipe")


def load(name: str) -> Recipe:
    """The recipe of that name, or in that TOML file. Refuses, in one line, what it does not understand."""
    known = names()
    if name in known:
        text, where = (folder() / f"{name}.toml").read_text(), f"recipe {name}"
    elif name.endswith(".toml") or "/" in name:
        if not Path(name).is_file():
            raise BadInput(f"there is no recipe file {name}", f"known recipes: {', '.join(known)}")
        text, where = Path(name).read_text(), f"recipe {name}"
    else:
        raise unknown("recipe", name, known, "or the path of a .toml file")
    return parse(text, where)


def parse(text: str, where: str) -> Recipe:
    """A recipe from its TOML text; `where` names it in messages."""
    try:
        return check(tomllib.loads(text), where)
    except tomllib.TOMLDecodeError as error:
        raise BadInput(f"{where} is not TOML: {error}") from error


def check(tables: dict[str, Any], where: str) -> Recipe:
    try:
        return Recipe.model_validate(tables)
    except ValidationError as error:
        raise _explain(error.errors()[0], where) from error


def folder() -> Path:
    """Where the shipped recipes lie: inside the wheel, or at the top of a checkout."""
    inside = Path(str(resources.files("aefcli"))) / "recipes"
    return inside if inside.is_dir() else inside.parent.parent / "recipes"


def names() -> list[str]:
    return sorted(path.stem for path in folder().glob("*.toml"))


def _explain(error: Any, where: str) -> BadInput:
    """Pydantic's first complaint as one line of ours; an unknown key gets the nearest known one."""
    path = [str(part) for part in error["loc"]]
    if error["type"] == "extra_forbidden":
        table: Any = Recipe
        for part in path[:-1]:
            table = table.model_fields[part].annotation
        return unknown(f"key of {where}", ".".join(path), [".".join([*path[:-1], key]) for key in table.model_fields])
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "missing":
        return BadInput(f"{where} lacks {'.'.join(path)}")
    shown = "" if error["type"] == "value_error" else f" = {error['input']!r}"
    return BadInput(f"{where}: {'.'.join(path)}{shown}: {message[0].lower()}{message[1:]}")
