"""The whole: stems, blocks, summariser and decoders, put together (section 2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from aefcli.batch import Frames
from aefcli.model.decoders import Decoder, TextHead
from aefcli.model.encoder import PATHS, Block, staggered
from aefcli.model.packing import Encoded, Layout, slots
from aefcli.model.stem import SourceEncoder
from aefcli.model.summariser import Summariser
from aefcli.model.timecodes import relative
from aefcli.recipe import Model as Sizes
from aefcli.sources import SOURCES


class Model(nn.Module):
    """The network. `encode` once, `summarise` for any valid period, `decode` in training.

    `sources` are read and decoded, `targets` decoded alone. `checkpointing` keeps the states between blocks and the
    summariser's sums alone in training, and computes the rest again on the way back.
    """

    def __init__(self, sizes: Sizes, sources: tuple[str, ...], targets: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.sources = sources
        self.checkpointing = False
        self.stem = nn.ModuleDict(
            {name: SourceEncoder(len(SOURCES[name].bands), sizes.precision, sizes.pool_detail) for name in sources}
        )
        self.blocks = nn.ModuleList(Block(sizes, before, after) for before, after in staggered(sizes.blocks))
        self.summariser = Summariser(sizes, sources)
        measured = [name for name in (*sources, *targets) if SOURCES[name].kind != "text"]
        self.decoders = nn.ModuleDict({name: Decoder(sizes, SOURCES[name]) for name in measured})
        self.text = TextHead(sizes) if "text" in targets else None

    def encode(self, inputs: Mapping[str, Frames]) -> Encoded:
        """All present frames of all sources as one sequence in time, through the STP encoder."""
        shown = self.stems(inputs)
        states = {"precision": shown.features}
        for block in self.blocks:
            if self.checkpointing and self.training:
                states = checkpoint(block, states, shown.layout, use_reentrant=False)
            else:
                states = block(states, shown.layout)
        return replace(shown, features=states["precision"])

    def summarise(
        self, encoded: Encoded, valid: Int[Tensor, "b p 2"], at_once: int | None = None
    ) -> Float[Tensor, "b p d h w"]:
        """Mean directions for any number of valid periods per site, so many at a time. Meaningless where `encoded.seen`
        is False.
        """
        return self.summariser(encoded, valid, self.checkpointing and self.training, at_once)

    def decode(
        self,
        source: str,
        sample: Float[Tensor, "b s d"],
        time: Int[Tensor, " b"],
        valid: Int[Tensor, "b 2"],
        meta: Float[Tensor, "b m"],
    ) -> Float[Tensor, "b s c"]:
        """What `source` would have measured at some pixels at an instant of the valid period, normalised as inputs are;
        the logits of its classes if it is categorical.
        """
        return self.decoders[source](sample, relative(time, valid[:, 0], valid[:, 1]), meta)

    def stems(self, inputs: Mapping[str, Frames]) -> Encoded:
        """All present frames packed, as the stems see them."""
        found, present, sites, times, kinds = [], [], [], [], []
        seen = torch.stack([inputs[name].present.any(1) for name in self.sources if name in inputs]).any(0)
        for kind, name in enumerate(self.sources):
            if name not in inputs:
                continue
            frames = inputs[name]
            site, index = frames.present.flatten(2).any(-1).nonzero(as_tuple=True)
            there = frames.present[site, index]
            which = there[:, None] & frames.bands[site, index][:, :, None, None]
            found.append(self.stem[name](frames.pixels[site, index], which))
            present.append(F.max_pool2d(there.float()[:, None], 2)[:, 0] > 0)
            sites.append(site)
            times.append(frames.time[site, index])
            kinds.append(torch.full_like(site, kind))
        order = torch.cat(sites).argsort(stable=True)
        site, when, origin, there = (torch.cat(parts)[order] for parts in (sites, times, kinds, present))
        slot, longest = slots(site, len(seen))
        features, detail, shown, clear = (torch.cat(parts)[order] for parts in zip(*found, strict=True))
        layout = Layout(site, slot, when, origin, (len(seen), longest))
        return Encoded(features, detail, shown, clear, there, layout, seen)

    def compile_operators(self) -> None:
        """Have torch.compile make the operators' kernels; frames come in any number.

        The exchange is left alone: in blocks compiled whole by torch 2.13 on a CPU its way up had zero gradients.
        """
        for block in self.blocks:
            for operator in cast(Block, block).operators.values():
                operator.compile(dynamic=True)

    def parameters_by_part(self) -> dict[str, int]:
        """Numbers of parameters. Decoders, the text head among them, serve training alone."""
        blocks = [cast(Block, block) for block in self.blocks]
        parts: dict[str, list[nn.Module]] = {
            "stem": [self.stem],
            **{path: [b.operators[path] for b in blocks if path in b.operators] for path in reversed(PATHS)},
            "exchange": [block.exchange for block in blocks],
            "summary": [self.summariser],
            "decoders": [self.decoders, *([self.text] if self.text else [])],
        }
        counts = {name: sum(p.numel() for part in own for p in part.parameters()) for name, own in parts.items()}
        return {"total": sum(counts.values()), **counts}
