"""Built-in architectures: the arguments of one denoiser call, as diffusers' pipelines give them.

Arguments that are None there are left out. Texts are as long as the pipeline lets them be.
"""

from partitioner.models.architectures import audio, flux, images, unets, videos  # registers them

__all__ = ["audio", "flux", "images", "unets", "videos"]
