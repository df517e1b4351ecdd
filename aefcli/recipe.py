"""An experiment as a file: which sources, which model, which losses, how it is trained and applied.

Owns the recipe's shape, its reading and writing (TOML, one level of tables, no inheritance) and its hash, which goes
wherever results go. A recipe is data: it names no code, and keys it does not know are refused with the nearest
one that it does. Numbers of the paper: method.md sections 3-9.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterator, Sequence
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
Finite = Annotated[float, Field(allow_inf_nan=False)]
Strings = Annotated[tuple[str, ...], Field(strict=False)]  # TOML has lists; their items stay strict


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Data(_Table):
    """What training reads. `frames[i]` is the most frames taken of `sources[i]` per sample."""

    sources: Strings  # inputs, and targets too
    frames: Annotated[tuple[Positive, ...], Field(strict=False)]
    targets: Strings  # sources that are decoded alone
    patch: Multiple16  # side of what the model sees, in pixels of the cube
    windows: Positive  # places of a patch drawn per site
    site: Multiple16  # side of a site in pixels: windows lie inside one, validation takes whole ones
    validation: Annotated[float, Field(ge=0, le=0.5)]  # share of sites held out
    workers: Annotated[int, Field(ge=0)]  # processes that read; 0: a thread of the one that trains

    @model_validator(mode="after")
    def _matching(self) -> Data:
        if self.site < self.patch:
            raise ValueError(f"site = {self.site} is smaller than patch = {self.patch}")
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
    precision_kernel: Literal[1, 3]
    exchange_kernel: Annotated[int, Field(ge=1, le=3)]
    pool_heads: Positive  # of the summariser, for each source
    pool_width: Positive  # width of one of them
    pool_value: Positive  # width of what one of them pools
    # Numbers of a pixel itself that go round the encoder and are pooled beside them: a third its bands, the rest bent
    pool_detail: Annotated[int, Field(ge=3)]
    neighbours: Annotated[int, Field(ge=0)]  # px around a pixel among which those that look alike are averaged
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
    targets: Positive  # frames of each input source held out per sample; the paper's is 1
    student_every: Positive  # samples to one that has a student; the paper's is 1


class Train(_Table):
    """Adam with a linear rise to `lr` over `warmup` steps, then linearly to 0 [paper S2.3]."""

    steps: Positive
    batch: Annotated[int, Field(ge=2)]  # uniformity pairs every sample with another
    lr: Annotated[float, Field(gt=0, allow_inf_nan=False)]  # of the decoders; the paper has one rate for all
    encoder_lr: Annotated[float, Field(gt=0, allow_inf_nan=False)]  # of all else, on the same schedule; our choice
    warmup: Annotated[int, Field(ge=0)]
    agree: Annotated[int, Field(ge=0)]  # batches that weights are first fitted on; 0: random. Our choice: agreement.py
    settle: Annotated[int, Field(ge=0)]  # steps in which the decoders alone learn; our choice
    clip: Annotated[float, Field(gt=0)]  # norm of the gradient; our choice, the paper names none
    dtype: Dtype  # of what autocast may round; weights and losses stay float32
    checkpointing: bool  # keep the states between blocks and compute what lies between again
    compile: bool  # the operators, by torch.compile
    accumulate: Positive  # micro-batches to a step, of `batch` samples each over all processes
    shard: bool  # weights and Adam's state over the processes (FSDP) rather than whole in each (DDP)
    save_every: Positive  # steps between checkpoints
    look_every: Positive  # steps between looks: pictures and measures on held-out sites
    seed: Annotated[int, Field(ge=0, lt=2**63)]


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


class Moments(_Table):
    """Mean and standard deviation of a source's bands, in the order of its row in `sources`, of transformed values."""

    mean: Annotated[tuple[Finite, ...], Field(strict=False)]
    std: Annotated[tuple[Annotated[Finite, Field(gt=0)], ...], Field(strict=False)]


class Recipe(_Table):
    """The whole experiment. A run's recipe has statistics for all that it standardises; others may leave them out."""

    name: str
    data: Data
    model: Model
    loss: Loss
    train: Train
    embed: Embed
    statistics: dict[str, Moments] = {}  # by source; those that are missing here are measured before training

    @model_validator(mode="after")
    def _measured(self) -> Recipe:
        for name, moments in self.statistics.items():
            if name not in SOURCES:
                raise ValueError(str(unknown("source", name, SOURCES)))
            if SOURCES[name].kind != "continuous":
                raise ValueError(f"statistics.{name}: a {SOURCES[name].kind} source has no mean")
            wanted, given = len(SOURCES[name].bands), (len(moments.mean), len(moments.std))
            if given != (wanted, wanted):
                raise ValueError(f"statistics.{name} has {given[0]} means and {given[1]} stds for {wanted} bands")
        return self

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
        return tomli_w.dumps(self.model_dump(mode="json", exclude=None if self.statistics else {"statistics"}))

    def flat(self) -> dict[str, Any]:
        """Every value by its dotted name, as in `train.lr`; statistics by source, as in `statistics.landsat`."""
        return dict(_flat(self.model_dump(mode="json")))

    def replace(self, **tables: dict[str, Any]) -> Recipe:
        """The recipe with some values changed, as in `replace(train={"steps": 10})`; checked anew."""
        whole = self.model_dump(mode="json")
        for table, values in tables.items():
            whole[table] = {**whole[table], **values}
        return check(whole, "the changed recipe")


def _flat(whole: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for table, values in whole.items():
        if isinstance(values, dict):
            yield from ((f"{table}.{key}", value) for key, value in values.items())
        else:
            yield table, values


def with_values(recipe: Recipe, words: Sequence[str]) -> Recipe:
    """The recipe with some values set, as in `train.lr=1e-4`; all are set before it is checked anew.

    What stands after the = is a TOML value; a bare word may go without its quotes. A key named twice has its last
    value. Raises BadInput for an unknown key, with the nearest, for what is no TOML and for what the recipe refuses.
    """
    whole, known = recipe.model_dump(mode="json"), recipe.flat()
    for word in words:
        key, given, text = (part.strip() for part in word.partition("="))
        table, _, name = key.rpartition(".")
        if not given:
            raise BadInput(f"--set {word!r} sets nothing", "write --set table.key=value, such as train.lr=1e-4")
        if key not in known and not (table == "statistics" and name):
            near = [one for one in known if one.rpartition(".")[2] == key] or difflib.get_close_matches(key, known, 1)
            guess = f"did you mean {near[0]}? " if near else ""
            raise BadInput(f"unknown key of a recipe {key!r}", f"{guess}`aef recipe show {recipe.name}` has them all")
        (whole[table] if table else whole)[name] = _value(key, text)
    return check(whole, f"recipe {recipe.name} with --set")


def _value(key: str, text: str) -> Any:
    """A TOML value, or a bare word."""
    if re.fullmatch(r"(?!(true|false|inf|nan)$)[A-Za-z][A-Za-z0-9_.-]*", text):
        return text
    try:
        found = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        found = {}
    if list(found) != ["value"]:
        raise BadInput(f"--set {key}={text} is no TOML value", 'write 1e-4, true, "text" or [1, 2]')
    return found["value"]


def load(name: str) -> Recipe:
    """The recipe of that name, or in that TOML file. Refuses, in one line, what it does not understand."""
    known = names()
    if name in known:
        file = folder() / f"{name}.toml"
    elif name.endswith(".toml") or "/" in name:
        if not (file := Path(name)).is_file():
            raise BadInput(f"there is no recipe file {name}", f"known recipes: {', '.join(known)}")
    else:
        raise unknown("recipe", name, known, "or the path of a .toml file")
    try:
        return parse(file.read_text("utf-8"), f"recipe {name}")
    except UnicodeDecodeError as error:
        raise BadInput(f"recipe {name} is no text", "give a TOML file") from error


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
        # A misspelt key is two mistakes, of which the one with the nearest name says more.
        raise _explain(min(error.errors(), key=lambda one: one["type"] != "extra_forbidden"), where) from error


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
        if len(path) > 1:
            table = Moments if path[0] == "statistics" else Recipe.model_fields[path[0]].annotation
        known = table.model_fields
        return unknown(f"key of {where}", ".".join(path), [".".join([*path[:-1], key]) for key in known])
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "missing":
        return BadInput(f"{where} lacks {'.'.join(path)}")
    shown = "" if error["type"] == "value_error" else f" = {error['input']!r}"
    at = f"{'.'.join(path)}{shown}: " if path else ""
    return BadInput(f"{where}: {at}{message[0].lower()}{message[1:]}")
