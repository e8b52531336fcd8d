"""A pipeline on two machines, one rank each. Run the same command on both, the address being the first one's:

torchrun --nnodes 2 --nproc-per-node 1 --rdzv-backend c10d --rdzv-endpoint first-machine:29500 examples/two_machines.py

The picture is written on the machine of rank 0; an argument is the name of its file.
"""

import sys
from pathlib import Path

from runtime.torchrun import join

join()  # the other rank serves rank 0 from here on, ends with it, and never goes on in this script

import torch  # noqa: E402
from diffusers import DiffusionPipeline  # noqa: E402 # only rank 0 has to load it

from runtime import parallelize  # noqa: E402

pipe = DiffusionPipeline.from_pretrained(Path(__file__).parents[1] / "tools" / "trained" / "unet").to(torch.float32)
with parallelize(pipe, devices=2) as engine:
    image = pipe("a red circle on navy left", num_inference_steps=20).images[0]
    print(f"{engine.plan.ranks} ranks, {engine.stats.steps} calls")
image.save(sys.argv[1] if len(sys.argv) > 1 else "circle.png")
