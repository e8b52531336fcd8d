"""Measures a plan on a data set as papers do: PSNR, LPIPS, FID, CLIP score and ImageReward of a pipeline's pictures.

    python -m tools.quality.protocol --pipeline FOLDER --plan PLAN.json --prompts captions_val2017.json \\
        --images val2017 --metrics psnr,lpips,fid,clip --steps 50 --out DIR

The pictures are made sequentially, with the engine, and with fewer sequential steps in the time of the engine, one per
prompt and seed, and stay in DIR: a run that was broken off goes on, and metrics can be added later. Nothing is fetched:
prompts, pictures and the metrics' weights are files at hand.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from partitioner.errors import UsageError
from tools.command import command
from tools.quality.metrics_published import default_weights
from tools.quality.protocol_pictures import PictureFolder, samples_of
from tools.quality.protocol_prompts import digest, read_prompts
from tools.quality.protocol_runs import RUNS, ProtocolGeneration, generate
from tools.quality.protocol_scores import METRICS, check_truth, networks, score, scores_table


def parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    made = argparse.ArgumentParser(prog="python -m tools.quality.protocol", description=__doc__.split("\n", 1)[0])
    made.add_argument("--pipeline", type=Path, required=True, metavar="FOLDER", help="a saved text-to-image pipeline")
    made.add_argument("--plan", type=Path, required=True, metavar="FILE", help="made by partition-model")
    made.add_argument(
        "--prompts",
        type=Path,
        required=True,
        metavar="FILE",
        help="COCO's captions_val2017.json, DrawBench's .csv, a JSON list, or a text file with a prompt per line",
    )
    made.add_argument(
        "--images", type=Path, metavar="DIR", help="the pictures that the prompts describe (COCO's val2017)"
    )
    made.add_argument(
        "--metrics", type=_list, default=["psnr"], metavar="LIST", help=f"of {','.join(METRICS)} (default: psnr)"
    )
    made.add_argument("--weights", type=Path, metavar="DIR", help="the metrics' weights (default: torch.hub's folder)")
    made.add_argument("--out", type=Path, required=True, metavar="DIR", help="pictures and results.json")
    made.add_argument(
        "--runs", type=_list, default=list(RUNS), metavar="LIST", help=f"of {','.join(RUNS)} (default: all)"
    )
    made.add_argument("--limit", type=int, metavar="N", help="only the first N prompts")
    made.add_argument("--seeds", type=int, default=1, metavar="N", help="pictures per prompt (default: 1)")
    made.add_argument("--steps", type=int, default=50, metavar="N", help="denoising steps (default: 50)")
    made.add_argument("--guidance-scale", type=float, metavar="X", help="default: the pipeline's own")
    made.add_argument("--height", type=int, metavar="N", help="default: the pipeline's own")
    made.add_argument("--width", type=int, metavar="N", help="default: the pipeline's own")
    made.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), default="float32")
    made.add_argument("--devices", type=_list, default=[], metavar="LIST", help="cuda:0,cuda:1; one per rank")
    made.add_argument("--transport", default="processes", metavar="NAME", help="of the engine (default: processes)")
    made.add_argument("--json", action="store_true", help="print one JSON document instead of a table")
    return made


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Make the pictures that are missing, measure all, write results.json, and return what it holds."""
    _check(options)
    prompts = read_prompts(options.prompts)
    samples = samples_of(prompts, options.seeds, options.limit)
    if options.images is not None:
        check_truth(options.images, samples)
    device = options.devices[0] if options.devices else "cpu"
    nets = networks(options.metrics, options.weights or default_weights(), device)  # what is missing is said at once
    arguments = {name: getattr(options, name) for name in ("guidance_scale", "height", "width")}
    how = ProtocolGeneration(
        options.pipeline, options.plan, options.steps, options.dtype, tuple(options.devices), options.transport,
        {name: value for name, value in arguments.items() if value is not None},
    )  # fmt: skip
    names = [name for name in RUNS if name in options.runs]
    folders = {name: PictureFolder(options.out / name, how.about(name, digest(prompts))) for name in names}
    for name, folder in folders.items():
        generate(how, name, folder, samples)
    original = folders["sequential"]
    rows = [
        score(name, folder, original, samples, truth=options.images, metrics=options.metrics, nets=nets)
        for name, folder in folders.items()
    ]
    document = {"command": options.command, "prompts": len(prompts), "seeds": options.seeds, "rows": rows}
    (options.out / "results.json").write_text(json.dumps(document, indent=1) + "\n")
    return document


@command("tools.quality.protocol")
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; exit code 0 when done, else that of the error."""
    options = parser().parse_args(argv)
    options.command = "python -m tools.quality.protocol " + shlex.join(sys.argv[1:] if argv is None else argv)
    document = run(options)
    print(json.dumps(document, indent=1) if options.json else scores_table(document["rows"]))
    return 0


def _check(options: argparse.Namespace) -> None:
    """Refuse what is wrong with the options by themselves."""
    for option, allowed in (("metrics", METRICS), ("runs", RUNS)):
        wrong = [name for name in getattr(options, option) if name not in allowed]
        if wrong:
            raise UsageError(f"--{option} {','.join(wrong)}: expected some of {', '.join(allowed)}")
    if "sequential" not in options.runs:
        raise UsageError("--runs has no sequential, with whose pictures all others are compared")
    for option in ("seeds", "steps", "limit"):
        if getattr(options, option) is not None and getattr(options, option) < 1:
            raise UsageError(f"--{option} is {getattr(options, option)}; expected 1 or more")
    for option in ("pipeline", "plan", "images"):
        path = getattr(options, option)
        if path is not None and not path.exists():
            raise UsageError(f"--{option} {path} is not there")


def _list(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


if __name__ == "__main__":
    raise SystemExit(main())
