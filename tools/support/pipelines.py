"""PIPELINES: pipeline classes of diffusers, made small."""

from __future__ import annotations

from tools.support.guided_pipelines import GUIDED_PIPELINES
from tools.support.image_pipelines import IMAGE_PIPELINES
from tools.support.sdxl_pipelines import SDXL_PIPELINES
from tools.support.tiny_pipeline import TinyPipeline
from tools.support.unet_pipelines import UNET_PIPELINES
from tools.support.unet_video_pipelines import UNET_VIDEO_PIPELINES
from tools.support.video_pipelines import VIDEO_PIPELINES

_ALL = (*UNET_PIPELINES, *SDXL_PIPELINES, *UNET_VIDEO_PIPELINES, *IMAGE_PIPELINES, *VIDEO_PIPELINES, *GUIDED_PIPELINES)
PIPELINES: dict[str, TinyPipeline] = {pipeline.class_name: pipeline for pipeline in _ALL}
