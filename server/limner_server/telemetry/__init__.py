"""What an operator sees of the server: metrics, logs and traces. Never patient data.

Metrics are read where they are counted (`statistics`, the executors, `jobs.runner`) when somebody asks for the page,
so that counting costs an image next to nothing: `models`, `jobs` and `gpu` collect them, `triton_names` says some again
under names that other tools know, `page` serves them, and `workers` adds up the pages of several processes.
"""
