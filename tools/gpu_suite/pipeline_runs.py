"""pipeline: a real pipeline through run-plan, with two ranks on one device, beside the pipeline as it is."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy
import torch
from PIL import Image
from torch.profiler import ProfilerActivity, profile

from partitioner import cli as partitioner_cli
from runtime import cli as runtime_cli
from runtime import generation
from runtime.cli_options import run_parser
from runtime.output_file import write_media
from runtime.pipeline import parallelize
from tools.gpu_suite.part_run import PartRun
from tools.pictures.pipelines import TRAINED
from tools.pictures.shapes import caption
from tools.small_pipelines import saved
from tools.trace_once import traced_once

STEPS = 20
RANKS = 2
LIMIT_S = 60.0  # for having the device in one go
PROMPT = caption([0, 0, 3, 1])  # as the shipped pipelines were trained with


def pipeline(run: PartRun) -> dict[str, Any]:
    """Make a picture with the pipeline, then through run-plan: exactly, and in look-ahead; record GPU spans.

    "trained" is the shipped one that has learned to draw; "sdxl" a small StableDiffusionXLPipeline with random weights.
    """
    (name,) = run.choices
    folder = TRAINED / "unet" if name == "trained" else saved("stable_diffusion_xl", run.folder / "pipelines")
    plan = run.folder / f"pipeline-{name}.plan.json"
    dtype = "float16" if run.on_gpu else "float32"
    command = ["--model", str(folder), "--devices", str(RANKS), "--device", "h100" if run.on_gpu else "cpu", "--dtype"]
    command += [dtype, "--branches", "1", "--mode", "lookahead", "--force", "--output", str(plan), "--json"]
    _command(partitioner_cli.main, command)
    picture = run.folder / f"pipeline-{name}.png"
    document: dict[str, Any] = {"pipeline": name, "dtype": dtype}
    with traced_once(), run.alone(LIMIT_S):
        expected, document["pipeline_s"] = _plain_picture(run, folder, dtype, picture)
        run.save(document)
        trace = run.folder / f"pipeline-{name}.trace.json"
        for mode, more in (("exact", ["--exact"]), ("lookahead", ["--trace", str(trace)])):
            made = run.folder / f"pipeline-{name}-{mode}.png"
            told = _command(runtime_cli.main, [str(plan), *_options(run, folder, dtype, made), *more])
            document[mode] = {**told, **_compared(made, expected)}
            run.save(document)
        document["spans"] = _spans(run, folder, plan, dtype, name)
    return document


def _options(run: PartRun, folder: Path, dtype: str, output: Path) -> list[str]:
    options = ["--pipeline", str(folder), "--prompt", PROMPT, "--steps", str(STEPS), "--output", str(output), "--force"]
    return [*options, "--dtype", dtype, "--devices", ",".join([run.device] * RANKS), "--json"]


def _command(main: Any, arguments: Sequence[str]) -> dict[str, Any]:
    """What a command prints as JSON."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        status = main(arguments)
    if status != 0:
        raise RuntimeError(f"exit code {status} of {' '.join(arguments)}")
    told: dict[str, Any] = json.loads(printed.getvalue())
    return told


def _plain_picture(run: PartRun, folder: Path, dtype: str, output: Path) -> tuple[numpy.ndarray[Any, Any], float]:
    """The pixels that the pipeline makes by itself, and the time in s of the second of two calls."""
    options = run_parser().parse_args(["PLAN", *_options(run, folder, dtype, output)])
    torch.set_num_threads(options.threads)
    pipe = generation.load(options, getattr(torch, dtype)).to(run.device)
    for _ in range(2):
        start = time.perf_counter()
        media = generation.generate(pipe, options)
        took = time.perf_counter() - start
    write_media(media, output)
    return _pixels(output), took


def _pixels(file: Path) -> numpy.ndarray[Any, Any]:
    return numpy.asarray(Image.open(file).convert("RGB"), dtype=numpy.float64) / 255


def _compared(made: Path, expected: numpy.ndarray[Any, Any]) -> dict[str, Any]:
    error = float(((_pixels(made) - expected) ** 2).mean())
    return {"equal": error == 0.0, "psnr_db": None if error == 0.0 else float(-10 * numpy.log10(error))}


def _spans(run: PartRun, folder: Path, plan: Path, dtype: str, name: str) -> dict[str, Any]:
    """Profile a few steps by torch.profiler; how busy each of the device's streams was, and the trace as a file."""
    options = run_parser().parse_args(["PLAN", *_options(run, folder, dtype, run.folder / "unused.png")])
    options.steps = 8
    pipe = generation.load(options, getattr(torch, dtype)).to(run.device)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if run.on_gpu else [])]
    with parallelize(pipe, plan, devices=[run.device] * RANKS):
        generation.generate(pipe, options)
        with profile(activities=activities, acc_events=True) as profiler:  # without it torch 2.11 warns
            generation.generate(pipe, options)
            run.synchronize()
    trace = run.folder / f"pipeline-{name}.profiler.json"
    profiler.export_chrome_trace(str(trace))
    text = trace.read_bytes()
    trace.unlink()
    (run.folder / f"{trace.name}.gz").write_bytes(gzip.compress(text))
    return stream_times(json.loads(text)["traceEvents"])


def stream_times(events: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Kernels and busy time in ms of each stream, and for how long any, and for how long several, were busy."""
    busy: Counter[str] = Counter()
    kernels: Counter[str] = Counter()
    changes: list[tuple[float, int]] = []
    annotations = set()
    for event in events:
        if event.get("cat") == "kernel":
            stream = str(event["args"].get("stream"))
            busy[stream] += event["dur"] / 1e3
            kernels[stream] += 1
            changes += [(event["ts"], 1), (event["ts"] + event["dur"], -1)]
        elif event.get("cat") in ("user_annotation", "gpu_user_annotation"):
            annotations.add(f"{event['cat']}: {event['name']}")
    any_ms = several_ms = 0.0
    running, since = 0, 0.0
    for when, change in sorted(changes):
        any_ms += (when - since) / 1e3 if running else 0.0
        several_ms += (when - since) / 1e3 if running > 1 else 0.0
        running, since = running + change, when
    return {
        "kernels": dict(kernels),
        "busy_ms": dict(busy),
        "any_busy_ms": any_ms,
        "several_busy_ms": several_ms,
        "annotations": sorted(annotations)[:20],
    }
