"""Training: from a cohort to a published version of a model. A job of its own process; knows nothing of the wire."""
