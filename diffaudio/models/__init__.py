"""Everything with weights, each model knowing nothing of the others."""
