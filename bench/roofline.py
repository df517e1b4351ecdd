"""How near the encoder and a training step come to what the GPU can do: `python -m bench.roofline [options]`.

Measures the speed of a large bf16 matrix product and of a copy, then, for each recipe and number of frames, encoder and
summariser for one valid period and a training step of both (forward, backward, Adam), under bf16 autocast. FLOPs are
those of `aefcli.cost`; a step counts as three forwards, with checkpointing too. The least seconds possible are those
FLOPs at the speed of the matrix product. Correct: the mean cosine between vectors in bf16 and in fp32. With
`--recipe nano --frames 4 --side 32` it runs on a CPU, to see that it runs; without a GPU and options it measures
nothing.
"""

from __future__ import annotations

import argparse
import re
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from aefcli import cost, recipe
from aefcli.batch import Frames
from aefcli.model import Model
from aefcli.recipe import Recipe
from bench import measure
from bench.measure import Check, Result

PEAK = 990.0  # TFLOP/s: dense bf16 of an H100 or H200, by its data sheet
RECIPES, FRAMES = ("small", "base"), (16, 32, 103)
SHARES = {"sentinel-2": 65, "sentinel-1": 17, "landsat": 21}  # the paper's 103 frames
TOP = 5  # kernels that are named
ARITHMETIC = re.compile(r"gemm|conv|cutlass|xmma|wgrad|dgrad|nvjet|flash|fmha|attention|mm\b|linear", re.IGNORECASE)


def main() -> None:
    chosen = parse()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and chosen.recipe is None and chosen.frames is None:
        Result("roofline", "", (), (), {}, {}, {"device": "no GPU here: nothing measured"}).show(chosen.json)
        return
    run(chosen, device).show(chosen.json)


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the table")
    parser.add_argument("--recipe", nargs="+", help=f"recipes that give the sizes (default {' '.join(RECIPES)})")
    parser.add_argument("--frames", nargs="+", type=int, help=f"frames per site (default {FRAMES})")
    parser.add_argument("--side", type=int, default=128, help="patch in pixels")
    parser.add_argument("--batch", nargs="+", type=int, default=[1], help="sites at a time")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="the operators by torch.compile")
    parser.add_argument("--checkpointing", action="store_true", help="always, not only where memory asks for it")
    return parser.parse_args(words)


# --- clocks ---------------------------------------------------------------------------------------------------------


def seconds(work: Callable[[], object], device: torch.device, repeats: int, warm: int = 2) -> float:
    """Median seconds of work on the device, after two rounds to warm up: by its own events where it has a clock."""
    for _ in range(warm):
        work()
    return statistics.median(_once(work, device) for _ in range(repeats))


def _once(work: Callable[[], object], device: torch.device) -> float:
    if device.type == "cpu":
        began = time.perf_counter()
        work()
        return time.perf_counter() - began
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    first.record()
    work()
    last.record()
    torch.cuda.synchronize()
    return first.elapsed_time(last) / 1e3


@torch.no_grad()
def matmul_peak(device: torch.device) -> float:
    """TFLOP/s of the best of some square bf16 products."""
    sides = (8192, 16384) if device.type == "cuda" else (1024,)
    return max(_product(side, device) for side in sides)


def _product(side: int, device: torch.device) -> float:
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    out = torch.empty_like(a)
    return 2 * side**3 / seconds(lambda: torch.mm(a, b, out=out), device, 10) / 1e12


@torch.no_grad()
def copy_bandwidth(device: torch.device) -> float:
    """GB/s read and written, by a copy of 4 GiB (64 MiB on a CPU)."""
    a = torch.ones(2**30 if device.type == "cuda" else 2**24, device=device)
    b = torch.empty_like(a)
    return 2 * a.nbytes / seconds(lambda: b.copy_(a), device, 10) / 1e9


# --- cases ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """What is run: a recipe's network on so many sites, frames and pixels."""

    plan: Recipe
    frames: int
    side: int
    batch: int
    device: torch.device

    @property
    def slots(self) -> dict[str, int]:
        return {name: count for name, count in cost.split(self.frames, SHARES).items() if count}

    @property
    def tflop(self) -> float:
        """Of one forward, in 1e12."""
        return self.batch * cost.flops(self.plan.model, self.slots, self.side)["total"] / 1e12

    @property
    def valid(self) -> Tensor:
        return measure.year(self.batch).to(self.device)

    def inputs(self) -> dict[str, Frames]:
        made = measure.noise(self.slots, b=self.batch, side=self.side)
        return {name: frames.to(self.device) for name, frames in made.items()}

    def vectors(self, model: Model, inputs: Mapping[str, Frames], dtype: torch.dtype = torch.bfloat16) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
            return model.summarise(model.encode(inputs), self.valid).float()


@dataclass(frozen=True)
class Timed:
    """What one case took, or that it did not fit."""

    what: str  # encoder or step
    case: Case
    tflop: float
    checkpointing: bool = False
    seconds: float = float("nan")
    memory: float = 0.0  # GiB at the most
    profile: Profile | None = None

    @property
    def name(self) -> str:
        size = f"{self.case.plan.name} T={self.case.frames} b={self.case.batch}"
        return f"{self.what} {size}{' checkpointed' if self.checkpointing else ''}"

    @property
    def rate(self) -> float:
        return self.tflop / self.seconds


def run(chosen: argparse.Namespace, device: torch.device) -> Result:
    peak, copy = matmul_peak(device), copy_bandwidth(device)
    correct: dict[str, Check] = {}
    timed = []
    for case in cases(chosen, device):
        timed += [forward(case, chosen, correct), step(case, chosen)]
    rows = [row(each, peak, each.name if each.name in correct else "") for each in timed]
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    notes = {
        "device": name,
        "torch": torch.__version__,
        "compiled": chosen.compile,
        "matmul TFLOP/s": round(peak, 2),
        "copy GB/s": round(copy, 1),
        **{each.name: str(each.profile) for each in timed if each.profile},
    }
    title = f"{name}, {chosen.side} px, bf16, median of {chosen.repeats}"
    columns = ("TFLOP", "seconds", "TFLOP/s", f"of {PEAK:g}", "of matmul", "GiB")
    ratios = {each.name: each.rate / peak for each in timed}
    return Result("roofline", title, columns, rows, ratios, correct, notes)


def cases(chosen: argparse.Namespace, device: torch.device) -> Iterator[Case]:
    for name in chosen.recipe or RECIPES:
        for frames in chosen.frames or FRAMES:
            for batch in chosen.batch:
                yield Case(recipe.load(name), frames, chosen.side, batch, device)


def row(each: Timed, peak: float, check: str) -> tuple[str, ...]:
    if each.seconds != each.seconds:
        return (each.name, f"{each.tflop:.3g}", "out of memory", "", "", "", "", "")
    shares = (f"{each.rate / PEAK:.1%}", f"{each.rate / peak:.1%}", f"{each.memory:.2f}")
    return (each.name, f"{each.tflop:.3g}", f"{each.seconds:.4f}", f"{each.rate:.3g}", *shares, check)


def network(case: Case, chosen: argparse.Namespace) -> Model:
    model = measure.stirred(case.plan).to(case.device)
    if chosen.compile:
        torch._dynamo.reset()  # or networks before this one use up its number of versions
        model.compile_operators()
    return model


def forward(case: Case, chosen: argparse.Namespace, correct: dict[str, Check]) -> Timed:
    """Encoder and summariser for one valid period, without gradients."""
    named = Timed("encoder", case, case.tflop)
    model, inputs = network(case, chosen), case.inputs()
    with torch.no_grad():
        timed = fitted(named, lambda: case.vectors(model, inputs), chosen.repeats)
        if timed is None:
            return named
        both = [case.vectors(model, inputs, dtype) for dtype in (torch.bfloat16, torch.float32)]
    correct[timed.name] = Check((both[0] * both[1]).sum(2).mean().item(), 0.999, least=True)
    return timed


def step(case: Case, chosen: argparse.Namespace) -> Timed:
    """Forward, backward and Adam; with checkpointing where it does not fit without."""
    inputs = case.inputs()
    for checkpointing in (True,) if chosen.checkpointing else (False, True):
        named = Timed("step", case, 3 * case.tflop, checkpointing)
        model = network(case, chosen).train()
        model.checkpointing = checkpointing
        optimiser = torch.optim.Adam(model.parameters(), lr=1e-6, fused=True)

        def work(model: Model = model, optimiser: torch.optim.Optimizer = optimiser) -> None:
            optimiser.zero_grad()
            vectors = case.vectors(model, inputs)
            (vectors * torch.linspace(-1, 1, 64, device=case.device)[:, None, None]).mean().backward()
            optimiser.step()

        timed = fitted(named, work, chosen.repeats)
        if timed is not None:
            return timed
    return named


def fitted(named: Timed, work: Callable[[], object], repeats: int) -> Timed | None:
    """Its time, memory and kernels, or None where memory does not suffice."""
    device = named.case.device
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    try:
        taken = seconds(work, device, repeats)
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return None
    memory = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else 0.0
    kernels = profiled(work, device, taken)
    return Timed(named.what, named.case, named.tflop, named.checkpointing, taken, memory, kernels)


# --- what limits ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Profile:
    """Shares of a run's seconds: of its kernels by name, longest first, and of all by kind."""

    top: Mapping[str, float]
    arithmetic: float
    rest: float
    idle: float  # no kernel ran: waiting for the host

    @property
    def limit(self) -> str:
        shares = {"arithmetic": self.arithmetic, "memory": self.rest, "the host": self.idle}
        return max(shares, key=lambda name: shares[name])

    def __str__(self) -> str:
        top = "; ".join(f"{share:.1%} {name}" for name, share in self.top.items())
        kinds = f"products and convolutions {self.arithmetic:.0%}, other kernels {self.rest:.0%}, idle {self.idle:.0%}"
        return f"limited by {self.limit} ({kinds}): {top}"


def profiled(work: Callable[[], object], device: torch.device, taken: float) -> Profile:
    """One more round under the profiler; shares are of the seconds taken without it."""
    kind = DeviceType.CUDA if device.type == "cuda" else DeviceType.CPU
    activity = ProfilerActivity.CUDA if device.type == "cuda" else ProfilerActivity.CPU
    with profile(activities=[activity], acc_events=True) as seen:
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
    spent = {
        event.key: (event.self_device_time_total if device.type == "cuda" else event.self_cpu_time_total) / 1e6
        for event in seen.key_averages()
        if event.device_type == kind
    }
    whole = max(taken, sum(spent.values()))
    longest = sorted(spent, key=lambda name: spent[name], reverse=True)[:TOP]
    arithmetic = sum(each for name, each in spent.items() if ARITHMETIC.search(name)) / whole
    busy = sum(spent.values()) / whole
    return Profile({name[:60]: spent[name] / whole for name in longest}, arithmetic, busy - arithmetic, 1 - busy)


if __name__ == "__main__":
    main()
