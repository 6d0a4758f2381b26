"""Everything that imports torch. Tensors know nothing of Redis, Celery, HTTP or jobs.

pixels: picture <-> tensor. vgg: the network. weights: its parameters. losses: the objective. optimize: its minimisers.
schedule: coarse to fine. stylize: the run.
"""
