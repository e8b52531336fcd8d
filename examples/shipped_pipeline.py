"""A diffusers pipeline on two processes of this machine: python examples/shipped_pipeline.py [FILE.png]"""

import sys
from pathlib import Path

import torch
from diffusers import DiffusionPipeline

from runtime import parallelize

pipe = DiffusionPipeline.from_pretrained(Path(__file__).parents[1] / "tools" / "trained" / "unet").to(torch.float32)
with parallelize(pipe, devices=2) as engine:
    image = pipe("a red circle on navy left", num_inference_steps=20).images[0]
    print(f"{engine.plan.branches} branches x {engine.plan.components} components, {engine.stats.steps} calls")
image.save(sys.argv[1] if len(sys.argv) > 1 else "circle.png")
