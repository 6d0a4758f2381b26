"""Jobs and their life: the models, and the store on Redis that alone changes them. Knows no HTTP, Celery or tensors."""
