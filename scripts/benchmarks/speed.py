# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Times sparse execution against what one would use instead, in one run, the candidates taking turns.

    python scripts/benchmarks/speed.py                                        the encoder and the whole step, all sizes
    python scripts/benchmarks/speed.py --sizes 96 --ratios 0.6 0.75 --repeats 7
    python scripts/benchmarks/speed.py --what encoder --candidates cells dense
    python scripts/benchmarks/speed.py --what encoder --encoder ResidualEncoderUNet --sizes 128 --ratios 0.6 0.75 \
        --candidates cells dense "dense channels-last"

Candidates: the executors of SparseVolume (`cells`, `masked`, `minkowski`), the plain dense encoder in both memory
formats (the faster one counts), and SparK's masked dense convolutions (spark_baseline.py), which need BatchNorm.
Forward and backward of MONAI's SegResEncoder, or of another encoder of `build_encoder`; for the whole step also
decoder, loss and optimizer. Machines are noisy: a candidate's time is its median, and ratios are between medians of the
same run. Peak memory is that of a fresh process per candidate.

Writes the figures as JSON and a plot; on a GPU uses CUDA events and bf16.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import multiprocessing
import platform
import resource
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from spark_baseline import SparKStep, make_spark
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from bundle.atomic import replace_file
from bundle.cells import Triple
from bundle.losses import AlignmentLoss, PretrainingLoss, ReconstructionLoss
from bundle.networks import Decoder, Encoder, PretrainingNetwork, SegResDecoder, build_encoder
from bundle.sparse import CellLayout, SparseVolume, Window
from bundle.sparse.convolution import methods

#: the encoder that is timed where a case names none, its arguments, and the voxels of a cell: see `use_encoder`
USUAL = "SegResEncoder"
ENCODER: dict[str, Any] = {"init_filters": 32, "blocks_down": (1, 2, 2, 4, 4), "norm": "batch"}
CELL = 16
#: arguments of other encoders than SegResEncoder; one that is not here has its own defaults
ARGUMENTS: dict[str, dict[str, Any]] = {}
ENCODERS = ("cells", "auto", "masked", "minkowski", "dense", "dense channels-last", "spark")
#: of the whole step: also our network with a decoder to half the resolution instead of a quarter, with the two finest
#: levels computed again in the backward pass, with the decoder compiled, and with the default SegResNetDS's decoder at
#: full resolution. On a GPU, gpu.py also times "cells graphed", with the decoder in CUDA graphs, and each of these with
#: SegResNetDS's decoder: "cells segres compiled"
STEPS = ("cells", "cells to half", "cells recomputing", "cells compiled", "cells segres", "auto", "masked",
         "masked segres", "minkowski", "spark")  # fmt: skip
CANDIDATES = list(dict.fromkeys((*ENCODERS, *STEPS)))


def use_encoder(name: str, **arguments: Any) -> None:
    """Times this encoder from here on where a case names none; name and arguments are those of `build_encoder`."""
    global USUAL, ENCODER, CELL  # noqa: PLW0603 - the candidates are functions of a name and a case
    with torch.device("meta"):  # neither memory nor random numbers
        CELL = max(build_encoder(name, **arguments).total_stride)
    USUAL, ENCODER = name, arguments


def half_precision(device: torch.device) -> torch.dtype | None:
    """The type of the arithmetic: bfloat16 on a GPU; None, which is float32, on a CPU."""
    return torch.bfloat16 if device.type == "cuda" else None


class Case:
    """A batch of one size and mask ratio, in cells of the encoder's total stride."""

    def __init__(self, size: int, ratio: float, batch: int, device: torch.device, encoder: str = "") -> None:
        generator = torch.Generator().manual_seed(0)
        self.encoder = encoder or USUAL
        cells = (CELL,) * 3 if self.encoder == USUAL else self.make_encoder().total_stride
        grid = [size // cell for cell in cells]
        keep = round(math.prod(grid) * (1 - ratio))
        order = torch.stack([torch.randperm(math.prod(grid), generator=generator) for _ in range(batch)])
        self.drawn = (order < keep).view(batch, 1, *grid)  # stays on the CPU, as in training
        self.visible = self.drawn.to(device)
        self.image = torch.randn(batch, 1, size, size, size, generator=generator).to(device)
        self.device = device

    def make_encoder(self) -> Encoder:
        """The encoder that is measured, with the same weights each time."""
        torch.manual_seed(0)
        return build_encoder(self.encoder, **(ENCODER if self.encoder == USUAL else ARGUMENTS.get(self.encoder, {})))


@contextmanager
def convolve_by(method: str) -> Iterator[None]:
    """Convolutions run by this method instead of the usual one, where it applies; with an empty name by the usual."""
    usual = methods.usual_method

    def choose(blocks: Tensor, cell_shape: Triple, window: Window, groups: int) -> str:
        if method in methods.applicable(blocks.dtype, cell_shape, window, groups, blocks.device):
            return method
        return usual(blocks, cell_shape, window, groups)

    methods.usual_method = choose
    try:
        yield
    finally:
        methods.usual_method = usual


def encoder_pass(candidate: str, case: Case) -> Callable[[], None]:
    """Forward and backward of the encoder."""
    network: nn.Module = case.make_encoder().to(case.device)
    executor, _, method = candidate.partition(" ")
    if executor in {"cells", "auto"} or candidate == "dense channels-last":
        network = network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]  # 4D only, they say
    mask = make_spark(network) if candidate == "spark" else None
    half = half_precision(case.device)

    def forward() -> list[Any]:
        if mask is not None:
            mask.visible = case.visible
            return network(case.image * mask.at(case.image))
        if candidate.startswith("dense"):
            return network(case.image)
        with convolve_by(method):
            return network(SparseVolume.from_dense(case.image, CellLayout(case.drawn, case.device), executor))

    def step() -> None:
        network.zero_grad(set_to_none=True)
        with torch.autocast(case.device.type, half, enabled=half is not None):
            features = [f.features if isinstance(f, SparseVolume) else f for f in forward()]
        # as from half a sum of squares of what each stores: in the features' own layout, none of it on absent sites
        torch.autograd.backward(features, [f.detach() for f in features])

    return step


def training_step(candidate: str, case: Case) -> Callable[[], None]:
    """Forward, loss, backward and optimizer of the whole pre-training network."""
    encoder, half = case.make_encoder(), half_precision(case.device)
    reconstruction = ReconstructionLoss(target="per_volume", visible_weight=0.0)
    everywhere = torch.ones_like(case.image, dtype=torch.bool)
    target = {"image": case.image, "valid": everywhere, "foreground": everywhere}
    network: nn.Module
    if candidate == "spark":
        network = SparKStep(encoder, [level.channels for level in encoder.levels]).to(case.device)

        def loss() -> Tensor:
            with torch.autocast(case.device.type, half, enabled=half is not None):
                output = network(case.image, case.visible)
            return reconstruction(output.float(), case.image, everywhere, ~case.visible, everywhere)[0]
    else:
        executor, _, variant = candidate.partition(" ")
        network = PretrainingNetwork(
            encoder=encoder,
            decoder=SegResDecoder(encoder=encoder)
            if variant.startswith("segres")
            else Decoder(levels=encoder.levels, stride=2 if variant == "to half" else 4),
            executor=executor,
            recompute_levels=2 if variant == "recomputing" else 0,
            compile_decoder=variant.endswith("compiled"),
            autocast=half,  # its own: it switches off one around it
        ).to(case.device)
        whole = PretrainingLoss(reconstruction=reconstruction, alignment=AlignmentLoss())
        spacing = torch.ones(len(case.image), 3, device=case.device)

        def forward() -> Any:
            return network(case.image, visible=case.drawn, hidden=~case.drawn, spacing=spacing)

        if variant.endswith("graphed"):
            _graph_decoder(network.decoder, forward, case)

        def loss() -> Tensor:
            with convolve_by(variant):
                return whole(forward(), target)

    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss().backward()
        optimizer.step()

    return step


def _graph_decoder(decoder: Any, forward: Callable[[], Any], case: Case) -> None:
    """Makes each block of the decoder one CUDA graph: its sizes never change, as those of the sparse encoder do."""
    half = half_precision(case.device)
    given: dict[nn.Module, Tensor] = {}  # in the order in which they run

    def look(block: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        given[block] = inputs[0]

    hooks = [block.register_forward_pre_hook(look) for block in decoder.refine]
    with torch.no_grad():
        forward()
    for hook in hooks:
        hook.remove()  # a graph takes no block with hooks
    samples = tuple((torch.randn_like(x).requires_grad_(),) for x in given.values())
    with torch.autocast(case.device.type, half, enabled=half is not None, cache_enabled=False):
        torch.cuda.make_graphed_callables(tuple(given), samples)  # in place


WHAT = {"encoder": encoder_pass, "step": training_step}


def seconds(step: Callable[[], Any], device: torch.device) -> float:
    """The time of one call, on a GPU that of the GPU."""
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        step()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1000
    begin = time.perf_counter()
    step()
    return time.perf_counter() - begin


def peak_memory(what: str, candidate: str, options: dict[str, Any]) -> float:
    """MiB that two steps need beyond the process before them, measured in a fresh process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak_memory, (what, candidate, options))


def _peak_memory(what: str, candidate: str, options: dict[str, Any]) -> float:
    device = torch.device(options.pop("device"))
    case = Case(**options, device=device)
    step = WHAT[what](candidate, case)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        base = torch.cuda.memory_allocated()
    else:
        base = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()  # held now, not at most
    for _ in range(2):
        step()
    if device.type == "cuda":
        return (torch.cuda.max_memory_allocated() - base) / 2**20
    # not getrusage: its maximum is inherited from the process that started this one
    status = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
    return (peak - base) / 2**20


def measure(
    what: str, candidates: list[str], options: dict[str, Any], repeats: int, flops: bool
) -> list[dict[str, Any]]:
    """Times the candidates of one case in turns."""
    device = torch.device(options["device"])
    case = Case(options["size"], options["ratio"], options["batch"], device, options.get("encoder", USUAL))
    steps = {candidate: WHAT[what](candidate, case) for candidate in candidates}
    for step in steps.values():
        step()  # warm-up: builds tables, allocates
    times: dict[str, list[float]] = {candidate: [] for candidate in candidates}
    for _ in range(repeats):
        for candidate, step in steps.items():
            times[candidate].append(seconds(step, device))
    rows = []
    for candidate, step in steps.items():
        row = {"what": what, "candidate": candidate, **options, "seconds": statistics.median(times[candidate])}
        row["fastest"], row["slowest"] = min(times[candidate]), max(times[candidate])
        if flops:
            with FlopCounterMode(display=False) as counter:
                step()
            row["gflop"] = counter.get_total_flops() / 1e9
        row["peak_mib"] = peak_memory(what, candidate, dict(options))
        rows.append(row)
    return rows


def with_ratios(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Adds how many times as long as `cells` each row takes, and its share of the memory; dense counts once."""
    for row in rows:
        same = [r for r in rows if all(r.get(k) == row.get(k) for k in ("what", "encoder", "size", "ratio", "batch"))]
        cells = next((r for r in same if r["candidate"] == "cells"), None)
        if cells is not None:
            row["times_cells"] = row["seconds"] / cells["seconds"]
            row["cells_memory_share"] = cells["peak_mib"] / row["peak_mib"] if row["peak_mib"] > 0 else None
        row["ideal"] = 1 / (1 - row["ratio"])
    return rows


def growth(rows: list[dict[str, Any]]) -> list[str]:
    """How the time of `cells` grows with the visible voxels: the slope of a line through their logarithms."""
    lines = []
    for what, ratio in sorted({(r["what"], r["ratio"]) for r in rows}):
        chosen = [r for r in rows if (r["what"], r["ratio"], r["candidate"]) == (what, ratio, "cells")]
        if len({r["size"] for r in chosen}) > 1:
            voxels = [math.log(r["size"] ** 3 * (1 - ratio)) for r in chosen]
            slope, _ = statistics.linear_regression(voxels, [math.log(r["seconds"]) for r in chosen])
            sizes = ", ".join(f"{r['size']}³ {r['seconds']:.2f} s" for r in chosen)
            lines.append(f"{what}, {ratio:.0%} masked: cells {sizes}; time grows as visible voxels ^ {slope:.2f}")
    return lines


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| what | size | masked | candidate | seconds | ÷ cells | ideal | peak MiB | cells ÷ it | GFLOP |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        share = r.get("cells_memory_share")
        lines.append(
            f"| {r['what']} | {r['size']}³ | {r['ratio']:.0%} | {r['candidate']} | {r['seconds']:.3f} "
            f"({r['fastest']:.3f}-{r['slowest']:.3f}) | {r.get('times_cells', float('nan')):.2f} | {r['ideal']:.2f} | "
            f"{r['peak_mib']:.0f} | {'' if share is None else f'{share:.2f}'} | {r.get('gflop', float('nan')):.1f} |"
        )
    return "\n".join(lines)


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Times relative to `cells`, a row for each kind of work, a panel for each mask ratio; bars where size is one."""
    kinds, ratios = (list(dict.fromkeys(r[key] for r in rows)) for key in ("what", "ratio"))
    figure = Figure(figsize=(4.2 * len(ratios) + 2, 3.4 * len(kinds)), layout="constrained", dpi=110)
    panels = figure.subplots(len(kinds), len(ratios), squeeze=False)
    for (what, ratio), ax in zip(itertools.product(kinds, sorted(ratios)), panels.flat):
        chosen = sorted((r for r in rows if (r["what"], r["ratio"]) == (what, ratio)), key=lambda r: r["size"])
        if not chosen:
            ax.set_axis_off()
            continue
        _draw_times(ax, chosen)
        ax.axhline(1 / (1 - ratio), color="grey", linestyle=":", linewidth=1, label="ideal")
        ax.set(title=f"{what}, {ratio:.0%} masked", ylabel="time ÷ cells", ylim=(0, None))
    labels = {label: line for ax in panels.flat for line, label in zip(*ax.get_legend_handles_labels())}
    figure.legend(labels.values(), labels.keys(), loc="outside right upper", fontsize=8)
    figure.savefig(path)


def _draw_times(ax: Axes, rows: Sequence[dict[str, Any]]) -> None:
    """Each candidate's times relative to `cells`: a line over the crop's size, or a bar where there is one size."""
    sizes = list(dict.fromkeys(r["size"] for r in rows))
    for number, candidate in enumerate(CANDIDATES):
        points = [(r["size"], r["times_cells"]) for r in rows if r["candidate"] == candidate]
        if len(sizes) == 1:
            ax.bar([candidate] * len(points), [y for _, y in points], color=f"C{number}")
        elif points:
            ax.plot(*zip(*points), marker="o", color=f"C{number}", label=candidate)
    if len(sizes) == 1:
        ax.set_xlabel(f"crop of {sizes[0]}³ voxels")
        ax.tick_params(axis="x", rotation=20, labelsize=8)
    else:
        ax.set_xlabel("crop, voxels per axis")
        ax.set_xticks(sizes)


def machine(device: torch.device) -> str:
    """What the figures were measured on, without the machine's name."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, bf16, torch {torch.__version__}"
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "CPU")
    return f"{cpu}, {torch.get_num_threads()} threads, {platform.machine()}, torch {torch.__version__}"


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description="Times sparse execution against the alternatives.")
    parser.add_argument("--what", nargs="+", choices=WHAT, default=list(WHAT))
    parser.add_argument(
        "--encoder", default=USUAL, help="as for build_encoder, such as ResidualEncoderUNet, nnU-Net's ResEnc L"
    )
    parser.add_argument("--sizes", nargs="+", type=int, default=[64, 96, 128])
    parser.add_argument("--ratios", nargs="+", type=float, default=[0.6, 0.75, 0.9])
    parser.add_argument("--candidates", nargs="+", choices=CANDIDATES, default=CANDIDATES)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--flops", action="store_true", help="count floating-point operations too")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--output", type=Path, help="path without extension; docs/figures/benchmark, or benchmark_ENCODER"
    )
    parser.add_argument("--add", action="store_true", help="keep the cases that the output file has already")
    options = parser.parse_args()

    cases = [(w, s, r) for w in options.what for s in options.sizes for r in options.ratios]
    name = "benchmark" if options.encoder == USUAL else f"benchmark_{options.encoder}"
    output: Path = options.output or Path("docs/figures") / name
    figures = output.with_suffix(".json")
    rows: list[dict[str, Any]] = json.loads(figures.read_text())["rows"] if options.add and figures.exists() else []
    for what, size, ratio in tqdm(cases, desc="cases"):
        candidates = [c for c in options.candidates if c in (ENCODERS if what == "encoder" else STEPS)]
        case = {"size": size, "ratio": ratio, "batch": options.batch, "device": options.device}
        if options.encoder != USUAL:
            case["encoder"] = options.encoder
        rows = [r for r in rows if (r["what"], r["size"], r["ratio"]) != (what, size, ratio)]
        rows += measure(what, candidates, case, options.repeats, options.flops)
        rows = with_ratios(sorted(rows, key=lambda r: (r["what"], r["size"], r["ratio"])))
        content = {"machine": machine(torch.device(options.device)), "rows": rows}
        with replace_file(figures) as part:  # after each case: a long run that is cut off keeps what it has
            part.write_text(json.dumps(content, indent=1))
    print(machine(torch.device(options.device)), table(rows), *growth(rows), sep="\n\n")
    plot(rows, output.with_suffix(".png"))


if __name__ == "__main__":
    main()
