"""Everything that imports torch. Knows no Redis, Celery, HTTP or jobs.

vgg: the network and its gradient. convolution, pooling: its kernels. device: which device, its
errors and memory. torch_versions: the versions of torch that it runs on. transfer/: style transfer
of one picture. weights/: weight files. training/: training a network on a data set. capacity: what
a card can do.
"""

import os

# By default torch's threads spin while they wait for each other. That gains 5 % when torch runs
# alone, but costs a factor of up to four beside another program on the same cores: see
# docs/benchmarks/speed.md.
# OpenMP reads this when torch is loaded, so it is set here, before that.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# Large tensors are new memory in each evaluation. With huge pages, which Linux grants on request in
# its usual mode `madvise`, the kernel prepares 2 MB at a time instead of 4 KB. torch reads this at
# its first allocation.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
