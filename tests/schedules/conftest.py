"""Properties run on shared machines, and the first example compiles the kernels: no deadline."""

from hypothesis import settings

settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")
