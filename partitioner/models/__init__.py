"""The known denoisers and the arguments that they are called with; ``register_model`` adds an architecture.

Torch and diffusers are imported only when something is built.
"""

from partitioner.models import architectures as _architectures  # noqa: F401 # registers what is built in
from partitioner.models.find_spec import live_spec, model_spec
from partitioner.models.inputs import ExampleTensor, Inputs, latent, prompt, step, timestep
from partitioner.models.pipeline_specs import live_specs, model_specs
from partitioner.models.registry import Request, model_names, register_model
from partitioner.models.spec import ModelSpec, trace_model

__all__ = [
    "ExampleTensor",
    "Inputs",
    "ModelSpec",
    "Request",
    "latent",
    "live_spec",
    "live_specs",
    "model_names",
    "model_spec",
    "model_specs",
    "prompt",
    "register_model",
    "step",
    "timestep",
    "trace_model",
]
