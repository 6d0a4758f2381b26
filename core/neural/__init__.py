"""Everything that imports torch. Tensors know nothing of Redis, Celery, HTTP or jobs.

pixels: picture <-> tensor. vgg: the network and its gradient. parameters: what it is made of. files, caffe: in and out
of files. sources: where they are fetched. weights: the cache of them. activations: every average at 1. losses: the
paper's terms. tiling: parts of large pictures. objective: the weighted sum. optimize: its minimisers. schedule: coarse
to fine. subject: the pictures of a run. planner: memory and time before it. stylize: the run.
"""

import os

# torch's threads otherwise spin while they wait for each other. Alone that gains a twentieth; beside another program on
# the same cores it costs a factor of up to four (docs/log.md). Read when torch is loaded, hence here, before it is.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
