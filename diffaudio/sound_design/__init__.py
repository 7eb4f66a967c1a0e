"""Sound design in the pipeline: recordings to start from, to keep, to continue, and what comes back around them."""
