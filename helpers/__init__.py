"""What the notebooks share: a live Triton, a model repository, pictures."""
