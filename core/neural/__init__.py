"""Everything that imports torch. Tensors know nothing of Redis, Celery, HTTP or jobs.

vgg: the network and its gradient. device: what a device can do, and its errors. transfer/: one picture in the style of
another. weights/: the files of networks. training/: a network from a data set.
"""

import os

# torch's threads otherwise spin while they wait for each other. Alone that gains a twentieth; beside another program on
# the same cores it costs a factor of up to four (docs/log.md). Read when torch is loaded, hence here, before it is.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
