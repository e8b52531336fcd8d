"""DENOISERS: every class of diffusers that a pipeline calls at each step, made small; NOT_DENOISERS: which are none."""

from __future__ import annotations

from tools.support.image_transformers import IMAGE_TRANSFORMERS
from tools.support.more_image_transformers import MORE_IMAGE_TRANSFORMERS
from tools.support.more_video_transformers import MORE_VIDEO_TRANSFORMERS
from tools.support.other_transformers import OTHER_TRANSFORMERS
from tools.support.tiny_denoiser import TinyDenoiser
from tools.support.unets import UNETS
from tools.support.video_transformers import VIDEO_TRANSFORMERS

_ALL = (
    *UNETS, *IMAGE_TRANSFORMERS, *MORE_IMAGE_TRANSFORMERS, *VIDEO_TRANSFORMERS, *MORE_VIDEO_TRANSFORMERS,
    *OTHER_TRANSFORMERS,
)  # fmt: skip
NOT_DENOISERS = {
    "MiniMaxMusic3RVQDepthDecoder": "a decoder of tokens that a language model makes",
    "MotionAdapter": "weights that UNetMotionModel takes up",
    "TransformerTemporalModel": "a layer of UNets for videos",
    "DreamLiteTransformer2DModel": "a layer of DreamLiteUNetModel",
    "RFD4ProteinaTransformer": "its sample is a molecule's coordinates and what is known of it",
}
DENOISERS: dict[str, TinyDenoiser] = {denoiser.name: denoiser for denoiser in _ALL}
