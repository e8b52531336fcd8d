"""Trains the small denoisers that the repository ships (loss, s), on pictures that tools.pictures.shapes draws.

    python -m tools.train codec        # autoencoder, shared by all; five minutes
    python -m tools.train unet         # Stable Diffusion's topology; at most 60 minutes on 2 cores
    python -m tools.train dit          # PixArt's class; likewise
    python -m tools.train mmdit        # Stable Diffusion 3's class, flow matching; likewise
    python -m tools.train xl-unet      # held out: Stable Diffusion XL's topology, velocity prediction; likewise
    python -m tools.train linear-dit   # held out: Sana's class, flow matching; likewise
    python -m tools.train classifier   # minutes

Each writes to tools/trained/ (``--output``) a diffusers pipeline folder in float16, training.json with how it was made,
and samples.png. Latent diffusion as in Stable Diffusion: noise prediction on the scaled-linear schedule, or velocity
prediction on straight paths (flow matching). The text encoder is trained along, and one prompt in ten is empty, for
guidance. No choice of the engine is made on the two that are held out. The shipped unet and dit took 42 and 52 minutes
at the same time, on one thread of a core each, the held-out two 41 and 44 likewise; the mmdit took 43 minutes beside
other work.
"""
